"""The prompts of a batch, each run no more often than its keys differ.

A row is a prompt under a steering. Below the first block that its steering reaches, and in columns
before the first steered one, it equals the unsteered prompt, so that one run of the prompt serves
all of its rows. The pass below carries a batch that changes from block to block: a row enters where
it begins to differ, with its prompt's residual, and a prompt leaves when no row waits for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from actcache.engine.masks import rewritten_calls
from actcache.engine.model import LanguageModel
from actcache.engine.sites import Tap
from actcache.errors import ModelError
from actcache.steering.rows import Columns, Place, SteeredRows

_BY_ROW = {"attention_mask", "position_embeddings", "position_ids", "alibi"}
"""Arguments of a block that differ by row."""

_SAME_FOR_ROWS = {
    *("hidden_states", "use_cache", "output_attentions", "output_hidden_states", "layer_idx"),
    *("head_mask", "cache_position"),
}
"""Those that do not, or are rewritten elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PaddedPrompts:
    """Prompts, left padded to one width `t`: all end in the last column."""

    ids: Int64[np.ndarray, "p t"]
    """Token ids; 0 at padding."""

    starts: Int64[np.ndarray, " p"]
    """Column of each prompt's first token."""

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.ids.shape[1])


def pad_prompts(prompts: Sequence[Sequence[int]]) -> PaddedPrompts:
    """Pad prompts on the left to the longest one."""
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.array([width - len(prompt) for prompt in prompts], np.int64)
    return PaddedPrompts(ids=ids, starts=starts)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The batch in front of one block: prompts that rows wait for, and rows that have entered."""

    members: Int64[np.ndarray, " m"]
    """Number of a prompt, or number of prompts + number of a row; ascending."""

    member_of: Int64[np.ndarray, " b"]
    """Which member carries each row."""

    prompt_of: Int64[np.ndarray, " m"]
    """Each member's prompt."""

    source: Int64[np.ndarray, " m"]
    """Which member of the stage before each one continues; at first, which prompt."""

    entering: Int64[np.ndarray, " e"]
    """Members that continue their prompt."""


def plan_stages(
    prompt_of: Int64[np.ndarray, " b"],
    same_as: Int64[np.ndarray, " b"],
    first_blocks: Int64[np.ndarray, " b"],
    *,
    n_layers: int,
) -> list[Stage]:
    """Plan the batch in front of each block, and behind the last one.

    Args:
        prompt_of: each row's prompt.
        same_as: the row that runs in each row's place: itself, or one of equal prompt and steering.
        first_blocks: the block in front of which each row enters; beyond `n_layers`, it never does.
        n_layers: number of blocks.
    """
    n_prompts = int(prompt_of.max()) + 1
    prompts = np.concatenate([np.arange(n_prompts), prompt_of])
    before = np.arange(n_prompts)
    stages: list[Stage] = []
    for layer in range(n_layers + 1):
        members, member_of = np.unique(
            np.where(first_blocks <= layer, n_prompts + same_as, prompt_of), return_inverse=True
        )
        enters = (members >= n_prompts) & ~np.isin(members, before)
        stage = Stage(
            members=members,
            member_of=member_of,
            prompt_of=prompts[members],
            # Members ascend, so a search finds the place of each, or of its prompt.
            source=np.searchsorted(before, np.where(enters, prompts[members], members)),
            entering=np.flatnonzero(enters),
        )
        stages.append(stage)
        before = members
    return stages


