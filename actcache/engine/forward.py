"""The two forward passes: `run_trees` over token trees, and `JoinedCells`, rows that join it.

`run_trees` is an ordinary forward of the model's decoder (no logits) with hooks that copy single
tokens. `JoinedCells` walks the blocks once with rows that were changed after some layer: each row
is one more query of its sample, sees the sample's unchanged prefix through the keys and values
that `run_trees` left, and is run through the blocks above its layer alone. That is exact, since in
a causal model nothing before the first changed token depends on the change.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from actcache.conventions import ATTENTION
from actcache.engine.anatomy import Anatomy
from actcache.engine.attention_mass import in_order, watched
from actcache.engine.masks import (
    BufferedMask,
    TreeMasks,
    as_given,
    moved_alibi,
    open_masks,
    pick,
    rewritten_calls,
)
from actcache.engine.sites import Tap
from actcache.errors import ModelError
from actcache.prompts.token_tree import TreeBatch

_SHARED = {"use_cache", "output_attentions", "output_hidden_states", "layer_idx", "head_mask"}
"""Arguments of a block that mean the same to a row as to a tree."""


@dataclass(frozen=True)
class ForwardResult:
    """What one pass over trees left behind, on the model's device."""

    residuals: Float[Tensor, "b layer read d"]
    """Residual after each block at the columns that were read."""

    embed: Float[Tensor, "b read d"]
    """Input of block 0 at those columns."""

    sites: dict[str, Float[Tensor, "b layer read _"]]
    """What other sites were asked for."""

    masks: TreeMasks
    """What each token may see, and what each block was told."""

    cache: DynamicCache | None
    """Keys and values of every token, where they were asked for."""


