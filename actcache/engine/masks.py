"""The arguments of a decoder block besides the residual, rewritten for token trees.

Hugging Face's models make masks, positions and rotary angles for plain sequences. Here they are
rewritten, block by block, from what the model itself passed to that very block: sliding windows,
alternating windows and rotary bases stay the model's own, and no family needs an entry in a list.
Two families keep part of it elsewhere: GPT-Neo a mask in a buffer (see `buffered_masks`), Bloom
positions in an ALiBi bias (see `gather_alibi`).
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from actcache.prompts.token_tree import TreeBatch

Rewrite = Callable[[int, dict[str, Any]], None]
"""Changes the arguments of block `layer`, in place."""

_ANY_SIZE = 1 << 20
"""More columns than any batch has."""


@contextmanager
def rewritten_calls(blocks: Sequence[nn.Module], rewrite: Rewrite) -> Iterator[None]:
    """Let `rewrite(layer, arguments)` edit the arguments of each block before it runs."""

    def make_hook(layer: int, signature: inspect.Signature) -> Callable[..., tuple[Any, Any]]:
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        rest = next((n for n, kind in kinds.items() if kind == inspect.Parameter.VAR_KEYWORD), "")

        def hook(_block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            # Families differ in what they pass by position, so bind arguments to their names first.
            bound = signature.bind(*args, **kwargs).arguments
            arguments = {**bound.pop(rest, {}), **bound} if rest else dict(bound)
            rewrite(layer, arguments)
            return (), arguments

        return hook

    handles = [
        block.register_forward_pre_hook(
            make_hook(layer, inspect.signature(block.forward)), with_kwargs=True
        )
        for layer, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class BufferedMask:
    """A causal (perhaps windowed) mask that an attention module keeps in a buffer of its own."""

    module: nn.Module
    """The attention module; its buffer is called `bias`."""

    allowed: Bool[Tensor, "positions positions"]
    """What the token at a position may see."""


def buffered_masks(blocks: Sequence[nn.Module]) -> list[BufferedMask | None]:
    """Find the mask buffer of each block (GPT-Neo); None for a block without one.

    Blocks with equal masks share one tensor, so that what follows from it is computed once.
    """
    distinct: list[Tensor] = []

    def find(block: nn.Module) -> BufferedMask | None:
        for module in block.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and bias.dtype == torch.bool and bias.ndim == 4:
                allowed = next((mask for mask in distinct if torch.equal(mask, bias[0, 0])), None)
                if allowed is None:
                    allowed = bias[0, 0]
                    distinct.append(allowed)
                return BufferedMask(module, allowed)
        return None

    return [find(block) for block in blocks]


@contextmanager
def open_masks(masks: Sequence[BufferedMask | None]) -> Iterator[None]:
    """Let the buffered masks allow everything while tree masks, which contain them, are passed.

    A buffer is indexed by column and ends at the context's length, but a tree has more columns than
    positions. Its replacement is a single True, viewed as a matrix of any size.
    """
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    buffers = [(mask.module, mask.module.bias) for mask in masks if mask]
    for module, bias in buffers:
        assert isinstance(bias, Tensor)
        module.bias = everything.to(bias.device).expand(1, 1, _ANY_SIZE, _ANY_SIZE)
    try:
        yield
    finally:
        for module, bias in buffers:
            module.bias = bias


class TreeMasks:
    """Rewrites each block's arguments for a plain batch into those for a batch of trees.

    A token may see its ancestors, and of those only what the model would let it see: its twin, the
    token at the same position of the chain or the longest branch, lies where a plain sequence has
    that position. So `mask[twin(q), twin(k)]` of the model's own mask says what q may see of k,
    windows included. Queries are the columns behind the shared beginnings, keys are all columns.
    Keeps masks and arguments of every layer for the cells that join later.
    """

    def __init__(
        self, tree: TreeBatch, buffered: Sequence[BufferedMask | None], device: torch.device
    ):
        # Plain sequences keep the mask that the model made: perhaps none, which is sdpa's fastest.
        self._keep_mask = tree.is_plain and not any(buffered)
        self._buffered = buffered
        self._ancestor = torch.from_numpy(tree.ancestor).to(device)  # [b, q, t] bool
        self._rewritten: dict[tuple[int, int], tuple[Any, Tensor, Tensor]] = {}

        self.n_shared: int = tree.beginnings.length
        """Columns in front of the first query."""

        self.twin: Int64[Tensor, "b t"] = torch.from_numpy(tree.positions).to(device)
        """Column of each token's twin, which is its position."""

        self.allowed: list[Tensor] = [self._ancestor] * len(buffered)
        """For each layer `[b, q, t]`, bool: what token q may see, windows included."""

        self.arguments: list[dict[str, Any]] = [{} for _ in buffered]
        """For each layer the other arguments of its block."""

        self.plain_alibi: Tensor | None = None
        """Bloom's bias as the model made it, before it was gathered for the trees."""

    def __call__(self, layer: int, arguments: dict[str, Any]) -> None:
        """Rewrite the arguments of block `layer` in place."""
        passed, self.allowed[layer] = self._tree_mask(layer, arguments)
        if not self._keep_mask:
            arguments["attention_mask"] = passed
        if (alibi := arguments.get("alibi")) is not None:
            self.plain_alibi = alibi
            arguments["alibi"] = gather_alibi(alibi, self.twin)
        self.arguments[layer] = {
            name: value for name, value in arguments.items() if name != "hidden_states"
        }

    def _tree_mask(self, layer: int, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The mask to pass to the block, and the same as `[b, q, t]` bool."""
        model_mask, buffered = arguments.get("attention_mask"), self._buffered[layer]
        # Layers share mask objects, and then the result. The entry holds `model_mask`, so that no
        # other object can get its id.
        key = (id(model_mask), id(buffered.allowed) if buffered else 0)
        if key not in self._rewritten:
            allowed, queries = self._ancestor, self.twin[:, self.n_shared :]
            if model_mask is not None:
                plain = _as_bool(model_mask)[:, 0].to(self.twin.device)  # [b or 1, q, t]
                # Padding has position 0; its row of the mask is never read.
                rows = (queries - self.n_shared).clamp_min(0)
                allowed = allowed & gather_pairs(plain, rows, self.twin)
            if buffered is not None:  # indexed by position, as the module itself would
                by_position = buffered.allowed.to(queries.device)
                allowed = allowed & by_position[queries[:, :, None], self.twin[:, None, :]]
            dtype = arguments["hidden_states"].dtype
            passed = to_block_mask(allowed, like=model_mask, dtype=dtype)
            self._rewritten[key] = (model_mask, passed, allowed)
        _, passed, allowed = self._rewritten[key]
        return passed, allowed


def gather_pairs(
    matrix: Shaped[Tensor, "_ rows columns"],
    queries: Int64[Tensor, "b q"],
    keys: Int64[Tensor, "b k"],
) -> Shaped[Tensor, "b q k"]:
    """`out[i, q, k] = matrix[i, queries[i, q], keys[i, k]]`; a matrix of batch 1 is broadcast."""
    sample = torch.arange(len(queries), device=queries.device)[:, None, None]
    return matrix.expand(len(queries), -1, -1)[sample, queries[:, :, None], keys[:, None, :]]


def to_block_mask(
    allowed: Bool[Tensor, "b q k"], *, like: Tensor | None, dtype: torch.dtype
) -> Shaped[Tensor, "b 1 q k"]:
    """Turn `allowed` into a mask of the same kind as `like`, which the model itself passed.

    sdpa takes bool. Eager attention takes what is added to the scores: 0, or the dtype's minimum.
    Where the model passed none, it runs sdpa on a plain causal sequence, so bool.
    """
    if like is None or like.dtype == torch.bool:
        return allowed[:, None]
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    # Some families take their softmax in float32 whatever the dtype. float64's minimum is -inf
    # there, and makes rows of padding, which see nothing, NaN.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return added.masked_fill_(~allowed, lowest)[:, None]


def _as_bool(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def gather_alibi(
    alibi: Float[Tensor, "b_heads 1 t"], columns: Int64[Tensor, "b k"]
) -> Float[Tensor, "b_heads 1 k"]:
    """Bloom's bias, slope × key position, for keys that are not in plain order.

    The model made `alibi`, `[b · heads, 1, t]`, for plain sequences; `columns` holds for each key
    the column of a token at the same position.
    """
    batch, keys = columns.shape
    by_head = alibi.view(batch, -1, 1, alibi.shape[-1])  # [b, heads, 1, t]
    gathered = by_head.gather(-1, columns[:, None, None, :].expand(-1, by_head.shape[1], -1, -1))
    return gathered.reshape(-1, 1, keys)
