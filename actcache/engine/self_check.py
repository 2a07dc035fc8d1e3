"""The check before a build: does the capture equal a plain forward pass on this model?

A family that the engine would get wrong stops here, with one line, and not after an hour. Sites
within a block are checked too: the outputs of attention and MLP must add up to the residual.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actcache.conventions import MASS_SITES
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_values
from actcache.engine.sites import find_taps
from actcache.engine.tree_capture import capture_head
from actcache.errors import ModelError
from actcache.prompts.beginnings import find_beginnings, group_by_beginning
from actcache.prompts.positions import of_samples
from actcache.prompts.render import Rendered

CaptureFunction = Callable[..., Mapping[str, Tensor]]
"""`capture`, or another function that is called in the same way."""

FULL_PRECISION_BOUND = 1e-3
"""Largest relative error of a residual in float32 or float64; measured ones are below 1e-5."""

HALF_PRECISION_BOUND = 0.1
"""The same in bfloat16 and float16, where each step rounds to 8 or 11 bits."""

_WINDOW = 512
"""Rows among which shared beginnings are looked for, as a build forms its batches."""


@dataclass(frozen=True, kw_only=True)
class CaptureCheck:
    """What the check before a build measured, and what it ran."""

    largest_relative_error: float
    """Of any value, over the largest absolute value that was read at that layer."""

    bound: float
    """What it is under."""

    alone: Mapping[int, Mapping[str, Float[Tensor, "layer position _"]]]
    """By row number the `reference_values` of the rows, on the CPU: the certificate compares the
    store with them too."""

    def recorded(self) -> dict[str, float]:
        """Convert to JSON, for the store."""
        return {"largest_relative_error": self.largest_relative_error, "bound": self.bound}


def check_capture(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    read: CaptureFunction,
    positions: Sequence[str],
    sites: Sequence[str],
    answer: str,
    shares: bool = True,
) -> CaptureCheck:
    """Capture a few rows together, as a build would, and compare with each row alone.

    `rows` are all rows of the build, `read` is the function to check, `shares` whether it may run
    what rows begin with once.

    Raises:
        ModelError: it is over the bound, or a site is not what its name says.
    """
    shares = shares and model.can_share_beginnings
    batches = batches_to_check(rows, positions=positions, shares=shares)
    reading: dict[str, Any] = {"positions": positions, "sites": sites, "answer": answer}
    return check_batches(model, batches, read=read, **reading)


def check_batches(
    model: LanguageModel,
    batches: Sequence[Mapping[int, Rendered]],
    *,
    read: CaptureFunction,
    positions: Sequence[str],
    sites: Sequence[str],
    answer: str,
) -> CaptureCheck:
    """Check as `check_capture` does, on the `batches_to_check` of a build."""
    bound = error_bound(model)
    first = next(iter(batches[0].values()))
    check_sites(model, first, sites)
    positions = of_samples(positions, paired=bool(first.positive))
    reading: dict[str, Any] = {"positions": positions, "sites": sites, "answer": answer}
    largest = 0.0
    alone: dict[int, dict[str, Tensor]] = {}
    for batch in batches:
        for number in batch.keys() - alone.keys():
            values = reference_values(model, batch[number], **reading)
            alone[number] = {site: value.cpu() for site, value in values.items()}
        captured = read(model, list(batch.values()), **reading)
        for site, (j, position), (i, number) in product(
            sites, enumerate(positions), enumerate(batch)
        ):
            true = alone[number][site][:, j]
            error = float(relative_error(site, captured[site][i, :, j], true).max())
            # A residual that overflows is reported by the writer, with its row and layer.
            if torch.isfinite(true).all() and not error <= bound:
                raise ModelError(
                    f"on '{model.name}' ({model.hf.config.model_type}) the batched {site} at "
                    f"'{position}' is off by {error:.2g} of its size from a plain forward "
                    f"pass, expected at most {bound:g}: the engine does not handle this "
                    "family or attention. Try --engine transformer-lens, or --dtype float32."
                )
            largest = max(largest, error) if not np.isnan(error) else largest
    return CaptureCheck(largest_relative_error=largest, bound=bound, alone=alone)


def batches_to_check(
    rows: Sequence[Rendered], *, positions: Sequence[str], shares: bool
) -> list[dict[int, Rendered]]:
    """Pick a few rows of a build by number, in batches of each kind that it will run.

    The shortest and the middle row together. If they begin with nothing in common and other rows
    of the build do, those of them that are shortest too: their beginning is run once.

    Args:
        rows: all rows of the build.
        positions: what is read; nothing is shared from the first token that is read.
        shares: whether a pass may run a beginning once.
    """
    order = np.argsort([row.length for row in rows], kind="stable")
    few = {int(i): rows[i] for i in (order[0], order[len(order) // 2])}
    if not shares or _share(list(few.values()), positions):
        return [few]
    alike = _rows_that_share(rows, positions)
    return [few, alike] if alike else [few]


def _share(rows: Sequence[Rendered], positions: Sequence[str]) -> bool:
    """Whether a pass over these rows runs a beginning once."""
    return find_beginnings([capture_head(row, positions=positions) for row in rows]).length > 0


def _rows_that_share(rows: Sequence[Rendered], positions: Sequence[str]) -> dict[int, Rendered]:
    """Find as few rows as make a pass that shares a beginning; none where no rows do."""
    distinct = list(
        {(row.chain, row.positive, row.negative): i for i, row in enumerate(rows)}.values()
    )
    for start in range(0, len(distinct), _WINDOW):
        window = distinct[start : start + _WINDOW]
        groups = group_by_beginning([capture_head(rows[i], positions=positions) for i in window])
        if not groups:
            continue
        alike = sorted((window[i] for i in groups[0][0]), key=lambda i: rows[i].length)
        for n_rows in range(2, len(alike) + 1):
            if _share([rows[i] for i in alike[:n_rows]], positions):
                return {i: rows[i] for i in alike[:n_rows]}
    return {}


def check_sites(model: LanguageModel, row: Rendered, sites: Sequence[str]) -> None:
    """Refuse sites whose values do not add up to the residual, as their names promise."""
    additive = {"resid_mid", "attn_out", "mlp_out"} & set(sites)
    for site in sorted(additive):
        find_taps(model.anatomy, site)
    if not additive:
        return

    read = ["resid_post", "embed", "attn_out", "mlp_out"]
    if has_middle := _has_site(model, "resid_mid"):
        read.append("resid_mid")
    values = reference_values(model, row, positions=["prompt"], answer="first", sites=read)
    post, embed, attention, mlp, *middle = (values[site][:, 0] for site in read)
    pre = torch.cat([embed, post[:-1]])  # the input of each block
    if has_middle:
        sums = {"attn_out": (pre, attention, middle[0]), "mlp_out": (middle[0], mlp, post)}
    else:  # a parallel block adds attention and MLP at once
        sums = {"attn_out": (pre, attention + mlp, post)}
        sums["mlp_out"] = sums["attn_out"]
    broken = {site for site, terms in sums.items() if not _adds_up(model, *terms)}
    if broken:
        raise ModelError(
            f"in '{model.name}' ({model.hf.config.model_type}) {' and '.join(sorted(broken))} are "
            "not what the block adds to the residual, expected them to add up to it. Leave "
            "resid_mid, attn_out and mlp_out out of the sites."
        )


def _has_site(model: LanguageModel, site: str) -> bool:
    try:
        find_taps(model.anatomy, site)
    except ModelError:
        return False
    return True


def _adds_up(model: LanguageModel, start: Tensor, added: Tensor, end: Tensor) -> bool:
    """Whether `start + added` is `end`, up to rounding; each `[layer, d]`."""
    start, added, end = start.double(), added.double(), end.double()
    # The sum rounds at the size of the residual, which may be far larger than what is added.
    rounding = 8 * torch.finfo(model.hf.dtype).eps * end.abs().amax(-1)
    tolerance = error_bound(model) * added.abs().amax(-1) + rounding
    error = (start + added - end).abs().amax(-1)
    return bool((error <= tolerance).all()) or not bool(torch.isfinite(end).all())


def relative_error(
    site: str, values: Float[Tensor, "layer d"], true: Float[Tensor, "layer d"]
) -> Tensor:
    """Compute each layer's largest difference over its largest absolute value, `[layer]`.

    For attention masses, the difference itself: they are shares of a total of 1.
    """
    values, true = values.double().cpu(), true.double().cpu()
    difference = (values - true).abs().amax(-1)
    if site in MASS_SITES:
        return difference
    return difference / true.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)


def error_bound(model: LanguageModel) -> float:
    """Return the largest relative error that is accepted in the model's dtype."""
    half = model.dtype in ("float16", "bfloat16")
    return HALF_PRECISION_BOUND if half else FULL_PRECISION_BOUND
