"""How much of a token's attention falls on a marked span, for every layer and head.

Attention-guided steering chooses its token by this mass (Davarmanesh et al. 2026). The
probabilities are the model's own. Where a family runs through Hugging Face's attention interface,
its own eager function is called once more with the queries of the few tokens alone: soft caps,
sinks and scales are the family's, and no matrix of all tokens by all tokens is made. The two
families that have eager attention only (GPT-Neo, Bloom) make that matrix themselves, one layer at a
time; it is read and dropped.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from actcache.engine.anatomy import Anatomy
from actcache.engine.masks import to_block_mask
from actcache.engine.sites import attention_modules
from actcache.errors import ModelError

_Record = Callable[[int, Tensor], None]
"""Takes a layer and its attention weights `[b, head, read, t]`."""


@contextmanager
def record_masses(
    anatomy: Anatomy,
    allowed: Sequence[Tensor],
    read: Int64[Tensor, "b read"],
    span: Bool[Tensor, "*kind b t"],
) -> Iterator[dict[int, Tensor]]:
    """Record, while the blocks run, the attention of some tokens on the marked ones.

    `read` are the columns of the tokens whose queries are asked, `span` marks columns, perhaps
    several times (`[kind, b, t]`, the masses of one kind follow those of the other as heads), and
    `allowed` holds what token q may see in each layer, `[b, t, t]`; it is read when the layer runs.

    Yields:
        Layer to its masses `[b, read, head]`, float32; empty until the blocks have run.
    """
    modules = attention_modules(anatomy)
    # [b, 1, t, kind], to be multiplied with weights
    kinds = span.reshape(-1, *span.shape[-2:]).permute(1, 2, 0).float()[:, None]
    layers = {id(module): layer for layer, module in enumerate(modules)}
    masses: dict[int, Tensor] = {}

    def record(layer: int, weights: Float[Tensor, "b head read t"]) -> None:
        if layer in masses:
            raise _not_visible(anatomy, "runs attention twice in a block")
        marked = kinds.to(weights.device)
        mass = weights.float() @ marked  # [b, head, read, kind]
        masses[layer] = mass.permute(0, 2, 3, 1).flatten(2).to(read.device)

    def attend_again(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *rest: Any,
        **settings: Any,
    ) -> None:
        layer, eager = layers.get(id(module)), _eager_attention(module)
        if layer is None or eager is None:  # of another model that runs at the same time
            return
        columns = read.to(query.device)
        sample = torch.arange(len(columns), device=columns.device)[:, None]
        few = _take_queries(query, columns)  # [b, head, read, head_dim]
        visible = allowed[layer].to(columns.device)[sample, columns]  # [b, read, t]
        mask = to_block_mask(visible, like=few, dtype=few.dtype)
        _, weights = eager(module, few, key, value, mask, *rest, **settings)
        record(layer, weights)

    with ExitStack() as stack:
        observed: set[tuple[int, str]] = set()
        for layer, module in enumerate(modules):
            interface = attention_interface(module)
            if interface is None or _eager_attention(module) is None:
                hook = _weights_hook(anatomy, layer, read, record)
                stack.callback(module.register_forward_hook(hook).remove)
                continue
            name = str(module.config._attn_implementation)  # type: ignore[union-attr]  # the family's config
            if (id(interface), name) not in observed:
                observed.add((id(interface), name))
                stack.enter_context(_observed(interface, name, attend_again))
        yield masses


def stack_layers(
    anatomy: Anatomy, masses: dict[int, Tensor]
) -> Float32[Tensor, "b layer read head"]:
    """Stack what `record_masses` recorded, of all layers."""
    n_layers = len(anatomy.blocks)
    if len(masses) < n_layers:
        raise _not_visible(anatomy, f"shows attention in {len(masses)} of {n_layers} blocks")
    return torch.stack([masses[layer] for layer in range(n_layers)], 1)


def reference_masses(
    hf: Any,
    anatomy: Anatomy,
    sequence: Sequence[int],
    *,
    read: Sequence[int],
    spans: Sequence[tuple[int, int]],
) -> Float32[Tensor, "span layer read head"]:
    """Compute some tokens' masses the slow way: their sequence alone, unpadded, eager attention.

    `read` are the places of the tokens in the sequence, `spans` the marked tokens, `[start, end)`
    each. The model is switched to eager attention meanwhile.
    """
    device = hf.device
    ids = torch.tensor([list(sequence)], device=device)
    columns = torch.tensor([list(read)], device=device)
    masses: dict[int, Tensor] = {}

    def record(layer: int, weights: Float[Tensor, "1 head read t"]) -> None:
        marked = [weights[0, :, :, slice(*span)].sum(-1, dtype=torch.float32) for span in spans]
        masses[layer] = torch.stack(marked).mT.to(device)  # [span, read, head]

    configured = hf.config._attn_implementation
    with ExitStack() as stack:
        for layer, module in enumerate(attention_modules(anatomy)):
            hook = _weights_hook(anatomy, layer, columns, record)
            stack.callback(module.register_forward_hook(hook).remove)
        if configured != "eager":
            hf.set_attn_implementation("eager")
            stack.callback(hf.set_attn_implementation, configured)
        with torch.inference_mode():
            anatomy.decoder(input_ids=ids, use_cache=False)
    return stack_layers(anatomy, masses)


@contextmanager
def _observed(interface: Any, name: str, observer: Callable[..., None]) -> Iterator[None]:
    """Call `observer` before every call of one attention function of Hugging Face's interface."""
    before = interface.get(name)  # None for eager: each family brings its own

    def call(module: nn.Module, *inputs: Any, **settings: Any) -> Any:
        observer(module, *inputs, **settings)
        attend = before or _eager_attention(module)
        assert attend is not None
        return attend(module, *inputs, **settings)

    with replaced_attention(interface, name, call):
        yield


