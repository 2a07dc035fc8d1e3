"""What is done to a running model's activations, as data.

A `Steering` is made, saved and loaded with NumPy alone; `actcache.steer` and `actcache.generate`
apply it. `a + b` is a `SteeringSum`, applied in order.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args, no_type_check

import numpy as np
from jaxtyping import Float32

from actcache.settings import check_word
from actcache.steering.checks import (
    check_array,
    check_bool,
    check_layers,
    check_number,
    check_planes,
    check_shape,
    check_vectors,
    check_window,
    layer_names,
    refuse,
    set_fields,
)
from actcache.steering.gates import PromptGate, TokenGate, gate_fields
from actcache.steering.source import SteeringSource

__all__ = [
    "OPERATORS",
    "PLANE_OPERATORS",
    "STEERED_TOKENS",
    "STEERING_SITES",
    "UNIT_OPERATORS",
    "AnySteering",
    "Operator",
    "PromptGate",
    "SteeredTokens",
    "Steering",
    "SteeringSite",
    "SteeringSum",
    "TokenGate",
    "canonical_json",
]

Operator = Literal["add", "ablate", "set", "turn_to", "rotate"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

PLANE_OPERATORS: tuple[Operator, ...] = ("turn_to", "rotate")
"""Operators whose vectors are planes `[k, 2, d]` and whose strength is an angle in degrees."""

UNIT_OPERATORS: tuple[Operator, ...] = ("ablate", "set")
"""Operators whose vectors have norm 1: their strength is a share of a projection, or a projection.
"""

SteeringSite = Literal[
    "resid_post", "resid_pre", "attn_out", "mlp_out", "ln1", "ln2", "ln1_post", "ln2_post"
]
STEERING_SITES: tuple[SteeringSite, ...] = get_args(SteeringSite)

SteeredTokens = Literal["prompt", "completion", "all", "front"]
STEERED_TOKENS: tuple[SteeredTokens, ...] = get_args(SteeredTokens)


@no_type_check  # factors and strengths too
class AnySteering(ABC):
    """A `Steering` or a `SteeringSum`; equal if both do the same, wherever they come from."""

    __array_ufunc__ = None  # so that `numpy.float64(0.5) * steering` asks us

    @property
    @abstractmethod
    def parts(self) -> "tuple[Steering, ...]":
        """Single steerings, in the order in which they are applied."""

    @abstractmethod
    def at(self, strength: float) -> "AnySteering":
        """Set the strength of every part."""

    @abstractmethod
    def __mul__(self, factor: float) -> "AnySteering":
        """Multiply the strength of every part."""

    def __rmul__(self, factor: float) -> "AnySteering":
        return self * factor

    def __add__(self, other: "AnySteering") -> "SteeringSum":
        if not isinstance(other, AnySteering):
            return NotImplemented
        return SteeringSum((*self.parts, *other.parts))

    @property
    def d_model(self) -> int:
        """Width of the vectors."""
        return int(self.parts[0].vectors.shape[-1])

    @property
    def spec(self) -> list[dict[str, Any]]:
        """What is done, as JSON has it: each part's fields without arrays and source."""
        return [part.fields for part in self.parts]

    @property
    def tensors(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """The arrays: `0.vectors`, `0.gate.vectors`, …, numbered by part."""
        arrays = {}
        for number, part in enumerate(self.parts):
            arrays[f"{number}.vectors"] = part.vectors
            if isinstance(part.gate, PromptGate):
                arrays[f"{number}.gate.vectors"] = part.gate.vectors
        return arrays

    @cached_property
    def digest(self) -> str:
        """Name the configuration: SHA-256 of `spec` and `tensors`; the source is not part of it."""
        digest = hashlib.sha256(canonical_json(self.spec).encode())
        for name, array in self.tensors.items():
            digest.update(f"\0{name} {list(array.shape)}\0".encode())
            digest.update(array.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnySteering) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True, eq=False)
