"""What is done to a running model's activations, as data.

A `Steering` is made, saved and loaded with NumPy alone; `actcache.steer` and `actcache.generate`
apply it. `a + b` is a `SteeringSum`, applied in order.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Float32

Operator = Literal["add", "ablate", "set", "turn_to", "rotate"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

PLANE_OPERATORS: tuple[Operator, ...] = ("turn_to", "rotate")
"""Operators whose vectors are planes `[k, 2, d]` and whose strength is an angle in degrees."""

SteeringSite = Literal[
    "resid_post", "resid_pre", "attn_out", "mlp_out", "ln1", "ln2", "ln1_post", "ln2_post"
]
STEERING_SITES: tuple[SteeringSite, ...] = get_args(SteeringSite)

SteeredTokens = Literal["prompt", "completion", "all", "front"]
STEERED_TOKENS: tuple[SteeredTokens, ...] = get_args(SteeredTokens)


@dataclass(frozen=True, kw_only=True)
class TokenGate:
    """Steer a token only where its projection on b1, at the site, is above a threshold (AAS)."""

    threshold: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptGate:
    """Steer a row only if its unsteered prompt is like a condition (CAST, arXiv 2409.05907).

    `cos(h, tanh(ĉ (ĉ·h)))` of the block input h of each layer; any layer decides.
    """

    layers: tuple[int, ...]
    vectors: Float32[np.ndarray, "k d"]
    threshold: float
    above: bool = True
    """Whether the condition is met above the threshold, or below it."""

    over: Literal["mean", "last"] = "mean"
    """Mean over the prompt's real tokens, or its last token."""


class AnySteering(ABC):
    """A `Steering` or a `SteeringSum`."""

    @property
    @abstractmethod
    def parts(self) -> "tuple[Steering, ...]":
        """Single steerings, in the order in which they are applied."""

    @abstractmethod
    def at(self, strength: float) -> "AnySteering":
        """Set the strength of every part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering(AnySteering):
    """One operator at one site of some layers."""

    operator: Operator = "add"
    site: SteeringSite = "resid_post"
    layers: tuple[int, ...]
    vectors: Float32[np.ndarray, "k d"] | Float32[np.ndarray, "k 2 d"]
    """One vector (or plane) a layer. With tokens `front` there is one layer, and row i is added to
    the prompt's i-th real token."""

    strength: float = 1.0
    tokens: SteeredTokens = "prompt"
    window: tuple[int, int | None] | None = None
    """Decode steps start:stop that are steered; step 0 computes the first generated token's logits
    (the last prompt token); None is all."""

    gate: TokenGate | PromptGate | None = None
    renorm: bool = False

    identity: ClassVar[dict[str, float | None]] = {
        "add": 0.0,
        "ablate": 0.0,
        "rotate": 0.0,
        "set": None,
        "turn_to": None,
    }
    """The strength at which an operator changes nothing."""

    @property
    def parts(self) -> "tuple[Steering, ...]":
        """This steering alone."""
        return (self,)

    def at(self, strength: float) -> "Steering":
        """Set the strength."""
        return replace(self, strength=float(strength))


@dataclass(frozen=True, eq=False)
class SteeringSum(AnySteering):
    """Several steerings, applied in order."""

    steerings: tuple[Steering, ...]

    @property
    def parts(self) -> tuple[Steering, ...]:
        """Its steerings, in order."""
        return self.steerings

    def at(self, strength: float) -> "SteeringSum":
        """Set the strength of every part."""
        return SteeringSum(tuple(part.at(strength) for part in self.steerings))
