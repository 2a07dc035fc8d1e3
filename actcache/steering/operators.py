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
    vectors: Float[Tensor, "_ _ v d"],
    coefficients: Float[Tensor, "n 2"],
) -> Float[Tensor, "n t d"]:
    """Steer every token of `n` rows.

    Args:
        operator: the operator, one for all rows.
        value: values at the site, in float32 or wider.
        vectors: b1, and b2 of a plane: `v` is 1 or 2. One for all rows, or one a row; for `add`,
            perhaps one a token.
        coefficients: each row's `coefficients_of`.
    """
    coefficients = coefficients[:, None]  # [n, 1, 2]
    if operator == "add":
        return value + coefficients[..., :1] * vectors[:, :, 0]
    basis = vectors[0, 0] if len(vectors) == 1 else vectors[:, 0]  # [v, d] or [n, v, d]
    c = value @ basis.mT  # [n, t, v]
    if operator == "ablate":
        along = -coefficients[..., :1] * c
    elif operator == "set":
        along = coefficients[..., :1] - c
    elif operator == "turn_to":
        along = c.norm(dim=-1, keepdim=True) * coefficients - c
    else:
        quarter = torch.stack([-c[..., 1], c[..., 0]], -1)  # c, turned by 90°
        along = coefficients[..., :1] * c + coefficients[..., 1:] * quarter
    return value + along @ basis


def restore_norm(
    steered: Float[Tensor, "n t d"], value: Float[Tensor, "n t d"]
) -> Float[Tensor, "n t d"]:
    """Rescale steered values to the norms that they had before."""
    norm = steered.norm(dim=-1, keepdim=True)
    # A value that was steered to zero has no direction to keep.
    return steered * torch.where(norm > 0, value.norm(dim=-1, keepdim=True) / norm, 0)
