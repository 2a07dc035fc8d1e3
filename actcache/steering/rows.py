"""What is done to each row of a batch, as tensors: every row has steerings of its own.

Rows are gathered by place (site and layer) and there by operator and tokens, so that a place costs
a few operations on all its rows at once. In a left-padded batch every prompt ends in the same
column, so which tokens are steered is a comparison of columns: see `Columns`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from actcache.engine.model import LanguageModel
from actcache.engine.sites import Tap, find_taps
from actcache.errors import MismatchError
from actcache.steering.checks import Operator, SteeredTokens
from actcache.steering.gates import PromptGate
from actcache.steering.operators import (
    SCALED_OPERATORS,
    apply_operator,
    coefficients_of,
    is_identity,
    restore_norm,
)
from actcache.steering.steering import AnySteering, Steering

Place = tuple[str, int]
"""Site and layer."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a left-padded batch one forward pass computes."""

    first: int
    """Column of its first token: how many tokens the cache holds."""

    prompt_width: int
    """Every prompt ends in column `prompt_width - 1`; what follows is generated."""

    starts: Int64[Tensor, " b"] | None = None
    """Column of each row's first real token, of which `front` counts; None: no row is padded."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows that are steered at one place by the same operator, on the same tokens."""

    operator: Operator
    tokens: SteeredTokens
    window: tuple[int, int | None] | None
    renorm: bool

    rows: Int64[np.ndarray, " n"]
    """Which rows of the batch, ascending."""

    index: Int64[Tensor, " n"] | None
    """The same on the device; None: all rows."""

    vectors: Float[Tensor, "vector k _ d"]
    """Distinct vectors (or planes): `k` is 1, or the tokens of `front`."""

    choice: Int64[Tensor, " n"] | None
    """Each row's vector; None: there is one for all."""

    coefficients: Float[Tensor, "n 2"]

    threshold: Float[Tensor, "n 1"] | None
    """Of a token gate."""

    length: Int64[Tensor, "n 1"]
    """How many tokens of `vectors` a row has."""

    def span(self, columns: Columns, t: int) -> tuple[int, int]:
        """The tokens of a pass, begin to end, that may be steered; empty where begin >= end."""
        width = columns.prompt_width
        begin = {"all": 0, "front": 0, "prompt": width - 1, "completion": width}[self.tokens]
        end = width if self.tokens == "front" else columns.first + t
        if self.window is not None:  # the prompt is computed in step 0, column width - 1 its last
            start, stop = self.window
            begin = max(begin, width - 1 + start) if start > 0 else begin
            end = end if stop is None else min(end, width - 1 + stop)
        return max(begin - columns.first, 0), min(end - columns.first, t)

    def steer(self, value: Float[Tensor, "n t d"], columns: Columns) -> Float[Tensor, "n t d"]:
        """Steer the tokens of a span, but for those beyond `front` or behind a gate."""
        vectors = self.vectors if self.choice is None else self.vectors[self.choice]
        masks: list[Bool[Tensor, "n t"]] = []
        if self.tokens == "front":  # its span begins with the pass
            token = torch.arange(value.shape[1], device=value.device) + columns.first
            token = token.expand(len(value), -1)
            if columns.starts is not None:
                starts = columns.starts.to(value.device)
                token = token - (starts if self.index is None else starts[self.index])[:, None]
            masks.append(token < self.length)
            row = torch.arange(len(value), device=value.device)[:, None]
            vectors = vectors.expand(len(value), -1, -1, -1)
            vectors = vectors[row, token.clamp(0, vectors.shape[1] - 1)]
        if self.threshold is not None:
            b1 = vectors[:, :, 0]
            masks.append((value * b1).sum(-1) > self.threshold * b1.norm(dim=-1))
        steered = apply_operator(self.operator, value, vectors, self.coefficients)
        if self.renorm:
            steered = restore_norm(steered, value)
        for mask in masks:
            steered = torch.where(mask[..., None], steered, value)
        return steered

    def select(self, position: Int64[np.ndarray, " n"], n_rows: int) -> "_Group | None":
        """Keep rows: `position` is where in this group each of the new rows stands, or -1."""
        rows = np.flatnonzero(position >= 0)
        if not rows.size:
            return None
        taken = torch.from_numpy(position[rows]).to(self.vectors.device)
        return replace(
            self,
            rows=rows,
            index=_index(rows, n_rows, self.vectors.device),
            choice=None if self.choice is None else self.choice[taken],
            coefficients=self.coefficients[taken],
            threshold=None if self.threshold is None else self.threshold[taken],
            length=self.length[taken],
        )

    def to(self, device: torch.device) -> "_Group":
        """The same on another device."""
        tensors: dict[str, Any] = {
            name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **tensors)


