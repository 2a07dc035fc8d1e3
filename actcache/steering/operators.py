"""The operators of steering, on tensors: each changes a value by at most two vectors, in O(d).

With c1 = b1·a, c2 = b2·a, r = √(c1² + c2²) and the angle θ:

| operator | a′ |
|---|---|
| `add` | a + λ b1 |
| `ablate` | a − s c1 b1 |
| `set` | a + (s − c1) b1 |
| `turn_to` | a + (r cos θ − c1) b1 + (r sin θ − c2) b2 |
| `rotate` | a + ((cos θ − 1) c1 − sin θ c2) b1 + (sin θ c1 + (cos θ − 1) c2) b2 |

All but `add` and `set` scale with a: steering k·a by them is k times a steered.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from actcache.steering.checks import PLANE_OPERATORS, Operator
from actcache.steering.steering import Steering

SCALED_OPERATORS: tuple[Operator, ...] = ("add", "set")
"""Operators whose strength is a size in the value's own unit."""


def is_identity(part: Steering) -> bool:
    """Tell whether a steering changes nothing, bit for bit: strength 0, or a full turn."""
    if part.operator == "rotate":
        return part.strength % 360 == 0
    return part.strength == part.identity[part.operator]


def coefficients_of(operator: Operator, strength: float) -> tuple[float, float]:
    """Return the numbers that an operator needs of its strength.

    They are (λ or s, 0), for `turn_to` (cos θ, sin θ), for `rotate` (cos θ − 1, sin θ); exact at
    multiples of 90°.
    """
    if operator not in PLANE_OPERATORS:
        return strength, 0.0
    degrees = strength % 360
    if degrees % 90 == 0:
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(degrees // 90)]
        return (cos, sin) if operator == "turn_to" else (cos - 1, sin)
    angle = math.radians(degrees)
    if operator == "turn_to":
        return math.cos(angle), math.sin(angle)
    return -2 * math.sin(angle / 2) ** 2, math.sin(angle)  # cos − 1 without cancellation


def apply_operator(
    operator: Operator,
    value: Float[Tensor, "n t d"],
    vectors: Float[Tensor, "_ _ 1 d"] | Float[Tensor, "_ _ 2 d"],
    coefficients: Float[Tensor, "n 2"],
) -> Float[Tensor, "n t d"]:
    """Steer every token of `n` rows.

    Args:
        operator: the operator, one for all rows.
        value: values at the site, in float32 or wider.
        vectors: b1, and b2 of a plane; `[n or 1, t or 1, 1 or 2, d]`, the dtype of `value`.
        coefficients: each row's `coefficients_of`.
    """
    first, second = coefficients[:, :1], coefficients[:, 1:]  # [n, 1]
    b1 = vectors[:, :, 0]
    if operator == "add":
        return value + first[..., None] * b1
    # Products and a sum, not a matrix product: its rounding would depend on the batch.
    c1 = (value * b1).sum(-1)
    if operator == "ablate":
        return value - (first * c1)[..., None] * b1
    if operator == "set":
        return value + (first - c1)[..., None] * b1
    b2 = vectors[:, :, 1]
    c2 = (value * b2).sum(-1)
    if operator == "turn_to":
        radius = torch.hypot(c1, c2)
        along1, along2 = radius * first - c1, radius * second - c2
    else:
        along1, along2 = first * c1 - second * c2, second * c1 + first * c2
    return value + along1[..., None] * b1 + along2[..., None] * b2


def restore_norm(
    steered: Float[Tensor, "n t d"], value: Float[Tensor, "n t d"]
) -> Float[Tensor, "n t d"]:
    """Rescale steered values to the norms that they had before."""
    norm = steered.norm(dim=-1, keepdim=True)
    # A value that was steered to zero has no direction to keep.
    return steered * torch.where(norm > 0, value.norm(dim=-1, keepdim=True) / norm, 0)
