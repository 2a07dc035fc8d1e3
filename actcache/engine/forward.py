"""The two forward passes: `run_trees` over token trees, and `JoinedCells`, which join it later.

`run_trees` is an ordinary forward pass of the model's decoder (no logits) with hooks that copy
single tokens. `JoinedCells` runs blocks once more for tokens that were changed after some layer:
each is one more query of its sample, attends to the sample's unchanged prefix through the keys and
values that `run_trees` kept, and passes through the blocks above its layer alone. That is exact,
since in a causal model nothing before the first changed token depends on the change.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache

from actcache.conventions import ATTENTION
from actcache.engine.anatomy import Anatomy
from actcache.engine.attention_mass import record_masses, stack_layers
from actcache.engine.beginnings import run_beginnings
from actcache.engine.masks import (
    TreeMasks,
    gather_alibi,
    gather_pairs,
    open_masks,
    rewritten_calls,
    to_block_mask,
)
from actcache.engine.sites import Tap, attention_modules, find_taps
from actcache.engine.split_attention import (
    CannotSplitError,
    NodeMasks,
    PrefixCache,
    can_split,
    split_attention,
)
from actcache.errors import ModelError
from actcache.prompts.beginnings import find_beginnings
from actcache.prompts.token_tree import Tree, TreeBatch, pack_trees

_SAME_FOR_CELLS = {
    *("use_cache", "output_attentions", "output_hidden_states", "layer_idx", "head_mask")
}
"""Arguments of a block that mean the same to joined tokens as to a tree."""


@dataclass(frozen=True)
class ForwardResult:
    """What one pass over trees leaves behind, on the model's device."""

    residuals: Float[Tensor, "b layer read d"]
    """Residual after each block at the columns that were read."""

    embed: Float[Tensor, "b read d"]
    """Input of block 0 at those columns."""

    sites: dict[str, Float[Tensor, "b layer read _"]]
    """The other sites, by name."""

    masks: TreeMasks
    """What each token may see, and the arguments of each block."""

    cache: Cache | None
    """Keys and values of every token, where they were asked for."""


def run_trees(
    anatomy: Anatomy,
    tree: TreeBatch,
    *,
    read: Int64[Tensor, "b read"],
    mean_over: Bool[Tensor, "b t"] | None = None,
    span: Bool[Tensor, "*kind b t"] | None = None,
    taps: Mapping[str, Sequence[Tap]] = MappingProxyType({}),
    keep_cache: bool = False,
) -> ForwardResult:
    """Run a batch of token trees once; copy the residual of a few tokens at every layer.

    Args:
        anatomy: the model's parts.
        tree: `b` trees of width `t`, perhaps with beginnings that rows share.
        read: columns to read, behind the beginnings.
        mean_over: tokens whose mean is one more read, the last; all of the beginnings' among them.
        span: marked tokens, of one kind or several; the attention that they get becomes one of the
            sites, the heads of the first kind before those of the next.
        taps: further sites, by name, with their place in each block.
        keep_cache: keep keys and values, for cells that join.

    Returns:
        Values in the model's dtype; copies, so that nothing keeps the batch alive.
    """
    device = read.device
    sample = torch.arange(len(read), device=device)[:, None]  # [b, 1], broadcast against `read`
    taps = {site: find_taps(anatomy, site) for site in ("resid_post", "embed")} | dict(taps)
    tapped: dict[str, list[Tensor]] = {site: [] for site in taps}
    beginnings, cache = tree.beginnings, None
    n_shared = beginnings.length
    read = read - n_shared  # from now on among the columns that are run
    sums: dict[str, list[Tensor]] = {}
    if n_shared:
        summed = taps if mean_over is not None else {}
        begun = run_beginnings(anatomy, beginnings, device, summed=summed, keep=keep_cache)
        cache, sums = begun.cache, begun.sums
    elif keep_cache:
        # A cache made without a config keeps every token. Made with one, its sliding-window layers
        # drop old tokens, which the first steered token may still see.
        cache = DynamicCache()
    ids = torch.from_numpy(tree.ids[:, n_shared:]).to(device)

    def copy_tokens(site: str, value: Tensor) -> None:
        """Copy the tokens that are read out of `[b, q, width]`: `[b, read, width]`."""
        value = value.reshape(*ids.shape, -1)  # OPT runs its MLP on [b · t, d]
        place = value.device  # of this block, where blocks lie on several devices
        # Indexing with tensors copies; a view would keep the whole batch alive.
        tokens = value[sample.to(place), read.to(place)]
        if mean_over is not None:
            before = sums[site][len(tapped[site])] if n_shared else 0
            mean = _mean(value, mean_over.to(place), before=before)
            tokens = torch.cat([tokens, mean[:, None]], 1)
        tapped[site].append(tokens.to(device))

    masks = TreeMasks(tree, anatomy.buffered, device)
    handles = [tap.attach(partial(copy_tokens, site)) for site in taps for tap in taps[site]]
    recorder: AbstractContextManager[dict[int, Tensor]] = nullcontext({})
    if span is not None:
        recorder = record_masses(anatomy, masks.allowed, read, span)
    try:
        with (
            torch.inference_mode(),
            open_masks(anatomy.buffered),
            rewritten_calls(anatomy.blocks, masks),
            recorder as masses,
        ):
            anatomy.decoder(
                input_ids=ids,
                # Padding comes last, where no token that is read would see it.
                attention_mask=torch.ones(tree.ids.shape, dtype=torch.int64, device=device),
                position_ids=torch.from_numpy(tree.positions[:, n_shared:]).to(device),
                past_key_values=cache,
                use_cache=cache is not None,
            )
    finally:
        for handle in handles:
            handle.remove()
    sites = {site: torch.stack(layers, 1) for site, layers in tapped.items()}
    if span is not None:
        sites[ATTENTION] = stack_layers(anatomy, masses)
    residuals, embed = sites.pop("resid_post"), sites.pop("embed")[:, 0]
    return ForwardResult(residuals, embed, sites, masks, cache if keep_cache else None)


