"""The operators: norms, exact angles, and values against the formulas, in every dtype."""

import math

import numpy as np
import pytest
import torch

from actcache.steering import Steering
from actcache.steering.checks import OPERATORS, PLANE_OPERATORS
from actcache.steering.operators import (
    apply_operator,
    coefficients_of,
    is_identity,
    restore_norm,
)
from tests.reference.steering import steered_vector

ANGLES = (0.0, 30.0, 90.0, 135.0, 180.0, 217.5, 270.0, -45.0, 359.0, 720.0 + 60.0)
D = 256


def values_and_vectors(operator, dtype=torch.float32, n=16):
    """Values of size 1 and 30 a component, and vectors (or planes) one a value."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(n, D, 2)))[0].swapaxes(1, 2).astype(np.float32)
    size = np.where(np.arange(n) % 2, 1, 30)[:, None]
    value = torch.from_numpy(size * rng.normal(size=(n, D))).to(dtype)
    # The values lie partly in their planes, so that a turn changes them.
    value = value + (
        5 * torch.from_numpy(vectors[:, 0]) * value.norm(dim=-1, keepdim=True) / 16
    ).to(dtype)
    return value, vectors if operator in PLANE_OPERATORS else vectors[:, :1]


def apply(operator, value, vectors, strength):
    """Steer `[n, d]`, computed in float32 or wider and rounded once, as rows are."""
    wide = torch.promote_types(value.dtype, torch.float32)
    coefficients = torch.tensor([coefficients_of(operator, strength)] * len(value), dtype=wide)
    steered = apply_operator(
        operator,
        value.to(wide)[:, None],
        torch.from_numpy(vectors).to(wide)[:, None],
        coefficients,
    )
    return steered[:, 0].to(value.dtype)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_operator_equals_dense_matrices(operator, dtype):
    value, vectors = values_and_vectors(operator, dtype)
    bound = 1e-6 if dtype == torch.float32 else 1e-14
    if operator in PLANE_OPERATORS and dtype == torch.float64:
        bound = 1e-6  # the planes are float32: orthonormal to 1e-7
    for strength in ANGLES:
        steered = apply(operator, value, vectors, strength)
        for row in range(len(value)):
            of_row = vectors[row] if operator in PLANE_OPERATORS else vectors[row, 0]
            part = Steering(
                operator=operator,
                layers=(0,),
                vectors=of_row[None],
                strength=strength,
                tokens="all",
            )
            true = torch.from_numpy(steered_vector(part, 0, value[row].numpy(), 0))
            scale = true.norm() + value[row].norm()
            assert (steered[row].double() - true).norm() <= bound * scale


@pytest.mark.parametrize("operator", PLANE_OPERATORS)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
    ids=str,
)
def test_turns_keep_norms(operator, dtype, bound):
    value, planes = values_and_vectors(operator, dtype)
    before = value.double().norm(dim=-1)

    for angle in ANGLES:
        after = apply(operator, value, planes, angle).double().norm(dim=-1)
        assert ((after - before).abs() / before).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_full_turn_changes_no_bit_and_quarter_turns_are_exact(dtype):
    value, planes = values_and_vectors("rotate", dtype)

    for turn in (0.0, 360.0, -360.0, 1080.0):
        assert torch.equal(apply("rotate", value, planes, turn), value)
    assert coefficients_of("rotate", 90.0) == (-1.0, 1.0)
    assert coefficients_of("rotate", -180.0) == (-2.0, 0.0)
    assert coefficients_of("turn_to", 270.0) == (0.0, -1.0)
    assert coefficients_of("turn_to", 450.0) == (0.0, 1.0)
    half = apply("rotate", apply("rotate", value, planes, 180.0), planes, 180.0)
    assert (half - value).abs().max() <= 8 * torch.finfo(dtype).eps * value.abs().max()


@pytest.mark.parametrize("angle", ANGLES)
def test_a_turn_and_the_turn_back_are_the_identity(angle):
    value, planes = values_and_vectors("rotate")

    back = apply("rotate", apply("rotate", value, planes, angle), planes, -angle)

    assert ((back - value).norm(dim=-1) / value.norm(dim=-1)).max() <= 1e-6


@pytest.mark.parametrize("angle", ANGLES)
def test_turning_to_an_angle_twice_is_turning_once(angle):
    value, planes = values_and_vectors("turn_to")

    once = apply("turn_to", value, planes, angle)
    twice = apply("turn_to", once, planes, angle)

    assert ((twice - once).norm(dim=-1) / value.norm(dim=-1)).max() <= 1e-6
    c1, c2 = (once[:, None] * torch.from_numpy(planes)).sum(-1).T
    reached = torch.rad2deg(torch.atan2(c2, c1)) - angle
    assert (reached - 360 * (reached / 360).round()).abs().max() <= 1e-3


def test_small_angles_lose_no_digits():
    cos_minus_1, sin = coefficients_of("rotate", 1e-4)

    assert cos_minus_1 == pytest.approx(-(math.radians(1e-4) ** 2) / 2, rel=1e-10, abs=0)
    assert sin == pytest.approx(math.radians(1e-4), rel=1e-10, abs=0)


def test_which_strengths_change_nothing():
    def part(operator, strength):
        vectors = np.eye(4, dtype=np.float32)[: 2 if operator in PLANE_OPERATORS else 1]
        vectors = vectors[None] if operator in PLANE_OPERATORS else vectors
        return Steering(operator=operator, layers=(0,), vectors=vectors, strength=strength)

    identities = [("add", 0), ("ablate", 0), ("rotate", 0), ("rotate", 360), ("rotate", -720)]
    assert all(is_identity(part(*identity)) for identity in identities)
    others = [("add", 1e-9), ("set", 0), ("turn_to", 0), ("turn_to", 360), ("rotate", 180)]
    assert not any(is_identity(part(*other)) for other in others)


def test_the_norm_of_a_large_float16_residual_is_restored_without_overflow():
    value = torch.full((1, 1, 4096), 1200.0, dtype=torch.float16)
    assert value.norm(dim=-1, dtype=torch.float16).isinf()  # what a norm in half precision gives
    push = torch.zeros(1, 1, 4096)
    push[..., 0] = 3000.0

    steered = restore_norm(value.float() + push, value.float())

    assert steered.norm() == pytest.approx(float(value.double().norm()), rel=1e-6)
    assert steered.to(torch.float16).isfinite().all()
    assert (restore_norm(torch.zeros(1, 1, 4), torch.ones(1, 1, 4)) == 0).all()