def run_prompts(
    model: LanguageModel,
    prompts: PaddedPrompts,
    stages: Sequence[Stage],
    steered: SteeredRows,
    *,
    columns: int,
    room: int,
) -> tuple[DynamicCache, Float[Tensor, "b d"]]:
    """Run the prompts through the model in a batch that changes from block to block.

    Args:
        model: the model.
        prompts: distinct prompts.
        stages: the batch in front of each block.
        steered: the rows' steerings, and behind the last row one that is not steered.
        columns: how many columns to run, from the first one on.
        room: for how many further columns there shall be room in the cache.

    Returns:
        Keys and values of every row, and the last column's residual after the final norm.
    """
    n_prompts, device = len(prompts.ids), model.device
    valid = np.arange(columns) >= prompts.starts[:, None]
    positions = np.maximum(np.arange(columns) - prompts.starts[:, None], 0)
    members = _SteeredMembers(prompts, steered)
    arguments_by_row = _ArgumentsByRow(n_prompts)

    def regroup(layer: int, residual: Tensor) -> Tensor:
        """Turn the batch of the block before into the one in front of this block."""
        stage = stages[layer]
        if not _is_everything(stage.source, len(residual)):
            residual = residual[_indices(stage.source, residual)]
        if layer and len(stage.entering) and ("resid_post", layer - 1) in steered.taps:
            # What is done to the output of the block before, these members have missed.
            entering = _indices(stage.entering, residual)
            rows, where = members.select(stage, stage.entering)
            value = rows.apply("resid_post", layer - 1, residual[entering], where)
            residual = residual.index_copy(0, entering, value)
        return residual

    def rewrite(layer: int, arguments: dict[str, Any]) -> None:
        arguments["hidden_states"] = regroup(layer, arguments["hidden_states"])
        arguments_by_row.rewrite(arguments, stages[layer].prompt_of)

    def rewrite_last(_norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (regroup(len(stages) - 1, args[0]), *args[1:])

    def change(site: str, layer: int, value: Tensor) -> Tensor:
        rows, where = members.select(stages[layer])
        return rows.apply(site, layer, value, where)

    # A cache made without a config keeps every token: windows are in the masks.
    cache = DynamicCache()
    handle = model.anatomy.ln_final.register_forward_pre_hook(rewrite_last)
    try:
        # In this order: rows enter before the block's input is steered.
        with rewritten_calls(model.anatomy.blocks, rewrite), steering_hooks(steered.taps, change):
            states = model.anatomy.decoder(
                input_ids=torch.from_numpy(prompts.ids[:, :columns]).to(device),
                attention_mask=torch.from_numpy(valid).to(device, torch.int64),
                position_ids=torch.from_numpy(positions).to(device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
    finally:
        handle.remove()
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = RoomyLayer(layer, stages[i].member_of, room=room)
    return cache, states[:, -1][_indices(stages[-1].member_of, states)]


@contextmanager
def steering_hooks(
    taps: Mapping[Place, Tap], change: Callable[[str, int, Tensor], Tensor]
) -> Iterator[None]:
    """Let `change(site, layer, value)` change the value at each place while the context lasts."""
    handles = [tap.replace(partial(change, *place)) for place, tap in taps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for tokens to come: a step copies only its own.

    Args:
        layer: keys and values so far.
        rows: which of its rows to take; a row may repeat.
        room: how many more tokens there will be.
    """

    def __init__(self, layer: Any, rows: Int64[np.ndarray, " b"], *, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self._length = layer.keys.shape[-2]
        self._buffers = [_with_room(old, rows, room) for old in (layer.keys, layer.values)]
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens; return all."""
        start = self._length
        self._length += key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._length] = new
        return self._show()

    def keep(self, rows: Int64[np.ndarray, " _"]) -> None:
        """Drop all other rows."""
        self._buffers = [buffer[_indices(rows, buffer)] for buffer in self._buffers]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, : self._length] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(old: Tensor, rows: Int64[np.ndarray, " b"], room: int) -> Tensor:
    _, heads, length, width = old.shape
    buffer = old.new_empty(len(rows), heads, length + room, width)
    torch.index_select(old, 0, _indices(rows, old), out=buffer[:, :, :length])
    return buffer


class _SteeredMembers:
    """Steerings and first columns of a stage's members."""

    def __init__(self, prompts: PaddedPrompts, steered: SteeredRows):
        self._prompts, self._steered = prompts, steered
        self._selected: dict[bytes, tuple[SteeredRows, Columns]] = {}

    def select(
        self, stage: Stage, places: Int64[np.ndarray, " _"] | None = None
    ) -> tuple[SteeredRows, Columns]:
        """Select those at some places of a stage; all of them by default."""
        members = stage.members if places is None else stage.members[places]
        if (key := members.tobytes()) not in self._selected:
            prompt_of = stage.prompt_of if places is None else stage.prompt_of[places]
            rows = members - len(self._prompts.ids)
            where = Columns(
                first=0,
                prompt_width=self._prompts.width,
                starts=torch.from_numpy(self._prompts.starts[prompt_of]),
            )
            # A prompt's number becomes that of the row that is not steered.
            unsteered = self._steered.n_rows - 1
            selected = self._steered.select(np.where(rows < 0, unsteered, rows))
            self._selected[key] = selected, where
        return self._selected[key]


class _ArgumentsByRow:
    """Block arguments that the model made for the prompts, repeated for the members of a stage."""

    def __init__(self, n_prompts: int):
        self._n_prompts = n_prompts
        self._selected: dict[tuple[int, bytes], tuple[Tensor, Tensor]] = {}

    def rewrite(self, arguments: dict[str, Any], prompt_of: Int64[np.ndarray, " m"]) -> None:
        """Rewrite a block's arguments in place, for members with these prompts."""
        if _is_everything(prompt_of, self._n_prompts):
            return
        for name, value in arguments.items():
            if name in _BY_ROW:
                arguments[name] = self._select(value, prompt_of)
            elif not (name in _SAME_FOR_ROWS or isinstance(value, Cache) or _has_no_tensor(value)):
                raise ModelError(
                    f"a block of this family takes a tensor '{name}', expected only arguments that "
                    "are known to hold by row. Report this family, or use sharing 'none' with "
                    "distinct prompts."
                )

    def _select(self, value: Any, prompt_of: Int64[np.ndarray, " m"]) -> Any:
        if isinstance(value, tuple):  # cosines and sines of the rotary angles
            return tuple(self._select(part, prompt_of) for part in value)
        if value is None or len(value) % self._n_prompts:  # batch 1, broadcast
            return value
        # Blocks share masks and angles. The entry holds `value`, so that its id stays its own.
        key = id(value), prompt_of.tobytes()
        if key not in self._selected:
            by_prompt = value.unflatten(0, (self._n_prompts, -1))  # Bloom's bias: prompts · heads
            self._selected[key] = value, by_prompt[_indices(prompt_of, value)].flatten(0, 1)
        return self._selected[key][1]


def _is_everything(selection: Int64[np.ndarray, " _"], n: int) -> bool:
    return np.array_equal(selection, np.arange(n))


def _indices(selection: Int64[np.ndarray, " _"], like: Tensor) -> Tensor:
    return torch.from_numpy(selection).to(like.device)


def _has_no_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_has_no_tensor(item) for item in value)
    return not isinstance(value, Tensor)