@contextmanager
def replaced_attention(interface: Any, name: str, attend: Callable[..., Any]) -> Iterator[None]:
    """Put `attend` in the place of one attention function of Hugging Face's interface."""
    before = interface.get(name)
    interface[name] = attend
    try:
        yield
    finally:
        # An interface is a family's own mapping over the library's. Deleting uncovers the library's
        # function; where the family had one of its own, that is put back.
        del interface[name]
        if interface.get(name) is not before:
            interface[name] = before


def _weights_hook(
    anatomy: Anatomy, layer: int, read: Int64[Tensor, "b read"], record: _Record
) -> Callable[[nn.Module, Any, Any], None]:
    """A hook for an attention module that returns its weights beside its output."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        others = output[1:] if isinstance(output, tuple) else ()
        weights = next((x for x in others if isinstance(x, Tensor) and x.ndim == 4), None)
        if weights is None:
            raise _not_visible(anatomy, "returns no attention weights")
        record(layer, _take_queries(weights, read.to(weights.device)))

    return hook


def _take_queries(
    values: Float[Tensor, "b head t _"], columns: Int64[Tensor, "b read"]
) -> Float[Tensor, "b head read _"]:
    index = columns[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index)


def _python_module(module: nn.Module) -> Any:
    """The Python module that holds a family's code."""
    return sys.modules[type(module).__module__]


def attention_interface(module: nn.Module) -> Any:
    """Return the attention functions of a family's code by name; None where it has no choice."""
    return getattr(_python_module(module), "ALL_ATTENTION_FUNCTIONS", None)


def _eager_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]] | None:
    return getattr(_python_module(module), "eager_attention_forward", None)


def _not_visible(anatomy: Anatomy, what: str) -> ModelError:
    return ModelError(
        f"a {type(anatomy.blocks[0]).__name__} {what}, expected one visible softmax in each block. "
        "Leave 'attention' out of the sites."
    )
