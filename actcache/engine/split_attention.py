"""Attention of joined cells in two parts: over the prefix, and within each cell.

Joined tokens see the unchanged prefix of their sample and their own cell, and no other cell. One
softmax over prefix and all cells needs a mask of joined tokens × (prefix + joined tokens), most of
which is False, and computes every score of one cell with another for nothing. Here the softmax is
taken over the prefix and over the own cell, and the two are merged by the logarithms of their sums
(Rabe & Staats 2021, "Self-attention does not need O(n²) memory"):

    softmax over both = (1 − w) · over the prefix + w · over the own cell,
    w = sigmoid(log-sum-exp of the own cell − log-sum-exp of the prefix).

All cells have the same few masks, a row for each node. This stands in for the two attention
functions whose meaning is known, where a block calls one on keys and values as its cache returned
them: Hugging Face's `sdpa_attention_forward`, and GPT-Neo's own `_attn`. Whatever else a family
does (soft caps, sinks, biases, attention of its own) is left to the dense mask.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from actcache.engine.anatomy import Anatomy
from actcache.engine.attention_mass import attention_interface, replaced_attention
from actcache.engine.fused_functions import is_gpt_neo, replaced_method
from actcache.engine.sites import attention_modules
from actcache.errors import ModelError


class CannotSplitError(Exception):
    """A block attends in a way that is not known to split; it is caught in the engine."""


class PrefixCache(Cache):
    """A read-only cache: the trees' keys and values, followed by those of the joined tokens."""

    def __init__(self, trees: Cache, *, apart: bool):
        super().__init__(layers=trees.layers)

        self.apart = apart
        """Whether `update` returns the joined tokens' keys and values alone, without the trees'."""

        self.joined: tuple[Tensor, Tensor] | None = None
        """Keys and values `[b, kv_head, joined, head_dim]` of the last update."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values to attend to; nothing is kept for the next layer or sweep."""
        self.joined = key_states, value_states
        if self.apart:
            return self.joined
        layer: Any = self.layers[layer_idx]  # of a cache made without a config: every token
        return (
            torch.cat([layer.keys, key_states], dim=-2),
            torch.cat([layer.values, value_states], dim=-2),
        )


@dataclass(frozen=True)
class NodeMasks:
    """What the nodes of a cell may see; it is the same in every cell."""

    prefix: Bool[Tensor, "b node prefix"]
    """Of the first `prefix` columns of the trees; no cell sees a later one."""

    within: Bool[Tensor, "b node node"]
    """Of the nodes of their own cell; at least themselves."""


def can_split(anatomy: Anatomy) -> bool:
    """Tell whether all blocks attend on the CPU through functions that are known to split.

    On other devices the functions of torch that return log-sum-exps differ from one to the next.
    """
    try:
        modules = attention_modules(anatomy)
    except ModelError:  # TransformerLens names no attention
        return False
    return all(
        (_calls_sdpa(module) or is_gpt_neo(module))
        and all(parameter.is_cpu for parameter in module.parameters())
        for module in modules
    )


def _calls_sdpa(module: nn.Module) -> bool:
    interface = attention_interface(module)
    config: Any = getattr(module, "config", None)
    return (
        interface is not None
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and interface.get("sdpa") is sdpa_attention_forward
    )


@contextmanager
def split_attention(
    module: nn.Module, cache: PrefixCache, layer: int, masks: NodeMasks
) -> Iterator[None]:
    """Let joined tokens attend in two parts while the block of `module` runs.

    Args:
        module: the attention module of block `layer`.
        cache: what the block is given; `apart` is set.
        layer: the block's number.
        masks: what each node may see.

    Raises:
        CannotSplitError: the block did not attend once, through the interface, to the keys and
            values that the cache returned, with nothing but a mask added to the scores.
    """
    n_calls = 0

    def attend(query: Tensor, key: Tensor, value: Tensor, *added: Any, **settings: Any) -> Tensor:
        """Attend in two parts; `added` to the scores may be nothing."""
        nonlocal n_calls
        n_calls += 1
        unchanged = cache.joined is not None and cache.joined[0] is key and cache.joined[1] is value
        if not unchanged or any(x is not None for x in added) or key.shape != value.shape:
            raise CannotSplitError
        trees: Any = cache.layers[layer]
        return attend_in_two_parts(query, key, value, trees.keys, trees.values, masks, **settings)

    replaced = _replaced_gpt_neo if is_gpt_neo(module) else _replaced_sdpa
    with replaced(module, attend):
        yield
    if n_calls != 1:
        raise CannotSplitError