def can_share_beginnings(anatomy: Anatomy, device: torch.device) -> bool:
    """Try whether rows continue a beginning's keys and values as if each had run it itself.

    Not where blocks keep no keys and values, or share those of other blocks.
    """
    trees = [Tree((0, 1, 2, 3, 4, 5)), Tree((0, 1, 2, 3, 5, 4))]
    whole = pack_trees(trees, pad=0)
    shared = pack_trees(
        trees, pad=0, beginnings=find_beginnings([tree.chain[:4] for tree in trees])
    )
    read = torch.tensor([[5], [5]], device=device)
    true = run_trees(anatomy, whole, read=read).residuals
    try:
        residuals = run_trees(anatomy, shared, read=read).residuals
    except ModelError:
        return False
    half = true.dtype in (torch.float16, torch.bfloat16)
    error = (residuals - true).abs().max()
    return bool(error <= (0.1 if half else 1e-3) * true.abs().max())


def _mean(
    value: Float[Tensor, "b q d"], over: Bool[Tensor, "b t"], *, before: Tensor | int
) -> Float[Tensor, "b d"]:
    """The mean over some tokens, summed in float32 or wider; `before` is the beginnings' sum."""
    wide = torch.promote_types(value.dtype, torch.float32)
    # `where` and not a product: padding may hold NaN, and 0 · NaN is NaN.
    total = torch.where(over[:, -value.shape[1] :, None], value, 0).sum(1, dtype=wide)
    return ((total + before) / over.sum(1, keepdim=True)).to(value.dtype)


def residual_of(output: Any) -> Tensor:
    """The residual in what a block returns: the tensor itself, or the first of a tuple."""
    residual = output[0] if isinstance(output, tuple) else output
    assert isinstance(residual, Tensor)
    return residual


