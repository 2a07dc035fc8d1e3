"""Where in a decoder block each site lies, as TransformerLens' adapters say it.

TransformerLens names the same places on all its families: `hook_resid_mid`, `hook_attn_out`,
`hook_mlp_out`, `attn.hook_z`. Here each name is followed to the Hugging Face module that it stands
for, which is hooked as it is. What a family's blocks do not have is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actcache.engine.anatomy import Anatomy
from actcache.errors import ModelError

HOOKS: Mapping[str, str] = {
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "heads": "attn.hook_z",
}
"""What TransformerLens calls the sites that lie within a block."""


@dataclass(frozen=True)
class Tap:
    """One place in one block."""

    module: nn.Module
    """The module that is hooked."""

    before: bool
    """Whether it is read what the module is given, or what it gives."""

    scale: float
    """What the block multiplies it by before it is added (Granite); 1 in most families."""

    def attach(self, see: Callable[[Tensor], None]) -> RemovableHandle:
        """Show `see` what flows here, whenever the block runs, until the handle is removed."""

        def show_given(_module: nn.Module, args: Any, kwargs: Any) -> None:
            see(args[0] if args else next(iter(kwargs.values())))

        def show_output(_module: nn.Module, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            see(value if self.scale == 1.0 else value * self.scale)

        if self.before:
            return self.module.register_forward_pre_hook(show_given, with_kwargs=True)
        return self.module.register_forward_hook(show_output)


def find_taps(anatomy: Anatomy, site: str) -> list[Tap]:
    """The place of `site`, one of `HOOKS`, in every block.

    Raises:
        ModelError: this family's blocks have no such place.
    """
    parts = anatomy.block_parts
    path, scale = _path(parts, HOOKS[site])
    owner, _, hook = path.rpartition(".")
    taps: list[Tap] = []
    for layer, block in enumerate(anatomy.blocks):
        try:
            module = block.get_submodule(_module_name(parts, owner))
        except (AttributeError, KeyError) as error:
            raise ModelError(
                f"a {type(block).__name__} (layer {layer}) has no site '{site}' "
                f"({type(parts).__name__}: {error}), expected a block with a {HOOKS[site]}. "
                f"Leave '{site}' out of the sites."
            ) from error
        taps.append(Tap(module, hook == "hook_in", scale))
    return taps


def attention_modules(anatomy: Anatomy) -> list[nn.Module]:
    """The module in every block that computes attention, from its queries to its output.

    Raises:
        ModelError: TransformerLens names none.
    """
    try:
        name = _module_name(anatomy.block_parts, "attn")
        return [block.get_submodule(name) for block in anatomy.blocks]
    except (AttributeError, KeyError) as error:
        raise ModelError(
            f"a {type(anatomy.blocks[0]).__name__} has no attention that TransformerLens names "
            f"({error}), expected one in each block. Leave 'attention' out of the sites."
        ) from error


def _path(parts: Any, hook: str) -> tuple[str, float]:
    """Where TransformerLens' `hook` lies, as `part.….hook_in` or `hook_out`, and its scale.

    Where it names none, an empty path, which is that of no module.
    """
    part, _, name = hook.rpartition(".")
    within = parts.submodules.get(part) if part else parts
    if within is None:
        return "", 1.0
    # Blocks that scale what they add have a hook of their own, in place of an alias.
    scale = float(getattr(parts, "residual_contribution_scale", 1.0))
    own = {
        "hook_attn_out": getattr(parts, "scaled_attn_submodule", None),
        "hook_mlp_out": getattr(parts, "scaled_mlp_submodule", None),
    }.get(name)
    if own is not None:
        return f"{own}.hook_out", scale
    target = within.hook_aliases.get(name)
    if isinstance(target, list):
        target = target[0]
    return ".".join(name for name in (part, target) if name) if target else "", 1.0


def _module_name(parts: Any, path: str) -> str:
    """The dotted path within a Hugging Face block of TransformerLens' `path`, such as `attn.o`."""
    if not path:
        raise KeyError("TransformerLens names none")
    names, at = [], parts
    for step in path.split("."):
        at = at.submodules[step]
        if at.name:  # a part that only groups others has none
            names.append(str(at.name))
    if not names:
        raise KeyError(path)
    return ".".join(names)
