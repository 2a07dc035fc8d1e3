"""The pass over beginnings that rows share, and the keys and values that rows continue from.

Each distinct beginning is run once, as a plain sequence. Its keys and values are held once too;
they are expanded to the rows that share it in one block at a time, where attention reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from actcache.engine.anatomy import Anatomy
from actcache.engine.sites import Tap
from actcache.errors import ModelError
from actcache.prompts.beginnings import Beginnings


@dataclass(frozen=True)
class BeginningsResult:
    """What the pass over beginnings leaves for the rows that continue them."""

    cache: Cache
    """Keys and values, by row; those of further tokens are kept only where that was asked for."""

    sums: dict[str, list[Float[Tensor, "b width"]]]
    """The sum of a site over each row's beginning, by layer, in float32 or wider."""


def run_beginnings(
    anatomy: Anatomy,
    beginnings: Beginnings,
    device: torch.device,
    *,
    summed: Mapping[str, Sequence[Tap]],
    keep: bool,
) -> BeginningsResult:
    """Run each beginning once, as a plain sequence.

    Args:
        anatomy: the model's parts.
        beginnings: of a batch's rows.
        device: the one that token ids go to.
        summed: sites whose sum over each beginning is asked for, with their place in each block.
        keep: keep the keys and values of the tokens that follow, too.

    Raises:
        ModelError: a block did not keep the keys and values of every token.
    """
    ids = torch.from_numpy(beginnings.ids).to(device)
    of_row = torch.from_numpy(beginnings.of_row).to(device)
    sums: dict[str, list[Tensor]] = {site: [] for site in summed}

    def add_up(site: str, value: Tensor) -> None:
        value = value.reshape(*ids.shape, -1)  # OPT runs its MLP on [b · t, d]
        wide = torch.promote_types(value.dtype, torch.float32)
        sums[site].append(value.sum(1, dtype=wide)[of_row.to(value.device)])

    # A cache made without a config keeps every token: windows are in the masks.
    cache = DynamicCache()
    handles = [tap.attach(partial(add_up, site)) for site, taps in summed.items() for tap in taps]
    try:
        with torch.inference_mode():
            anatomy.decoder(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=torch.arange(ids.shape[1], device=device).expand_as(ids),
                past_key_values=cache,
                use_cache=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    held = [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
    if held != [ids.shape[1]] * len(anatomy.blocks):
        raise ModelError(
            f"the blocks kept keys and values of {held} tokens, expected {ids.shape[1]} in each of "
            f"{len(anatomy.blocks)}. Report this family: rows cannot share their beginnings."
        )
    layers: list[Any] = [_ContinuedLayer(layer, of_row, keep=keep) for layer in cache.layers]
    return BeginningsResult(Cache(layers=layers), sums)


class _ContinuedLayer(DynamicLayer):
    """One layer's keys and values of the beginnings, and of what rows continue them with."""

    def __init__(self, layer: Any, of_row: Int64[Tensor, " b"], *, keep: bool):
        self.is_initialized = True
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self._beginnings = layer.keys, layer.values
        self._of_row = of_row.to(layer.keys.device)
        self._keep = keep
        self._rows: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the beginnings' keys and values in front of those of the rows."""
        rows = key_states, value_states
        if self._keep:
            self._rows = rows
        return self._join(0, rows), self._join(1, rows)

    def get_seq_length(self) -> int:
        """Count the tokens of a beginning, before those that continue it."""
        length: int = self._beginnings[0].shape[-2]
        return length

    @property
    def keys(self) -> Tensor:  # type: ignore[override]  # joined anew whenever they are read
        """Keys of all columns, `[b, head, t, width]`."""
        assert self._rows is not None
        return self._join(0, self._rows)

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """Values of all columns."""
        assert self._rows is not None
        return self._join(1, self._rows)

    def _join(self, part: int, rows: tuple[Tensor, Tensor]) -> Tensor:
        beginnings, row = self._beginnings[part], rows[part]
        if len(beginnings) == 1:  # a view, which is copied once
            beginnings = beginnings.expand(len(row), -1, -1, -1)
        else:
            beginnings = beginnings[self._of_row]
        return torch.cat([beginnings, row], dim=-2)
