"""What ways of choosing a layer are worth, against plain loops over samples, seeds and behaviors."""

import numpy as np
import pytest

from actcache.analysis.sweep.ways import (
    Way,
    chosen_way,
    crossfit_way,
    random_way,
    simple_ways,
    worths,
)


@pytest.fixture
def slope():
    return np.random.default_rng(0).normal(0.3, 1, (40, 6))


def test_every_simple_way_equals_its_loop(slope):
    ways = simple_ways(slope, fixed_layer=2, frequent_layer=4, active=[1, 4])
    loops = {
        "fixed": [row[2] for row in slope],
        "most frequent": [row[4] for row in slope],
        "random": [sum(row) / 6 for row in slope],
        "random active": [(row[1] + row[4]) / 2 for row in slope],
        "oracle": [sorted(row)[-1] for row in slope],
        "second": [sorted(row)[-2] for row in slope],
        "third": [sorted(row)[-3] for row in slope],
        "fourth": [sorted(row)[-4] for row in slope],
    }
    assert list(ways) == list(loops)
    for name, values in loops.items():
        np.testing.assert_allclose(ways[name].slope, [values], err_msg=name)
        if not name.startswith("random"):
            np.testing.assert_array_equal(ways[name].steerable, [[v > 0 for v in values]])
    shares = [sum(x > 0 for x in (row[1], row[4])) / 2 for row in slope]
    np.testing.assert_allclose(ways["random active"].steerable, [shares])


def test_a_model_of_two_layers_has_no_third_best(slope):
    ways = simple_ways(slope[:, :2], fixed_layer=0, frequent_layer=1, active=[0])
    assert "second" in ways
    assert "third" not in ways


def test_figures_are_means_over_samples_seeds_and_behaviors(slope):
    rng = np.random.default_rng(3)
    behaviors = {}
    for name, rows in (("kind", slope[:25]), ("bold", 2 * slope[25:])):
        layers = rng.integers(6, size=(3, len(rows)))
        behaviors[name] = {
            "fixed": random_way(rows, [2]),
            "predicted": chosen_way(rows, layers),
        }
    each, together = worths(behaviors, np.random.default_rng(0), draws=400)
    by_seed = np.array(
        [[ways["predicted"].slope[s].mean() for s in range(3)] for ways in behaviors.values()]
    )
    for i, (name, ways) in enumerate(behaviors.items()):
        found = each[name]["predicted"]
        fixed = float(ways["fixed"].slope.mean())
        assert found.slope.value == pytest.approx(by_seed[i].mean())
        assert found.gain.value == pytest.approx(by_seed[i].mean() - fixed)
        assert found.share == pytest.approx(float((ways["predicted"].slope > 0).mean()))
        assert found.slope_error == pytest.approx(by_seed[i].std(ddof=1) / 3**0.5)
        assert found.slope.low < found.slope.value < found.slope.high
    assert together["predicted"].slope.value == pytest.approx(by_seed.mean())
    assert together["predicted"].slope_error == pytest.approx(by_seed.mean(0).std(ddof=1) / 3**0.5)
    assert together["fixed"].n_seeds == 1
    assert together["fixed"].slope_error == 0
    assert together["fixed"].gain.low == together["fixed"].gain.high == 0


def test_a_gain_is_paired_by_sample():
    base = np.random.default_rng(0).normal(0, 10, 200)
    ways = {"fixed": Way(base[None], base[None] * 0), "w": Way(base[None] + 1, base[None] * 0)}
    each, _ = worths({"b": ways}, np.random.default_rng(0), draws=200)
    assert each["b"]["w"].gain.low == pytest.approx(1)
    assert each["b"]["w"].slope.high - each["b"]["w"].slope.low > 1


def test_the_cross_fitted_oracle_equals_its_loop_and_gains_over_the_same_halves():
    halves = np.random.default_rng(0).normal(size=(2, 30, 4))
    way = crossfit_way(halves, fixed_layer=1)
    loop, fixed, share = [], [], []
    for i in range(30):
        first, second = halves[0, i], halves[1, i]
        scores = [second[int(np.argmax(first))], first[int(np.argmax(second))]]
        loop.append(sum(scores) / 2)
        share.append(sum(x > 0 for x in scores) / 2)
        fixed.append((first[1] + second[1]) / 2)
    np.testing.assert_allclose(way.slope, [loop])
    np.testing.assert_allclose(way.steerable, [share])
    each, _ = worths(
        {"b": {"fixed": random_way(halves[0], [0]), "c": way}}, np.random.default_rng(0)
    )
    assert each["b"]["c"].gain.value == pytest.approx(np.mean(loop) - np.mean(fixed))