def _replaced_sdpa(
    module: nn.Module, attend: Callable[..., Tensor]
) -> AbstractContextManager[None]:
    def call(
        caller: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *rest: Any,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        if caller is not module:  # of another model that runs at the same time
            return sdpa_attention_forward(
                caller, query, key, value, attention_mask, *rest, **settings
            )
        if rest or settings.get("dropout"):
            raise CannotSplitError
        added = (attention_mask, settings.get("position_bias"), settings.get("softcap"))
        return attend(query, key, value, *added, scale=settings.get("scaling")), None

    return replaced_attention(attention_interface(module), "sdpa", call)


def _replaced_gpt_neo(
    module: nn.Module, attend: Callable[..., Tensor]
) -> AbstractContextManager[None]:
    def call(
        query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None
    ) -> tuple[Tensor, None]:
        output = attend(query, key, value, attention_mask, scale=1.0, scores=torch.float32)
        return output.transpose(1, 2), None

    return replaced_method(module, "_attn", call)


def attend_in_two_parts(
    query: Float[Tensor, "b head joined e"],
    key: Float[Tensor, "b kv_head joined e"],
    value: Float[Tensor, "b kv_head joined e"],
    tree_keys: Float[Tensor, "b kv_head t e"],
    tree_values: Float[Tensor, "b kv_head t e"],
    masks: NodeMasks,
    *,
    scale: float | None,
    scores: torch.dtype | None = None,
) -> Float[Tensor, "b joined head e"]:
    """Attend to the prefix and to the own cell, and merge the two.

    The `joined` axis holds cell by cell their nodes, in the order of the masks' rows. By default
    `scale`, the factor on the scores, is 1/√e, and queries and keys are multiplied as they are;
    `scores` is the dtype that they are brought to before.
    """
    dtype, repeats = query.dtype, query.shape[1] // key.shape[1]
    if scores is not None:
        wide = torch.promote_types(value.dtype, scores)
        query, key, tree_keys = (x.to(scores).to(wide) for x in (query, key, tree_keys))
        value, tree_values = value.to(wide), tree_values.to(wide)
    if repeats > 1:
        key, value, tree_keys, tree_values = (
            x.repeat_interleave(repeats, dim=1) for x in (key, value, tree_keys, tree_values)
        )
    scale = query.shape[3] ** -0.5 if scale is None else scale
    end = masks.prefix.shape[2]
    over_prefix, log_sum_prefix = _attend_to_prefix(
        query, tree_keys[:, :, :end], tree_values[:, :, :end], masks.prefix, scale
    )
    over_cell, log_sum_cell = _attend_to_cell(query, key, value, masks.within, scale)
    weight = torch.sigmoid(log_sum_cell - log_sum_prefix)[..., None]
    wide = weight.dtype  # at least float32
    return torch.lerp(over_prefix.to(wide), over_cell.to(wide), weight).to(dtype)


def _attend_to_cell(
    query: Float[Tensor, "b head joined e"],
    key: Float[Tensor, "b head joined e"],
    value: Float[Tensor, "b head joined e"],
    allowed: Bool[Tensor, "b node node"],
    scale: float,
) -> tuple[Float[Tensor, "b joined head e"], Float[Tensor, "b joined head"]]:
    """Attention within each cell and its log-sum-exp."""
    n_nodes = allowed.shape[1]
    if n_nodes == 1:  # a token that sees itself alone
        wide = torch.promote_types(query.dtype, torch.float32)
        log_sum = torch.linalg.vecdot(query.to(wide), key.to(wide)) * scale
        return value.transpose(1, 2), log_sum.transpose(1, 2)
    b, _, n_joined, _ = query.shape
    # Cells are folded into the batch, so that each sees itself alone.
    bias = _additive(allowed, query.dtype)[:, None].expand(-1, n_joined // n_nodes, -1, -1)
    query, key, value = (_by_cell(x, n_nodes) for x in (query, key, value))
    output, log_sum = _attend(query, key, value, bias.flatten(0, 1)[:, None], scale)
    return output.reshape(b, n_joined, *output.shape[2:]), log_sum.reshape(b, n_joined, -1)


def _attend_to_prefix(
    query: Float[Tensor, "b head joined e"],
    keys: Float[Tensor, "b head prefix e"],
    values: Float[Tensor, "b head prefix e"],
    allowed: Bool[Tensor, "b node prefix"],
    scale: float,
) -> tuple[Float[Tensor, "b joined head e"], Float[Tensor, "b joined head"]]:
    """Attention over the prefix and its log-sum-exp, which is -inf where a node sees none."""
    # Only a sliding window lets nodes see different parts of the prefix; then node by node.
    alike = bool((allowed == allowed[:, :1]).all())
    groups = 1 if alike else allowed.shape[1]
    bias = _additive(allowed, query.dtype)[:, :, None]  # [b, node, 1, prefix]
    parts = [
        _attend(query[:, :, i::groups], keys, values, bias[:, i : i + 1], scale)
        for i in range(groups)
    ]
    # [b, joined / groups, groups, head, …]: node i of every cell is at i of the third axis.
    output = torch.stack([output for output, _ in parts], 2).flatten(1, 2)
    log_sum = torch.stack([log_sum for _, log_sum in parts], 2).flatten(1, 2)
    nothing = ~allowed.any(-1).repeat(1, query.shape[2] // allowed.shape[1])  # [b, joined]
    return output, log_sum.masked_fill(nothing[:, :, None], -torch.inf)


def _attend(
    query: Float[Tensor, "b head q e"],
    key: Float[Tensor, "b head k e"],
    value: Float[Tensor, "b head k e"],
    bias: Float[Tensor, "b 1 _ k"],
    scale: float,
) -> tuple[Float[Tensor, "b q head e"], Float[Tensor, "b q head"]]:
    """Attention and its log-sum-exp, float32 or wider.

    What torch's own sdpa runs on the CPU; sdpa itself does not return the log-sum-exp.
    """
    output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias.expand(-1, -1, query.shape[2], -1), scale=scale
    )
    return output.transpose(1, 2), log_sum.transpose(1, 2)


def _by_cell(
    values: Float[Tensor, "b head joined e"], n_nodes: int
) -> Float[Tensor, "b_cell head node e"]:
    # Projections make [b, joined, head, e], of which this is a view.
    by_token = values.transpose(1, 2)
    return by_token.reshape(-1, n_nodes, *by_token.shape[2:]).transpose(1, 2)


def _additive(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
