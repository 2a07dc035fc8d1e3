"""Configurations of a plan: grids without identities, digests, controls, noise streams."""

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.methods.registry import CONTROLS as RANDOM
from actcache.analysis.generation.methods.registry import METHODS as REGISTERED
from actcache.analysis.generation.run.file_way import FileWay, file_way, random_like
from actcache.analysis.generation.run.plan import grid_of, noise_stream, plan_configurations
from actcache.analysis.generation.run.rows import PromptRow
from actcache.analysis.generation.run.summarize import is_control_of
from actcache.analysis.generation.units import CONTROLS, METHODS, UNITS, Tokens
from actcache.errors import ActcacheError
from actcache.steering.checks import OPERATOR_UNITS, STEERED_TOKENS
from actcache.steering.steering import Steering

ROWS = [
    PromptRow(id=f"r{i}", behavior="mood", split="test", tokens=(3, 4), digest=f"d{i}", number=i)
    for i in range(3)
]
VECTORS = np.eye(4, 8, dtype=np.float32)[:2]
PLANE = np.eye(2, 8, dtype=np.float32)[None]


def test_the_words_of_methods_and_units_are_those_of_the_methods():
    assert set(METHODS) == {*REGISTERED, *RANDOM}
    assert set(CONTROLS) == set(RANDOM)
    assert get_args(Tokens) == STEERED_TOKENS
    assert set(UNITS.values()) | {"projection"} == set(OPERATOR_UNITS.values())


@pytest.mark.parametrize(
    ("operator", "vectors", "asked", "grid"),
    [
        ("add", VECTORS[:1], (1, -1, 0), (-1, 1)),
        ("rotate", PLANE, (0, 90, 360, 180), (90, 180)),
        ("turn_to", PLANE, (90, 0), (0, 90)),
        ("ablate", VECTORS[:1], (0, 1, 0.5), (0.5, 1)),
        ("set", VECTORS[:1], (0, 1), (0, 1)),
    ],
)
def test_what_changes_nothing_is_no_configuration(operator, vectors, asked, grid):
    way = file_way(Steering(operator=operator, layers=(1,), vectors=vectors), "mood")
    assert grid_of(way, SteerConfig(strength=asked)) == grid


def test_a_files_default_grid_is_around_its_own_strength():
    way = file_way(Steering(layers=(1,), vectors=VECTORS[:1], strength=4.0), "mood")
    assert grid_of(way, SteerConfig()) == (-4, -2, 1, 2, 3, 4, 5, 6, 8)


def test_a_sum_of_one_operator_is_set_and_one_of_several_strengths_is_multiplied():
    part = Steering(layers=(1,), vectors=VECTORS[:1])
    alike = file_way(part + replace(part, layers=(2,)), "mood")
    assert [p.strength for p in alike.steering(None, 3.0).parts] == [3, 3]
    mixed = file_way(part + part.at(2.0), "mood")
    assert [p.strength for p in mixed.steering(None, 3.0).parts] == [3, 6]


def test_every_behavior_has_its_unsteered_texts_twice_and_digests_tell_all_apart():
    way = file_way(Steering(layers=(1,), vectors=VECTORS[:1]), "mood")
    planned = plan_configurations([way], ROWS, SteerConfig(strength=(-1, 1)))

    assert [run.about.method for run in planned] == [
        *("unsteered", "unsteered_again", "file", "file")
    ]
    assert len({run.digest for run in planned}) == 4
    other = file_way(Steering(layers=(1,), vectors=VECTORS[1:]), "mood")
    again = plan_configurations([other], ROWS, SteerConfig(strength=(-1, 1)))
    assert [run.digest for run in planned][:2] == [run.digest for run in again][:2]
    assert not {run.digest for run in planned[2:]} & {run.digest for run in again[2:]}
    with pytest.raises(ActcacheError, match="Pass another --strength"):
        plan_configurations([way], ROWS, SteerConfig(strength=(0,)))


def test_rows_with_steerings_of_their_own_have_one_configuration_whose_digest_is_of_all():
    @dataclass(frozen=True)
    class PerRow:
        vectors: tuple[np.ndarray, ...]
        method = "l2s"
        behavior = "mood"
        unit = "multiplier"
        identity = 0.0
        control = False
        selection = "predicted"
        notes = ()

        def steering(self, row, strength):
            return Steering(layers=(1,), vectors=self.vectors[row], strength=strength)

    first = PerRow((VECTORS[:1], VECTORS[1:], VECTORS[:1]))
    second = PerRow((VECTORS[:1], VECTORS[1:], VECTORS[1:]))
    runs = [plan_configurations([w], ROWS, SteerConfig(strength=(1,)))[2] for w in (first, second)]
    assert runs[0].digest != runs[1].digest
    assert runs[0].about.steering is None
    assert runs[0].steering(ROWS[1]) == second.steering(1, 1.0) != runs[0].steering(ROWS[0])


def test_a_random_steering_has_equal_norms_and_planes_that_are_planes():
    vectors = np.array([[3.0] * 8, [0.5] * 8], np.float32)
    random = random_like(Steering(layers=(1, 2), vectors=vectors), 0)
    [part] = random.parts
    np.testing.assert_allclose(
        np.linalg.norm(part.vectors, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-6
    )
    turned = Steering(operator="rotate", layers=(1,), vectors=PLANE, strength=30.0)
    assert random_like(turned, 0).parts[0].strength == 30  # or refused: no plane
    assert random_like(turned, 0) == random_like(turned, 0) != random_like(turned, 1)
    ablated = random_like(Steering(operator="ablate", layers=(1,), vectors=VECTORS[:1]), 0)
    assert abs(np.linalg.norm(ablated.parts[0].vectors.astype(float)) - 1) < 1e-6


def test_a_noise_stream_is_of_row_and_sample_alone():
    streams = {noise_stream(row, sample) for row in ROWS for sample in range(4)}
    assert len(streams) == 12
    assert noise_stream(ROWS[0], 1) == noise_stream(replace(ROWS[0], split="validation"), 1)


def test_controls_are_those_that_fit():
    base = Steering(layers=(1,), vectors=VECTORS[:1])

    def named(method, selection, *, control=True, unit="degrees"):
        return FileWay(
            base=base,
            method=method,
            behavior="mood",
            unit=unit,
            identity=None,
            control=control,
            selection=selection,
            grid=None,
        )

    ss, sas = named("ss", "discriminative", control=False), named("sas", "all sites", control=False)
    controls = [
        *(named("ss", "all sites"), named("ss", "random half")),
        *(named("random_plane", "ss: discriminative"), named("random_plane", "sas: all sites")),
        *(named("random", "fixed", unit="multiplier"), named("random", "fixed")),
    ]
    assert [is_control_of(control, ss) for control in controls] == [True] * 3 + [False] * 2 + [True]
    assert [is_control_of(control, sas) for control in controls] == [False] * 3 + [
        True,
        False,
        True,
    ]
    assert not is_control_of(sas, ss)
