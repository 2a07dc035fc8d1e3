"""How much of a token's attention falls on a marked span, for a few tokens, layers and heads all.

What attention-guided steering chooses its token by (Davarmanesh et al. 2026). The probabilities are
the model's own: where a family runs through Hugging Face's attention interface, its own eager
function is called once more with the queries of those few tokens alone, so soft caps, sinks and
scales are what they are, and no square of all tokens is made. The two families that know no other
than eager attention (GPT-Neo, Bloom) make that square themselves; it is read and let go of.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from actcache.engine.anatomy import Anatomy
from actcache.engine.masks import as_given
from actcache.engine.sites import attention_modules
from actcache.errors import ModelError

_Keep = Callable[[int, Tensor], None]


@contextmanager
def watched(
    anatomy: Anatomy,
    allowed: Sequence[Tensor],
    read: Int64[Tensor, "b read"],
    span: Bool[Tensor, "b t"],
) -> Iterator[dict[int, Tensor]]:
    """Collect, while the blocks run, what the attention of some tokens puts on the marked ones.

    Args:
        anatomy: the model's parts.
        allowed: for each layer `[b, t, t]`, what token q may see; looked at when the layer runs.
        read: columns whose queries are asked.
        span: columns that are marked.

    Yields:
        Layer to its masses `[b, read, head]`, float32; empty until the blocks have run.

    Raises:
        ModelError: this family does not show its attention.
    """
    modules = attention_modules(anatomy)
    layers = {id(module): layer for layer, module in enumerate(modules)}
    found: dict[int, Tensor] = {}

    def keep(layer: int, weights: Float[Tensor, "b head read t"]) -> None:
        if layer in found:
            raise _hidden(anatomy, "runs attention twice in a block")
        inside = span.to(weights.device)[:, None, None]
        mass = torch.where(inside, weights, 0).sum(-1, dtype=torch.float32)  # [b, head, read]
        found[layer] = mass.transpose(1, 2).to(read.device)

    def show(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any
    ) -> None:
        layer, eager = layers.get(id(module)), _eager(module)
        if layer is None or eager is None:  # another model's, that runs at the same time
            return
        at = read.to(query.device)
        batch = torch.arange(len(at), device=at.device)[:, None]
        few = _rows(query, at)
        mask = as_given(allowed[layer].to(at.device)[batch, at], like=few, dtype=few.dtype)
        _, weights = eager(module, few, key, value, mask, *rest, **settings)
        keep(layer, weights)

    with ExitStack() as stack:
        seen: set[tuple[int, str]] = set()
        for layer, module in enumerate(modules):
            interface = getattr(_home(module), "ALL_ATTENTION_FUNCTIONS", None)
            if interface is None or _eager(module) is None:
                stack.callback(
                    module.register_forward_hook(_reader(anatomy, layer, read, keep)).remove
                )
                continue
            name = str(module.config._attn_implementation)  # type: ignore[union-attr]  # the family's config
            if (id(interface), name) not in seen:
                seen.add((id(interface), name))
                stack.enter_context(_shown(interface, name, show))
        yield found


def in_order(anatomy: Anatomy, found: dict[int, Tensor]) -> Float32[Tensor, "b layer read head"]:
    """What `watched` collected, layer by layer.

    Raises:
        ModelError: a layer is missing.
    """
    if len(found) < len(anatomy.blocks):
        raise _hidden(anatomy, f"showed attention in {len(found)} of {len(anatomy.blocks)} blocks")
    return torch.stack([found[layer] for layer in range(len(found))], 1)


def masses_alone(
    hf: Any, anatomy: Anatomy, sequence: Sequence[int], *, back: int, span: tuple[int, int]
) -> Float32[Tensor, "layer head"]:
    """The same of one token, the slow way: one sequence, unpadded, eager attention as it is.

    Args:
        hf: the model; it runs eager while this does.
        anatomy: its parts.
        sequence: token ids.
        back: which token is asked, counted from the end, 1 for the last.
        span: the marked tokens, `[start, end)`.

    Raises:
        ModelError: this family does not show its attention.
    """
    device = hf.device
    ids = torch.tensor([list(sequence)], device=device)
    read = torch.tensor([[len(sequence) - back]], device=device)
    found: dict[int, Tensor] = {}

    def keep(layer: int, weights: Float[Tensor, "1 head 1 t"]) -> None:
        marked = weights[0, :, 0, slice(*span)]
        found[layer] = marked.sum(-1, dtype=torch.float32)[None, None].to(device)

    kept = hf.config._attn_implementation
    with ExitStack() as stack:
        for layer, module in enumerate(attention_modules(anatomy)):
            stack.callback(module.register_forward_hook(_reader(anatomy, layer, read, keep)).remove)
        if kept != "eager":
            hf.set_attn_implementation("eager")
            stack.callback(hf.set_attn_implementation, kept)
        with torch.inference_mode():
            anatomy.decoder(input_ids=ids, use_cache=False)
    return in_order(anatomy, found)[0, :, 0]


@contextmanager
def _shown(interface: Any, name: str, show: Callable[..., None]) -> Iterator[None]:
    """Let `show` see every call of one of the attention functions of Hugging Face's interface."""
    before = interface.get(name)  # None of eager: each family brings its own

    def call(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *rest: Any,
        **settings: Any,
    ) -> Any:
        show(module, query, key, value, *rest, **settings)
        attend = before or _eager(module)
        assert attend is not None
        return attend(module, query, key, value, attention_mask, *rest, **settings)

    interface[name] = call
    try:
        yield
    finally:
        del interface[name]
        if interface.get(name) is not before:  # it was a family's own, and not the library's
            interface[name] = before


def _reader(
    anatomy: Anatomy, layer: int, read: Int64[Tensor, "b read"], keep: _Keep
) -> Callable[[nn.Module, Any, Any], None]:
    """A hook for an attention module that gives its weights beside its output."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        parts = output[1:] if isinstance(output, tuple) else ()
        weights = next((p for p in parts if isinstance(p, Tensor) and p.ndim == 4), None)
        if weights is None:
            raise _hidden(anatomy, "gives no attention weights")
        keep(layer, _rows(weights, read.to(weights.device)))

    return hook


def _rows(
    values: Float[Tensor, "b head t _"], at: Int64[Tensor, "b read"]
) -> Float[Tensor, "b head read _"]:
    """Some tokens' part of what there is for all of them."""
    wanted = at[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, wanted)


def _home(module: nn.Module) -> Any:
    """The Python module that a family's code stands in."""
    return sys.modules[type(module).__module__]


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    return getattr(_home(module), "eager_attention_forward", None)


def _hidden(anatomy: Anatomy, what: str) -> ModelError:
    return ModelError(
        f"a {type(anatomy.blocks[0]).__name__} {what}, expected one softmax in each block that can "
        "be seen. Leave 'attention' out of the sites."
    )