class SteeredRows:
    """The steerings of a batch's rows; see `apply`.

    Args:
        model: the model; nothing of it is changed.
        steerings: one a row; None leaves the row as it is. Prompt gates have been decided.

    Raises:
        MismatchError: a layer or width that the model does not have, or an open prompt gate.
        ModelError: a site that the model's blocks do not have.
    """

    def __init__(self, model: LanguageModel, steerings: Sequence[AnySteering | None]) -> None:
        self.n_rows = len(steerings)
        taps: dict[Place, Tap] = {}
        self.taps: Mapping[Place, Tap] = taps
        """Where in the model each place lies; the same module has one place, whatever its names."""

        self.first_blocks: list[int] = [model.n_layers] * self.n_rows
        """First block that a row must run by itself; below it, it equals the unsteered row.

        ℓ + 1 where resid_post of layer ℓ is the first place that is steered, and ℓ for every other
        site; the number of layers where no block is.
        """

        by_site: dict[str, list[Tap]] = {}
        names: dict[tuple[int, bool], Place] = {}
        members: defaultdict[Place, defaultdict[Any, list[tuple[int, Steering, int]]]]
        members = defaultdict(lambda: defaultdict(list))
        for row, steering in enumerate(steerings):
            used: dict[Place, int] = {}
            for part in steering.parts if steering else ():
                _check(part, model)
                if is_identity(part):
                    continue
                if part.site not in by_site:
                    by_site[part.site] = find_taps(model.anatomy, part.site)
                for k, layer in enumerate(part.layers):
                    tap = by_site[part.site][layer]
                    place = names.setdefault((id(tap.module), tap.before), (part.site, layer))
                    taps.setdefault(place, tap)
                    # Parts of one row at one place are applied in turn, hence their number.
                    number = used[place] = used.get(place, -1) + 1
                    gated = part.gate is not None
                    key = (number, part.operator, part.tokens, part.window, part.renorm, gated)
                    members[place][key].append((row, part, k))
                    block = layer + (part.site == "resid_post")
                    self.first_blocks[row] = min(self.first_blocks[row], block)
        self._wide = torch.promote_types(model.hf.dtype, torch.float32)
        self._groups = {
            place: [
                _make_group(groups[key], self.n_rows, taps[place].scale, self._wide)
                for key in sorted(groups, key=lambda key: int(key[0]))
            ]
            for place, groups in members.items()
        }

    def apply(
        self, site: str, layer: int, value: Float[Tensor, "*tokens d"], columns: Columns
    ) -> Float[Tensor, "*tokens d"]:
        """Steer the value at one place of `taps`, for one forward pass.

        Computed in float32 or wider and rounded once; tokens that are not steered keep their bits.
        Padding, which no token sees, is steered with `all` and `front`.

        Args:
            site: the place's site.
            layer: the place's layer.
            value: `[b, t, d]`, or `[b · t, d]`, as the module has it.
            columns: which columns the pass computes.
        """
        tokens = value.reshape(self.n_rows, -1, value.shape[-1])
        t = tokens.shape[1]
        groups = self._groups.get((site, layer), [])
        if groups and groups[0].vectors.device != value.device:
            groups[:] = [group.to(value.device) for group in groups]
        spans = [(group, *group.span(columns, t)) for group in groups]
        spans = [span for span in spans if span[1] < span[2]]
        if not spans:
            return value
        low, high = min(span[1] for span in spans), max(span[2] for span in spans)
        wide = tokens[:, low:high].to(self._wide)
        for group, begin, end in spans:
            if group.index is None and (begin, end) == (low, high):
                wide = group.steer(wide, columns)
                continue
            if wide.data_ptr() == tokens[:, low:].data_ptr():
                wide = wide.clone()  # the module's own value stays as it is
            rows = slice(None) if group.index is None else group.index
            part = wide[rows, begin - low : end - low]
            wide[rows, begin - low : end - low] = group.steer(part, columns)
        if high - low == t:
            return wide.to(value.dtype).reshape(value.shape)
        steered = tokens.clone()
        steered[:, low:high] = wide  # rounds
        return steered.reshape(value.shape)

    def select(self, rows: Int64[np.ndarray, " n"]) -> "SteeredRows":
        """Return the steerings of some rows, in this order; a row may repeat (beams)."""
        chosen = object.__new__(SteeredRows)
        chosen.n_rows, chosen.taps, chosen._wide = len(rows), self.taps, self._wide
        chosen.first_blocks = [self.first_blocks[row] for row in rows]
        chosen._groups = {}
        for place, groups in self._groups.items():
            selected = []
            for group in groups:
                position = np.full(self.n_rows, -1)
                position[group.rows] = np.arange(len(group.rows))
                if (chosen_group := group.select(position[rows], len(rows))) is not None:
                    selected.append(chosen_group)
            chosen._groups[place] = selected
        return chosen


