"""Conditions under which a steering acts: per token at its site, or once per prompt."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, no_type_check

import numpy as np
from jaxtyping import Float32

from actcache.steering.checks import (
    check_array,
    check_bool,
    check_choice,
    check_keys,
    check_layers,
    check_number,
    check_shape,
    check_vectors,
    layer_names,
    refuse,
    set_fields,
)

PromptPart = Literal["mean", "last"]
PROMPT_PARTS: tuple[PromptPart, ...] = get_args(PromptPart)


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class TokenGate:
    """Steer a token only where its projection on b1, at the site, is above a threshold (AAS).

    b1 is the plane's first vector; of a single vector it is the vector divided by its norm.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", check_number("gate.threshold", self.threshold))


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True, eq=False)
class PromptGate:
    """Steer a row only if its unsteered prompt is like a condition (CAST, arXiv 2409.05907).

    `cos(h, tanh(ĉ (ĉ·h)))` of the block input h of each layer; any layer decides.
    """

    layers: tuple[int, ...]
    vectors: Float32[np.ndarray, "k d"]
    """The condition c of each layer, of any norm."""

    threshold: float
    """Of a cosine, from -1 to 1."""

    above: bool = True
    """Whether the condition is met above the threshold, or below it."""

    over: PromptPart = "mean"
    """Mean over the prompt's real tokens, or its last token."""

    def __post_init__(self) -> None:
        layers = check_layers("gate.layers", self.layers)
        vectors = check_array("gate.vectors", self.vectors)
        check_shape("gate.vectors", vectors, (len(layers), None), "one vector a layer of the gate")
        check_vectors("gate.vectors", vectors, layer_names(layers), unit=False)
        threshold = check_number("gate.threshold", self.threshold)
        if abs(threshold) > 1:
            refuse("gate.threshold", threshold, "a cosine, from -1 to 1", "Pass one.")
        check_choice("gate.over", self.over, PROMPT_PARTS)
        above = check_bool("gate.above", self.above)
        set_fields(self, layers=layers, vectors=vectors, threshold=threshold, above=above)


def gate_fields(gate: TokenGate | PromptGate | None) -> dict[str, Any] | None:
    """Every field of a gate but its arrays, as JSON has it."""
    if gate is None:
        return None
    if isinstance(gate, TokenGate):
        return {"kind": "token", "threshold": gate.threshold}
    return {
        "kind": "prompt",
        "layers": list(gate.layers),
        "threshold": gate.threshold,
        "above": gate.above,
        "over": gate.over,
    }


def read_gate(document: Any, vectors: Any) -> TokenGate | PromptGate | None:
    """Make a gate of what `gate_fields` gives, and its vectors."""
    if document is None:
        return None
    kind = document.get("kind") if isinstance(document, dict) else document
    check_choice("gate.kind", kind, ("token", "prompt"))
    if kind == "token":
        values = check_keys("gate", document, ("kind", "threshold"))
        return TokenGate(threshold=values["threshold"])
    names = ("kind", "layers", "threshold", "above", "over")
    values = {**check_keys("gate", document, names)}
    del values["kind"]
    return PromptGate(**values, vectors=vectors)
