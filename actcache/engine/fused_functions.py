"""What Hugging Face writes out step by step, by the one function that torch has for it.

Some families' code takes several passes over memory where torch has a function for the whole: the
tanh form of GELU (GPT-2, GPT-Neo), and GPT-Neo's attention. On a small model these passes are a
third of a sweep. The functions are the same but for rounding. A sweep uses them on the CPU, where
they were measured; a build stores what the family's own code gives.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers.activations import NewGELUActivation
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from actcache.engine.anatomy import Anatomy


@contextmanager
def fused_functions(anatomy: Anatomy) -> Iterator[None]:
    """Let the blocks run torch's functions in place of what is written out."""
    with ExitStack() as stack:
        for module in (module for block in anatomy.blocks for module in block.modules()):
            if type(module) is NewGELUActivation:
                stack.enter_context(replaced_method(module, "forward", partial(_gelu, module)))
            elif is_gpt_neo(module):
                stack.enter_context(replaced_method(module, "_attn", partial(_attend, module)))
        yield


def is_gpt_neo(module: nn.Module) -> bool:
    """Tell whether it attends by GPT-Neo's `_attn`: scores in float32, without a scale."""
    return type(module) is GPTNeoSelfAttention and not module.training


@contextmanager
def replaced_method(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put `function` in the place of a method, of this module alone."""
    before = module.__dict__.get(name)
    module.__dict__[name] = function
    try:
        yield
    finally:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


def _gelu(module: NewGELUActivation, values: Tensor) -> Tensor:
    if not values.is_cpu:
        return type(module).forward(module, values)
    return gelu(values, approximate="tanh")


def _attend(
    module: Any,
    query: Float[Tensor, "b head q e"],
    key: Float[Tensor, "b head k e"],
    value: Float[Tensor, "b head k e"],
    attention_mask: Float[Tensor, "b 1 q k"] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What `GPTNeoSelfAttention._attn` computes, without the weights; it ignores dropout."""
    if not value.is_cpu:
        output, weights = type(module)._attn(module, query, key, value, attention_mask)
        return output, weights
    wide = torch.promote_types(value.dtype, torch.float32)
    n_queries, n_keys = query.shape[2], key.shape[2]
    allowed = module.bias[:, :, n_keys - n_queries : n_keys, :n_keys]
    if not allowed.all():  # the engine opens it where the mask that is passed says as much
        lowest = torch.finfo(torch.float32).min
        buffered = torch.zeros_like(allowed, dtype=wide).masked_fill_(~allowed, lowest)
        attention_mask = buffered if attention_mask is None else buffered + attention_mask
    output = scaled_dot_product_attention(
        query.float().to(wide),
        key.float().to(wide),
        value.to(wide),
        attn_mask=None if attention_mask is None else attention_mask.to(wide),
        scale=1.0,
    )
    return output.to(value.dtype), None
