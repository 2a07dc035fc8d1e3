"""Where in a decoder block each site lies, according to TransformerLens' adapters.

TransformerLens gives the same places the same names in all its families: `hook_resid_mid`,
`hook_attn_out`, `hook_mlp_out`, `attn.hook_z`, `ln1.hook_out`. Here each name is resolved to the
Hugging Face module that it refers to, and that module is hooked unchanged. A site that a family's
blocks do not have is refused with its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actcache.conventions import NORM_SITES
from actcache.engine.anatomy import Anatomy
from actcache.errors import ModelError

HOOKS: Mapping[str, str] = {
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "heads": "attn.hook_z",
    **{norm: f"{norm}.hook_out" for norm in NORM_SITES},
}
"""TransformerLens' hook names of the sites that lie within a block."""


@dataclass(frozen=True)
class Tap:
    """One place in one block."""

    module: nn.Module
    """The module that is hooked."""

    before: bool
    """Whether the module's input is read, or its output."""

    scale: float = 1.0
    """The block's factor on it before it is added (Granite); 1 in most families."""

    def attach(self, see: Callable[[Tensor], None]) -> RemovableHandle:
        """Show `see` the value at this place whenever the block runs."""

        def show_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
            see(args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()))))

        def show_output(_module: nn.Module, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            see(value if self.scale == 1.0 else value * self.scale)

        if self.before:
            return self.module.register_forward_pre_hook(show_input, with_kwargs=True)
        return self.module.register_forward_hook(show_output)

    def replace(self, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Put `change(value)` in the value's place whenever the block runs.

        The value is the module's own, before the factor `scale`.
        """

        def replace_input(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            return args, {**kwargs, name: change(kwargs[name])}

        def replace_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        if self.before:
            return self.module.register_forward_pre_hook(replace_input, with_kwargs=True)
        return self.module.register_forward_hook(replace_output)


def find_taps(anatomy: Anatomy, site: str) -> list[Tap]:
    """Find the place of a site in every block; `embed` is that of the first block alone.

    `resid_pre`, the input of every block, is a place to steer; a store has it as `embed` and
    `resid_post`. Values have `[b, t, width]`, or `[b · t, width]` at the norms and MLP of OPT.
    """
    if site == "resid_post":
        return [Tap(block, before=False) for block in anatomy.blocks]
    if site in ("embed", "resid_pre"):
        blocks = anatomy.blocks[:1] if site == "embed" else anatomy.blocks
        return [Tap(block, before=True) for block in blocks]
    components = anatomy.block_components
    path, scale = _resolve(components, HOOKS[site])
    owner, _, end = path.rpartition(".")
    taps: list[Tap] = []
    for layer, block in enumerate(anatomy.blocks):
        try:
            module = block.get_submodule(_module_path(components, owner))
        except (AttributeError, KeyError) as error:
            raise ModelError(
                f"a {type(block).__name__} (layer {layer}) has no site '{site}' "
                f"({type(components).__name__}: {error}), expected a block with a {HOOKS[site]}. "
                f"Leave '{site}' out of the sites."
            ) from error
        taps.append(Tap(module, end == "hook_in", scale))
    return taps


def attention_modules(anatomy: Anatomy) -> list[nn.Module]:
    """Find in every block the module that computes attention, from queries to output."""
    try:
        name = _module_path(anatomy.block_components, "attn")
        return [block.get_submodule(name) for block in anatomy.blocks]
    except (AttributeError, KeyError) as error:
        raise ModelError(
            f"TransformerLens names no attention in a {type(anatomy.blocks[0]).__name__} "
            f"({error}), expected one in each block. Leave 'attention' out of the sites."
        ) from error


def _resolve(components: Any, hook: str) -> tuple[str, float]:
    """Resolve a hook name to `part.….hook_in` or `hook_out`, and its scale; empty if unknown."""
    part, _, name = hook.rpartition(".")
    component = components.submodules.get(part) if part else components
    if component is None:
        return "", 1.0
    # Blocks that scale what they add have a hook of their own, in place of an alias.
    scaled = {
        "hook_attn_out": getattr(components, "scaled_attn_submodule", None),
        "hook_mlp_out": getattr(components, "scaled_mlp_submodule", None),
    }.get(name)
    if scaled is not None:
        scale = float(getattr(components, "residual_contribution_scale", 1.0))
        return f"{scaled}.hook_out", scale
    # Every part has hooks of its own on its input and its output; other names are aliases.
    target = name if name in ("hook_in", "hook_out") else component.hook_aliases.get(name)
    if isinstance(target, list):
        target = target[0]
    return ".".join(step for step in (part, target) if step) if target else "", 1.0


def _module_path(components: Any, path: str) -> str:
    """The dotted path within a Hugging Face block of TransformerLens' `path`, such as `attn.o`."""
    if not path:
        raise KeyError("TransformerLens names none")
    names, component = [], components
    for step in path.split("."):
        component = component.submodules[step]
        if component.name:  # a part that only groups others has none
            names.append(str(component.name))
    if not names:
        raise KeyError(path)
    return ".".join(names)