def run_trees(
    anatomy: Anatomy,
    tree: TreeBatch,
    *,
    read: Int64[Tensor, "b read"],
    own: Sequence[BufferedMask | None],
    mean_over: Bool[Tensor, "b t"] | None = None,
    span: Bool[Tensor, "b t"] | None = None,
    taps: Mapping[str, Sequence[Tap]] = MappingProxyType({}),
    keep_cache: bool = False,
) -> ForwardResult:
    """Run a batch of token trees once and copy the residual of a few tokens at every layer.

    Args:
        anatomy: the model's parts.
        tree: the batch, `b` trees of width `t`.
        read: columns to read, `[b, read]`.
        own: masks that the blocks keep to themselves, as `buffered_masks` found them.
        mean_over: tokens whose mean is one more read, the last.
        span: tokens that are marked: then the attention that they get is one of the sites.
        taps: further sites, by name, with their place in each block.
        keep_cache: keep keys and values, for rows that join.

    Returns:
        Residuals in the model's dtype; copies, so that nothing keeps the batch alive.
    """
    device = read.device
    rows = torch.arange(len(read), device=device)[:, None]
    taken: list[Tensor] = []
    first: list[Tensor] = []
    others: dict[str, list[Tensor]] = {site: [] for site in taps}

    def take(value: Tensor) -> Tensor:
        value = value.reshape(*tree.ids.shape, -1)  # OPT runs its MLP on [b · t, d]
        here = value.device
        # Indexing with tensors copies; a view would keep the whole batch alive.
        found = value[rows.to(here), read.to(here)]
        if mean_over is not None:
            found = torch.cat([found, _mean(value, mean_over.to(here))[:, None]], 1)
        return found.to(device)

    def copy(_block: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        taken.append(take(residual_of(output)))

    masks = TreeMasks(tree, own, device)

    def rewrite(layer: int, arguments: dict[str, Any]) -> None:
        if layer == 0:
            first.append(take(arguments["hidden_states"]))
        masks(layer, arguments)

    # Without a config the cache keeps every token; with one, sliding layers drop what rows need.
    cache = DynamicCache() if keep_cache else None
    copies = [block.register_forward_hook(copy, with_kwargs=True) for block in anatomy.blocks]

    def keep(into: list[Tensor]) -> Callable[[Tensor], None]:
        return lambda value: into.append(take(value))

    copies += [tap.attach(keep(others[site])) for site in taps for tap in taps[site]]
    masses: AbstractContextManager[dict[int, Tensor]] = nullcontext({})
    if span is not None:
        masses = watched(anatomy, masks.allowed, read, span)
    try:
        with (
            torch.inference_mode(),
            open_masks(own),
            rewritten_calls(anatomy.blocks, rewrite),
            masses as found,
        ):
            anatomy.decoder(
                input_ids=torch.from_numpy(tree.ids).to(device),
                attention_mask=torch.from_numpy(tree.valid).to(device, torch.int64),
                position_ids=torch.from_numpy(tree.positions).to(device),
                past_key_values=cache,
                use_cache=keep_cache,
            )
    finally:
        for handle in copies:
            handle.remove()
    sites = {site: torch.stack(each, 1) for site, each in others.items()}
    if span is not None:
        sites[ATTENTION] = in_order(anatomy, found)
    return ForwardResult(torch.stack(taken, 1), first[0], sites, masks, cache)


def _mean(value: Float[Tensor, "b t d"], over: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """The mean over some tokens, summed in float32 or wider; padding may hold anything."""
    wide = torch.promote_types(value.dtype, torch.float32)
    total = torch.where(over[:, :, None], value, 0).sum(1, dtype=wide)
    return (total / over.sum(1, keepdim=True)).to(value.dtype)


def residual_of(output: Any) -> Tensor:
    """The residual in what a block returns: the tensor itself, or the first of a tuple."""
    out = output[0] if isinstance(output, tuple) else output
    assert isinstance(out, Tensor)
    return out


class _PrefixCache(Cache):
    """Keys and values of the trees, then those of the rows; remembers nothing."""

    def __init__(self, trees: DynamicCache):
        super().__init__(layers=trees.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]  # a DynamicLayer: the cache was made without a config
        return (
            torch.cat([layer.keys, key_states], dim=-2),
            torch.cat([layer.values, value_states], dim=-2),
        )


class JoinedCells:
    """Rows that join a pass over trees, each after a layer of its own.

    A row is one token of a tree in one changed version of the sequence, a *cell*. Cells do not see
    one another; within a cell a row sees its ancestors.

    Args:
        done: the pass that is joined; it must have kept its cache.
        columns: `[b, node]`, the tokens that each cell replaces, in the order of the tree.
        valid: `[b, node]`, false where a sample has fewer nodes than others.
        prefix: `[b, t]`, true for the tokens that no cell replaces and every cell sees.
        n_cells: how many cells there will be at most.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        done: ForwardResult,
        *,
        columns: Int64[Tensor, "b node"],
        valid: Bool[Tensor, "b node"],
        prefix: Bool[Tensor, "b t"],
        n_cells: int,
        own: Sequence[BufferedMask | None],
    ):
        if done.cache is None:
            raise ValueError("the pass kept no keys and values; run it with keep_cache=True")
        self._blocks = anatomy.blocks
        self._own = own
        self._masks = done.masks
        self._cache = _PrefixCache(done.cache)
        self._columns = columns.repeat(1, n_cells)  # [b, row]: rows are cell-major
        self._prefix = prefix
        n_nodes = columns.shape[1]
        cell = torch.arange(n_cells, device=columns.device).repeat_interleave(n_nodes)
        self._alone = torch.eye(len(cell), dtype=torch.bool, device=columns.device)
        live = valid.repeat(1, n_cells)[:, None, :]  # [b, 1, row]
        # Nobody sees a padding row but itself, which keeps its softmax finite.
        self._same = (cell[:, None] == cell[None, :]) & live  # [b, row, row]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def run_block(self, layer: int, rows: Float[Tensor, "b row d"]) -> Float[Tensor, "b row d"]:
        """Run rows (those of the first cells, cell-major) through block `layer`."""
        n_rows = rows.shape[1]
        columns = self._columns[:, :n_rows]
        given = self._masks.arguments[layer]
        arguments: dict[str, Any] = {"hidden_states": rows}
        for name, value in given.items():
            if name == "attention_mask":
                on_tree, among = self._allowed(layer)
                allowed = torch.cat([on_tree[:, :n_rows], among[:, :n_rows, :n_rows]], -1)
                arguments[name] = as_given(allowed, like=value, dtype=rows.dtype)
            elif isinstance(value, Cache):
                arguments[name] = self._cache
            elif name == "position_embeddings":
                arguments[name] = tuple(_take_rows(part.to(rows.device), columns) for part in value)
            elif name == "position_ids":
                arguments[name] = value.to(rows.device).expand(len(columns), -1).gather(1, columns)
            elif name == "alibi":
                keys = torch.cat([self._masks.twin, self._masks.twin.gather(1, columns)], 1)
                assert self._masks.plain_alibi is not None
                arguments[name] = moved_alibi(self._masks.plain_alibi, keys)
            elif value is None or name in _SHARED or not _holds_tensors(value):
                arguments[name] = value
            else:
                raise ModelError(
                    f"a block of this family takes '{name}', which is not known to mean the same "
                    "to single rows. Use a family of the README's list, or tell us."
                )
        with torch.inference_mode(), open_masks(self._own):
            # Where blocks lie on several devices, each block's own hooks move what it is given.
            return residual_of(self._blocks[layer](**arguments)).to(rows.device)

    def _allowed(self, layer: int) -> tuple[Tensor, Tensor]:
        """What each row may see at this layer: `[b, row, t]` of the tree, `[b, row, row]`."""
        tree = self._masks.allowed[layer]
        if id(tree) not in self._known:
            everything = torch.arange(tree.shape[1], device=tree.device).expand(len(tree), -1)
            on_tree = pick(tree, self._columns, everything) & self._prefix[:, None]
            among = pick(tree, self._columns, self._columns) & self._same
            self._known[id(tree)] = on_tree, among | self._alone
        return self._known[id(tree)]


def _take_rows(part: Tensor, columns: Tensor) -> Tensor:
    """Rotary angles `[b or 1, t, angle]` at `columns` `[b, row]`: `[b, row, angle]`."""
    batch = torch.arange(len(columns), device=part.device)[:, None]
    return part.expand(len(columns), -1, -1)[batch, columns]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(each) for each in value)
    return isinstance(value, Tensor)