class JoinedCells:
    """Changed versions of a batch's sequences (*cells*), each joining the pass at its own layer.

    A cell replaces the same few tokens of every sample, its *nodes*, in the order of their columns.
    The `joined` axis holds the nodes of all cells, cell by cell: joined token j belongs to cell
    `j // n_nodes` and replaces the token at `columns[j % n_nodes]`. It sees the unchanged prefix
    and, within its own cell, its ancestors and itself; cells do not see one another. A cell that
    starts at a higher layer is appended behind those of lower layers, so the first n joined tokens
    are always whole cells, and their masks are the leading part of the full ones.

    Where every block attends through Hugging Face's sdpa function, on the CPU, attention is split:
    over the prefix, and within each cell (`split_attention`). Elsewhere one dense mask of joined
    tokens × (tree + joined tokens) keeps cells apart.

    Args:
        result: the pass that is joined; it must have kept its cache.
        columns: the tokens that each cell replaces.
        live: false where a sample has fewer nodes than others.
        prefix: true for the tokens that no cell replaces and every cell may see.
        n_cells: how many cells there will be at most.
        dense: use the dense mask even where attention can be split.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        result: ForwardResult,
        *,
        columns: Int64[Tensor, "b node"],
        live: Bool[Tensor, "b node"],
        prefix: Bool[Tensor, "b t"],
        n_cells: int,
        dense: bool = False,
    ):
        if result.cache is None:
            raise ValueError("the pass kept no keys and values; run it with keep_cache=True")
        self._anatomy = anatomy
        self._masks = result.masks
        self._trees = result.cache
        self._nodes, self._live, self._n_cells = columns, live, n_cells
        seen = prefix.any(0).nonzero()
        end = int(seen.max()) + 1 if len(seen) else 1
        self._prefix = prefix[:, :end]  # no cell sees a tree's token after it
        self._columns = columns.repeat(1, n_cells)  # [b, joined]
        self._by_node: dict[int, NodeMasks] = {}
        self._by_token: dict[int, Bool[Tensor, "b joined t_joined"]] = {}

        self.dense = dense or not can_split(anatomy)
        """Whether all joined tokens attend at once, under the dense mask."""

    @property
    def mask_bytes(self) -> int:
        """Bytes of the masks that are kept from layer to layer."""
        masks = [mask for pair in self._by_node.values() for mask in (pair.prefix, pair.within)]
        return sum(mask.nbytes for mask in [*masks, *self._by_token.values()])

    def run_block(
        self, layer: int, joined: Float[Tensor, "b joined d"]
    ) -> Float[Tensor, "b joined d"]:
        """Run joined tokens, those of the first cells, through block `layer`."""
        if not self.dense:
            cache = PrefixCache(self._trees, apart=True)
            module = attention_modules(self._anatomy)[layer]
            try:
                with split_attention(module, cache, layer, self._node_masks(layer)):
                    return self._run_block(layer, joined, cache, mask=None)
            except CannotSplitError:  # known only when the block has run: so from now on, densely
                self.dense = True
        n_joined, t = joined.shape[1], self._masks.twin.shape[1]
        allowed = self._dense_mask(layer)[:, :n_joined, : t + n_joined]
        like = self._masks.arguments[layer].get("attention_mask")
        mask = to_block_mask(allowed, like=like, dtype=joined.dtype)
        return self._run_block(layer, joined, PrefixCache(self._trees, apart=False), mask=mask)

    def _run_block(
        self,
        layer: int,
        joined: Float[Tensor, "b joined d"],
        cache: PrefixCache,
        *,
        mask: Tensor | None,
    ) -> Float[Tensor, "b joined d"]:
        columns = self._columns[:, : joined.shape[1]]
        queries = columns - self._masks.n_shared  # among the columns that the trees ran
        arguments: dict[str, Any] = {"hidden_states": joined}
        # Each argument is what the model passed to this very block, taken at the tokens' columns:
        # angles, windows and biases are the model's own, whatever its config calls them.
        for name, value in self._masks.arguments[layer].items():
            if name == "attention_mask":
                arguments[name] = mask
            elif isinstance(value, Cache):
                arguments[name] = cache
            elif name == "position_embeddings":  # cosines and sines of the rotary angles
                arguments[name] = tuple(
                    _take_columns(part.to(joined.device), queries) for part in value
                )
            elif name == "position_ids":
                positions = value.to(joined.device).expand(len(queries), -1)
                arguments[name] = positions.gather(1, queries)
            elif name == "alibi":  # a bias by key: first the trees' keys, then the joined ones
                twin = self._masks.twin
                assert self._masks.plain_alibi is not None
                arguments[name] = gather_alibi(
                    self._masks.plain_alibi, torch.cat([twin, twin.gather(1, columns)], 1)
                )
            elif value is None or name in _SAME_FOR_CELLS or not _holds_tensors(value):
                arguments[name] = value
            else:
                raise ModelError(
                    f"a block of this family takes a tensor '{name}', expected only arguments that "
                    "are known to hold for single tokens. Use a family that actcache/engine/"
                    "README.md lists, or report this one."
                )
        with torch.inference_mode(), open_masks(self._anatomy.buffered):
            # Where blocks lie on several devices, each block's own hooks move its arguments.
            return residual_of(self._anatomy.blocks[layer](**arguments)).to(joined.device)

    def _node_masks(self, layer: int) -> NodeMasks:
        """What the nodes of a cell may see of the tree, and of one another."""
        # A joined token sees what the tree's token at its column sees, so this layer's window holds
        # for it too. Layers with one window share one mask object, hence the key.
        tree = self._masks.allowed[layer]  # [b, q, t]
        if id(tree) not in self._by_node:
            columns = torch.arange(self._prefix.shape[1], device=tree.device)
            # A padding node is seen by nobody but itself, which keeps its softmax finite.
            itself = torch.eye(self._nodes.shape[1], dtype=torch.bool, device=tree.device)
            queries = self._nodes - self._masks.n_shared
            within = gather_pairs(tree, queries, self._nodes) & self._live[:, None]
            self._by_node[id(tree)] = NodeMasks(
                prefix=gather_pairs(tree, queries, columns.expand(len(tree), -1))
                & self._prefix[:, None],
                within=within | itself,
            )
        return self._by_node[id(tree)]

    def _dense_mask(self, layer: int) -> Bool[Tensor, "b joined t_joined"]:
        """What all joined tokens may see: the tree's tokens, then the joined ones."""
        key = id(self._masks.allowed[layer])
        if key not in self._by_token:
            masks, n_nodes = self._node_masks(layer), self._nodes.shape[1]
            cell = torch.arange(self._n_cells, device=self._nodes.device)
            cell = cell.repeat_interleave(n_nodes)
            within = masks.within.repeat(1, self._n_cells, self._n_cells) & (cell[:, None] == cell)
            unseen = self._masks.twin.shape[1] - self._prefix.shape[1]
            on_tree = pad(masks.prefix, (0, unseen)).repeat(1, self._n_cells, 1)
            self._by_token[key] = torch.cat([on_tree, within], -1)
        return self._by_token[key]


def _take_columns(
    values: Float[Tensor, "_ t angle"], columns: Int64[Tensor, "b joined"]
) -> Float[Tensor, "b joined angle"]:
    """`values` at each sample's columns; values of batch 1 are broadcast."""
    sample = torch.arange(len(columns), device=values.device)[:, None]
    return values.expand(len(columns), -1, -1)[sample, columns]


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)
