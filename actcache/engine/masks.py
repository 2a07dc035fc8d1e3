"""What a decoder block is told besides the residual: mask, positions, keys and values of the past.

Hugging Face's models make these for plain sequences. Here they are rewritten, block by block, for
token trees and for rows that join a tree, from what the model itself passed to that very block: so
sliding windows, mixed windows and rotary bases are the model's own and no family needs a list here.
Two families keep part of it elsewhere: GPT-Neo a mask in a buffer (see `open_masks`), Bloom
positions in an ALiBi bias.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actcache.prompts.token_tree import TreeBatch

Rewrite = Callable[[int, dict[str, Any]], None]
"""Changes the arguments of block `layer`, in place."""


@contextmanager
def rewritten_calls(blocks: Sequence[nn.Module], rewrite: Rewrite) -> Iterator[None]:
    """Let `rewrite(layer, arguments)` edit the arguments of each block before it runs."""

    def hook(layer: int, signature: inspect.Signature) -> Callable[..., tuple[Any, Any]]:
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        rest = next((n for n, kind in kinds.items() if kind == inspect.Parameter.VAR_KEYWORD), "")

        def edit(_block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            # Families differ in what they pass by position, so bind before looking.
            bound = signature.bind(*args, **kwargs).arguments
            arguments = {**bound.pop(rest, {}), **bound} if rest else dict(bound)
            rewrite(layer, arguments)
            return (), arguments

        return edit

    handles = [
        block.register_forward_pre_hook(
            hook(layer, inspect.signature(block.forward)), with_kwargs=True
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

    allowed: Tensor
    """`[positions, positions]`, bool."""


def buffered_masks(blocks: Sequence[nn.Module]) -> list[BufferedMask | None]:
    """The masks that blocks keep to themselves (GPT-Neo), one entry a block, None where none.

    Blocks with equal masks share one tensor, so that what follows from it is computed once.
    """
    known: list[Tensor] = []

    def find(block: nn.Module) -> BufferedMask | None:
        for module in block.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and bias.dtype == torch.bool and bias.ndim == 4:
                same = [mask for mask in known if torch.equal(mask, bias[0, 0])]
                known.extend([] if same else [bias[0, 0]])
                return BufferedMask(module, (same or known[-1:])[0])
        return None

    return [find(block) for block in blocks]


@contextmanager
def open_masks(masks: Sequence[BufferedMask | None]) -> Iterator[None]:
    """Lift the blocks' own masks while tree masks, which contain them, are passed instead.

    A buffer mask goes by column and ends at the context's length; a tree has more columns than
    positions. What replaces it is one True, seen as a matrix of any size.
    """
    anything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    kept = [(mask.module, mask.module.bias) for mask in masks if mask]
    for module, bias in kept:
        assert isinstance(bias, Tensor)
        module.bias = anything.to(bias.device).expand(1, 1, 1 << 20, 1 << 20)
    try:
        yield
    finally:
        for module, bias in kept:
            module.bias = bias


class TreeMasks:
    """Rewrites what each block is told for a plain batch into what it must be told for trees.

    Keeps, for each layer, which token may see which; rows that join later ask for it.
    """

    def __init__(self, tree: TreeBatch, own: Sequence[BufferedMask | None], device: torch.device):
        self._plain = tree.is_plain and not any(own)
        self.twin = torch.from_numpy(tree.twin).to(device)
        self._ancestor = torch.from_numpy(tree.ancestor).to(device)
        self._positions = torch.from_numpy(tree.positions).to(device)
        self._own = own
        self._seen: dict[tuple[int, int], tuple[Any, Tensor]] = {}
        self.allowed: list[Tensor] = [self._ancestor] * len(own)
        """For each layer `[b, t, t]`, bool: what token q may see, windows included."""

        self.arguments: list[dict[str, Any]] = [{} for _ in own]
        """For each layer what else its block was told."""

        self.plain_alibi: Tensor | None = None
        """Bloom's bias as the model made it, before it was moved to the trees' positions."""

    def __call__(self, layer: int, arguments: dict[str, Any]) -> None:
        """Edit the arguments of block `layer`."""
        given = arguments.get("attention_mask")
        passed, self.allowed[layer] = self._for_trees(given, layer, arguments)
        if not self._plain:
            arguments["attention_mask"] = passed
        if (alibi := arguments.get("alibi")) is not None:
            self.plain_alibi = alibi
            arguments["alibi"] = moved_alibi(alibi, self.twin)
        self.arguments[layer] = {
            name: value for name, value in arguments.items() if name != "hidden_states"
        }

    def _for_trees(
        self, given: Tensor | None, layer: int, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        own = self._own[layer]
        key = (id(given), id(own.allowed) if own else 0)
        # Layers share mask objects; the entry holds on to `given`, so its id stays its own.
        if key not in self._seen:
            allowed = self._ancestor
            if given is not None:
                mask = _as_bool(given)[:, 0].to(self.twin.device)
                allowed = allowed & pick(mask, self.twin, self.twin)
            if own is not None:
                at = self._positions
                allowed = allowed & own.allowed.to(at.device)[at[:, :, None], at[:, None, :]]
            dtype = arguments["hidden_states"].dtype
            self._seen[key] = (given, (as_given(allowed, like=given, dtype=dtype), allowed))  # type: ignore[assignment]
        return self._seen[key][1]  # type: ignore[return-value]


def pick(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`out[i, q, k] = matrix[i, rows[i, q], columns[i, k]]`; a batch of one is broadcast.

    Args:
        matrix: `[b or 1, t, t]`.
        rows: `[b, r]` int64.
        columns: `[b, c]` int64.

    Returns:
        `[b, r, c]`.
    """
    batch = torch.arange(len(rows), device=rows.device)[:, None, None]
    return matrix.expand(len(rows), -1, -1)[batch, rows[:, :, None], columns[:, None, :]]


def as_given(allowed: Tensor, *, like: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`allowed` `[b, q, k]` as a mask of the kind that the model itself passed to the block.

    sdpa takes bool, eager attention what is added to the scores: 0, or the dtype's minimum. Where
    the model passed none it runs sdpa on a plain causal sequence, so bool.
    """
    if like is None or like.dtype == torch.bool:
        return allowed[:, None]
    added = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    # Some families take their softmax in float32 whatever the dtype: what is infinite there makes
    # the rows of padding, which see nothing, NaN.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return added.masked_fill_(~allowed, lowest)[:, None]


def _as_bool(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def moved_alibi(alibi: Tensor, columns: Tensor) -> Tensor:
    """Bloom's bias, slope × position of each key, for keys that are not in plain order.

    Args:
        alibi: `[b · heads, 1, t]` as the model made it for plain sequences.
        columns: `[b, k]` int64, for each key the column of a token at the same position.

    Returns:
        `[b · heads, 1, k]`.
    """
    batch, keys = columns.shape
    apart = alibi.view(batch, -1, 1, alibi.shape[-1])  # [b, heads, 1, t]
    moved = apart.gather(-1, columns[:, None, None, :].expand(-1, apart.shape[1], -1, -1))
    return moved.reshape(-1, 1, keys)