class Steering(AnySteering):
    """One operator at one site of some layers.

    Raises:
        ActcacheError: names the field that is wrong, what was expected and what to do.
    """

    operator: Operator = "add"
    site: SteeringSite = "resid_post"
    layers: tuple[int, ...]
    """Blocks from 0, ascending."""

    vectors: Float32[np.ndarray, "k d"] | Float32[np.ndarray, "k 2 d"]
    """One vector (or plane) a layer, kept as float32 that cannot be written to. Vectors of `ablate`
    and `set` have norm 1, planes are orthonormal, both to 1e-6. With tokens `front` there is one
    layer, and row i is added to the prompt's i-th real token."""

    strength: float = 1.0
    """`add`: multiplier; `ablate`: share removed; `set`: projection; `turn_to` and `rotate`:
    degrees."""

    tokens: SteeredTokens = "prompt"
    window: tuple[int, int | None] | None = None
    """Decode steps start:stop that are steered; step 0 computes the first generated token's logits
    (the last prompt token); None is all."""

    gate: TokenGate | PromptGate | None = None
    renorm: bool = False
    source: SteeringSource | None = None

    identity: ClassVar[dict[str, float | None]] = {
        "add": 0.0,
        "ablate": 0.0,
        "rotate": 0.0,
        "set": None,
        "turn_to": None,
    }
    """The strength at which an operator changes nothing."""

    def __post_init__(self) -> None:
        check_word("steering: operator", self.operator, OPERATORS)
        check_word("steering: site", self.site, STEERING_SITES)
        check_word("steering: tokens", self.tokens, STEERED_TOKENS)
        layers = check_layers("layers", self.layers)
        vectors = check_array("vectors", self.vectors)
        window = None if self.window is None else check_window("window", self.window)
        set_fields(self, layers=layers, vectors=vectors, window=window)
        set_fields(self, strength=check_number("strength", self.strength))
        set_fields(self, renorm=check_bool("renorm", self.renorm))
        if not isinstance(self.source, SteeringSource | None):
            refuse("source", repr(self.source), "a SteeringSource or None", "Pass one.")
        self._check_vectors()
        self._check_gate()
        if self.tokens == "front":
            self._check_front()
        if self.tokens == "completion" and window is not None and window[1] == 1:
            refuse("window", f"{window[0]}:1", "a stop of 2 or more with tokens 'completion'",
                   "Step 0 is the last prompt token's: pass tokens='prompt'.")  # fmt: skip

    def _check_vectors(self) -> None:
        k = len(self.layers)
        if self.operator in PLANE_OPERATORS:
            check_shape(
                "vectors", self.vectors, (k, 2, None), f"a plane a layer for '{self.operator}'"
            )
            check_planes("vectors", self.vectors, layer_names(self.layers))
        elif self.tokens == "front":
            check_shape("vectors", self.vectors, (None, None), "a vector a token for 'front'")
            if not self.vectors.any():  # single rows may be zero: both prompts begin with BOS
                refuse("vectors", "zero", "a direction at some token", "Take other prompts.")
        else:
            check_shape(
                "vectors", self.vectors, (k, None), f"a vector a layer for '{self.operator}'"
            )
            unit = self.operator in UNIT_OPERATORS
            check_vectors("vectors", self.vectors, layer_names(self.layers), unit=unit)

    def _check_gate(self) -> None:
        if not isinstance(self.gate, TokenGate | PromptGate | None):
            refuse("gate", repr(self.gate), "a TokenGate, a PromptGate or None", "Pass one.")
        if isinstance(self.gate, PromptGate) and self.gate.vectors.shape[-1] != self.d_model:
            width = self.gate.vectors.shape[-1]
            refuse("gate.vectors", f"{width} wide", f"{self.d_model}, as vectors are", "Pass the "
                   "conditions of the same model.")  # fmt: skip

    def _check_front(self) -> None:
        for field, value, fits, expected in (
            ("operator", self.operator, self.operator == "add", "'add'"),
            ("layers", self.layers, len(self.layers) == 1, "one layer"),
            ("window", self.window, self.window is None, "None"),
            ("gate", self.gate, not isinstance(self.gate, TokenGate), "no TokenGate"),
        ):
            if not fits:
                refuse(field, value, f"{expected} with tokens 'front'", "Pass other tokens, such "
                       "as 'all'.")  # fmt: skip

    @property
    def parts(self) -> "tuple[Steering, ...]":
        """This steering alone."""
        return (self,)

    @property
    def fields(self) -> dict[str, Any]:
        """Every field but arrays and source, as JSON has it."""
        return {
            "operator": self.operator,
            "site": self.site,
            "layers": list(self.layers),
            "strength": self.strength,
            "tokens": self.tokens,
            "window": None if self.window is None else list(self.window),
            "gate": gate_fields(self.gate),
            "renorm": self.renorm,
        }

    def at(self, strength: float) -> "Steering":
        """Set the strength."""
        return replace(self, strength=strength)

    def __mul__(self, factor: float) -> "Steering":
        """Multiply the strength; refused where no strength changes nothing: `set`, `turn_to`."""
        if self.identity[self.operator] is None:
            refuse(
                "operator",
                f"'{self.operator}', whose strength is a target",
                "'add', 'ablate' or 'rotate' in steering * factor",
                "Set the strength with steering.at(strength).",
            )
        return replace(self, strength=self.strength * check_number("factor", factor))


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, eq=False)
class SteeringSum(AnySteering):
    """Several steerings, applied in order; sums within it are taken apart."""

    steerings: tuple[Steering, ...]

    def __post_init__(self) -> None:
        for steering in self.steerings:
            if not isinstance(steering, AnySteering):
                refuse("a part of the sum", repr(steering), "a Steering", "Pass one.")
        parts = tuple(part for steering in self.steerings for part in steering.parts)
        if not parts:
            refuse("a sum", "empty", "a Steering or more", "Pass None where nothing is steered.")
        widths = [part.d_model for part in parts]
        if len(set(widths)) > 1:
            refuse("a sum", f"of vectors {widths} wide", "one width", "Add steerings of one model.")
        set_fields(self, steerings=parts)

    @property
    def parts(self) -> tuple[Steering, ...]:
        """Its steerings, in order."""
        return self.steerings

    def at(self, strength: float) -> "SteeringSum":
        """Set the strength of every part."""
        return SteeringSum(tuple(part.at(strength) for part in self.steerings))

    def __mul__(self, factor: float) -> "SteeringSum":
        """Multiply the strength of every part."""
        return SteeringSum(tuple(part * factor for part in self.steerings))


def canonical_json(document: Any) -> str:
    """Write JSON in the one way that digests are made of: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