def _check(part: Steering, model: LanguageModel) -> None:
    if isinstance(part.gate, PromptGate):
        raise MismatchError(
            "a steering has a prompt gate that is not decided yet, expected one that is. Pass the "
            "prompts' token ids as prompts=, or call decide_gates first."
        )
    if outside := [layer for layer in part.layers if not 0 <= layer < model.n_layers]:
        raise MismatchError(
            f"a steering is for layer {outside[0]}, expected 0 to {model.n_layers - 1} of "
            f"'{model.name}'. Steer one of its layers."
        )
    if (width := part.vectors.shape[-1]) != model.d_model:
        raise MismatchError(
            f"a steering's vectors have {width} values, expected {model.d_model} of "
            f"'{model.name}'. Use vectors of this model."
        )


def _make_group(
    members: list[tuple[int, Steering, int]], n_rows: int, scale: float, wide: torch.dtype
) -> _Group:
    """Gather rows, each with its steering and which of its layers this is.

    The value is steered before the block's factor `scale`, which is divided out of all sizes.
    """
    _, first, _ = members[0]
    distinct: dict[tuple[int, int], int] = {}
    arrays: list[np.ndarray] = []
    choice: list[int] = []
    for _, part, k in members:
        number = distinct.setdefault((id(part.vectors), k), len(arrays))
        if number == len(arrays):
            arrays.append(part.vectors if part.tokens == "front" else part.vectors[k : k + 1])
        choice.append(number)
    longest = max(map(len, arrays))
    d = first.vectors.shape[-1]
    vectors = np.zeros((len(arrays), longest, first.vectors[0].size // d, d), np.float32)
    for number, array in enumerate(arrays):
        vectors[number, : len(array)] = array.reshape(len(array), -1, d)
    coefficients, thresholds = [], []
    for _, part, _ in members:
        strength = part.strength / scale if part.operator in SCALED_OPERATORS else part.strength
        coefficients.append(coefficients_of(part.operator, strength))
        thresholds.append([part.gate.threshold / scale] if part.gate else [])
    rows = np.array([row for row, _, _ in members])
    return _Group(
        operator=first.operator,
        tokens=first.tokens,
        window=first.window,
        renorm=first.renorm,
        rows=rows,
        index=_index(rows, n_rows, torch.device("cpu")),
        vectors=torch.from_numpy(vectors).to(wide),
        choice=torch.tensor(choice) if len(arrays) > 1 else None,
        coefficients=torch.tensor(coefficients, dtype=wide),
        threshold=torch.tensor(thresholds, dtype=wide) if first.gate else None,
        length=torch.tensor([[len(arrays[number])] for number in choice]),
    )


def _index(rows: np.ndarray, n_rows: int, device: torch.device) -> Tensor | None:
    return None if len(rows) == n_rows else torch.from_numpy(rows).to(device)
