"""What strategies of choosing a layer are worth, against loops over samples, seeds and behaviors."""

import numpy as np
import pytest

from actcache.analysis.sweep.strategies import (
    LayerStrategy,
    SlopeTable,
    chosen_layers,
    compared_strategies,
    cross_fitted,
    drawn_layer,
    score_behaviors,
)


@pytest.fixture
def slope():
    return np.random.default_rng(0).normal(0.3, 1, (40, 6))


def table(slope, halves=None):
    return SlopeTable(slope=slope, halves=halves, reason="")


def test_every_strategy_without_a_predictor_equals_its_loop(slope):
    strategies = compared_strategies(table(slope), fixed_layer=2, frequent_layer=4, active=[1, 4])
    loops = {
        "fixed": [row[2] for row in slope],
        "most_frequent": [row[4] for row in slope],
        "random": [sum(row) / 6 for row in slope],
        "random_active": [(row[1] + row[4]) / 2 for row in slope],
        "oracle": [sorted(row)[-1] for row in slope],
        "second": [sorted(row)[-2] for row in slope],
        "third": [sorted(row)[-3] for row in slope],
        "fourth": [sorted(row)[-4] for row in slope],
    }
    assert list(strategies) == list(loops)
    for name, values in loops.items():
        np.testing.assert_allclose(strategies[name].slope, [values], err_msg=name)
        if not name.startswith("random"):
            np.testing.assert_array_equal(strategies[name].steerable, [[v > 0 for v in values]])
    shares = [sum(x > 0 for x in (row[1], row[4])) / 2 for row in slope]
    np.testing.assert_allclose(strategies["random_active"].steerable, [shares])


def test_a_model_of_two_layers_has_no_third_best(slope):
    two = table(slope[:, :2], np.stack([slope[:, :2]] * 2))
    strategies = compared_strategies(two, fixed_layer=0, frequent_layer=1, active=[0])
    assert list(strategies)[-1] == "cross_fitted"
    assert "second" in strategies
    assert "third" not in strategies


def test_figures_are_means_over_samples_seeds_and_behaviors(slope):
    rng = np.random.default_rng(3)
    behaviors = {}
    for name, rows in (("kind", slope[:25]), ("bold", 2 * slope[25:])):
        layers = rng.integers(6, size=(3, len(rows)))
        behaviors[name] = {
            "fixed": drawn_layer(rows, [2], fixed_layer=2),
            "predicted": chosen_layers(rows, layers, fixed_layer=2),
        }
    by_behavior, together = score_behaviors(behaviors, np.random.default_rng(0), draws=400)
    by_seed = np.array(
        [
            [strategies["predicted"].slope[s].mean() for s in range(3)]
            for strategies in behaviors.values()
        ]
    )
    for i, (name, strategies) in enumerate(behaviors.items()):
        predicted = by_behavior[name]["predicted"]
        fixed = float(strategies["fixed"].slope.mean())
        assert predicted.slope.value == pytest.approx(by_seed[i].mean())
        assert predicted.gain.value == pytest.approx(by_seed[i].mean() - fixed)
        assert predicted.share == pytest.approx(float((strategies["predicted"].slope > 0).mean()))
        assert predicted.slope_error == pytest.approx(by_seed[i].std(ddof=1) / 3**0.5)
        assert predicted.slope.low < predicted.slope.value < predicted.slope.high
    assert together["predicted"].slope.value == pytest.approx(by_seed.mean())
    assert together["predicted"].slope_error == pytest.approx(by_seed.mean(0).std(ddof=1) / 3**0.5)
    assert together["fixed"].n_seeds == 1
    assert together["fixed"].slope_error == 0
    assert together["fixed"].gain.low == together["fixed"].gain.high == 0


def test_a_gain_is_paired_by_sample():
    base = np.random.default_rng(0).normal(0, 10, 200)
    strategies = {"w": LayerStrategy(base[None] + 1, base[None] * 0, base)}
    by_behavior, _ = score_behaviors({"b": strategies}, np.random.default_rng(0), draws=200)
    assert by_behavior["b"]["w"].gain.low == pytest.approx(1)
    assert by_behavior["b"]["w"].slope.high - by_behavior["b"]["w"].slope.low > 1


def test_the_cross_fitted_oracle_equals_its_loop_and_gains_over_the_same_halves():
    halves = np.random.default_rng(0).normal(size=(2, 30, 4))
    strategy = cross_fitted(halves, fixed_layer=1)
    loop, fixed, share = [], [], []
    for i in range(30):
        first, second = halves[0, i], halves[1, i]
        scores = [second[int(np.argmax(first))], first[int(np.argmax(second))]]
        loop.append(sum(scores) / 2)
        share.append(sum(x > 0 for x in scores) / 2)
        fixed.append((first[1] + second[1]) / 2)
    np.testing.assert_allclose(strategy.slope, [loop])
    np.testing.assert_allclose(strategy.steerable, [share])
    by_behavior, _ = score_behaviors({"b": {"c": strategy}}, np.random.default_rng(0))
    assert by_behavior["b"]["c"].gain.value == pytest.approx(np.mean(loop) - np.mean(fixed))
