"""Slopes, layer choices and the verdict: equal to their definitions, and not fooled by noise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.report.verdicts import (
    GAIN,
    LETTER,
    NO_GAIN,
    NOT_TESTED,
    fixed_layer_verdict,
    sample_gain_verdict,
)
from actcache.analysis.stats.slopes import split_grid
from actcache.analysis.sweep.steerability import summarize
from actcache.analysis.sweep.strategies import cross_fitted, slope_table
from actcache.errors import MismatchError
from tests.reference import sweep as reference
from tests.support.processes import run_code

GRID = np.arange(-1.5, 1.6, 0.5)
coarse = st.integers(-3, 3).map(float) | st.floats(-9, 9, width=16)


def rng(seed=0):
    return np.random.default_rng(seed)


def split(n, share=0.4) -> dict[str, Any]:
    train = np.arange(n) < share * n
    return {"train": train, "test": ~train}


def sweep(slope, *, noise, seed=0):
    """Propensity with the given slopes, an offset for each sample, and independent noise."""
    source = rng(seed)
    offset = source.normal(size=(len(slope), 1, 1))
    return slope[..., None] * GRID + offset + noise * source.normal(size=(*slope.shape, len(GRID)))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (np.array([0.0, 1.0, 2.0]), "not symmetric"),
        (np.array([-1.0, 0.0, 1.0]), "1 distinct size"),
    ],
)
def test_a_grid_without_halves_says_why_and_the_rest_is_still_read(grid, reason):
    assert reason in split_grid(grid)
    propensity = rng().normal(size=(20, 3, 3))
    summary = summarize(propensity, grid, rng=rng(), control=propensity[None], **split(20))

    assert summary.scores.cross_fitted is None
    assert summary.cross_fitted_layer is None
    assert summary.scores.comparison is None
    assert reason in summary.scores.no_cross_fit
    verdict = sample_gain_verdict("x", summary.scores)
    assert reason in verdict.sentence
    assert verdict.sentence.startswith("Warning")
    assert verdict.warning
    assert verdict.word == NOT_TESTED
    assert summary.scores.oracle.slope.value >= summary.scores.fixed.slope.value


def assert_scores_equal(summary, propensity, train, test):
    expected, crossfit = reference.layer_choice(propensity, GRID.tolist(), train, test)
    read = {
        "n": summary.n,
        "mean": [mean.value for mean in summary.by_layer],
        "share_steerable": summary.share_by_layer,
        "fixed_layer": summary.fixed_layer,
        "fixed": summary.fixed.slope.value,
        "fixed_share": summary.fixed.share,
        "best_on_test_layer": summary.best_on_test_layer,
        "best_on_test": max(mean.value for mean in summary.by_layer),
        "random_layer": summary.random.slope.value,
        "oracle": summary.oracle.slope.value,
        "oracle_share": summary.oracle.share,
        "oracle_gain": summary.oracle.gain.value,
        "oracle_deviation": summary.oracle_distance,
    }
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(read[name], value, atol=1e-9, err_msg=name)
    by_halves = {
        "oracle": summary.cross_fitted.slope.value,
        "fixed": summary.fixed_by_halves.value,
        "gain": summary.cross_fitted.gain.value,
        "deviation": summary.cross_fitted_distance,
    }
    assert by_halves.keys() == crossfit.keys()
    for name, value in crossfit.items():
        np.testing.assert_allclose(by_halves[name], value, atol=1e-9, err_msg=name)


@settings(max_examples=40)
@given(st.data())
def test_every_score_equals_the_definition(data):
    n = data.draw(st.integers(2, 7))
    shape = (n, data.draw(st.integers(1, 4)), len(GRID))
    # Whole numbers far apart: no near tie that rounding could turn.
    propensity = data.draw(arrays(float, shape, elements=st.integers(-5, 5).map(float)))
    propensity += rng(1).normal(size=shape) / 8
    train = np.array(data.draw(st.permutations([True] + [False] * (n - 1))))
    letters = data.draw(st.lists(st.sampled_from(["A", "B", ""]), min_size=n, max_size=n))
    masks: dict[str, Any] = {"train": train, "test": ~train}
    summary = summarize(
        propensity,
        GRID,
        rng=rng(),
        letters=letters,
        control=propensity[None, ::-1],
        draws=5,
        **masks,
    )

    assert_scores_equal(summary.scores, propensity, **masks)
    assert_scores_equal(summary.scores.control[0], propensity[::-1], **masks)
    read = {x for x, inside in zip(letters, ~train, strict=True) if inside and x}
    assert set(summary.scores.by_letter) == read
    for letter, scores in summary.scores.by_letter.items():
        rows = ~train & (np.array(letters) == letter)
        assert_scores_equal(scores, propensity, train, rows)


def test_intervals_are_those_of_resampled_samples():
    propensity = sweep(rng(1).normal(size=(30, 4)), noise=0.5)
    masks = split(30)
    summary = summarize(propensity, GRID, rng=rng(3), draws=200, **masks).scores

    s = reference.slope_table(propensity, GRID)[masks["test"]]
    rows = rng(3).integers(len(s), size=(200, len(s)))
    gain = s.max(1) - s[:, summary.fixed_layer]
    bounds = np.quantile([gain[r].mean() for r in rows], [0.025, 0.975])
    np.testing.assert_allclose([summary.oracle.gain.low, summary.oracle.gain.high], bounds)
    layers = np.quantile([s[r].mean(0) for r in rows], [0.025, 0.975], axis=0)
    intervals = [(mean.low, mean.high) for mean in summary.by_layer]
    np.testing.assert_allclose(intervals, layers.T)
    fixed = summary.fixed.slope
    np.testing.assert_allclose((fixed.low, fixed.high), intervals[summary.fixed_layer])


def test_all_ties_go_to_the_first_layer():
    propensity = np.tile(GRID, (6, 3, 1))
    summary = summarize(propensity, GRID, rng=rng(), **split(6))
    assert (summary.scores.fixed_layer, summary.scores.best_on_test_layer) == (0, 0)
    np.testing.assert_array_equal(summary.oracle_layer, 0)
    np.testing.assert_array_equal(summary.cross_fitted_layer, 0)


def test_the_fixed_layer_is_chosen_on_train_even_where_test_disagrees():
    slope = np.ones((10, 2))
    masks = split(10)
    slope[masks["train"], 0], slope[masks["test"], 1] = 2, 3
    summary = summarize(sweep(slope, noise=0), GRID, rng=rng(), **masks).scores
    assert (summary.fixed_layer, summary.best_on_test_layer) == (0, 1)
    np.testing.assert_allclose([summary.fixed.slope.value, summary.by_layer[1].value], [1, 3])


def test_a_planted_best_layer_per_sample_is_recovered_and_the_verdict_says_so():
    n, n_layers = 400, 12
    best = rng(1).integers(n_layers, size=n)
    slope = 1 + 2 * np.eye(n_layers)[best]
    control = rng(2).normal(size=(2, n, n_layers, len(GRID))) / 5
    masks = split(n)
    summary = summarize(sweep(slope, noise=0.2), GRID, rng=rng(), control=control, **masks)

    assert summary.scores.cross_fitted
    assert summary.scores.comparison
    np.testing.assert_array_equal(summary.oracle_layer, best)
    np.testing.assert_array_equal(summary.cross_fitted_layer, np.stack([best, best], axis=1))
    true_gain = 2 - 2 * (best[masks["test"]] == summary.scores.fixed_layer).mean()
    np.testing.assert_allclose(summary.scores.cross_fitted.gain.value, true_gain, atol=0.05)
    verdict = sample_gain_verdict("x", summary.scores)
    assert verdict.word == GAIN
    assert not verdict.warning
    assert summary.scores.comparison.difference.low > 1
    assert verdict.sentence.startswith("A layer chosen per sample gains")


def test_pure_noise_gives_the_oracle_a_large_gain_and_the_crossfitted_one_none():
    n, n_layers = 1000, 24
    propensity = sweep(np.ones((n, n_layers)), noise=1)
    control = rng(2).normal(size=(2, n, n_layers, len(GRID)))
    summary = summarize(propensity, GRID, rng=rng(), control=control, **split(n))

    assert summary.scores.oracle.gain.low > 0.6  # largest of 24 with deviation 0.38: about 0.75
    crossfit = summary.scores.cross_fitted
    assert crossfit
    assert abs(crossfit.gain.value) < 0.07  # deviation of its mean over 600 samples: 0.02
    assert crossfit.gain.low < 0 < crossfit.gain.high
    verdict = sample_gain_verdict("x", summary.scores)
    assert verdict.word == NO_GAIN
    assert "Warning: no gain" in verdict.sentence
    assert "its interval is not above 0" in verdict.sentence


def test_a_gain_that_random_directions_have_too_is_warned_of():
    n = 300
    slope = rng(1).normal(size=(n, 8))
    twin = rng(2).normal(size=(n, 8))
    propensity = sweep(slope, noise=0.1)
    summary = summarize(
        propensity, GRID, rng=rng(), control=sweep(twin, noise=0.1)[None], **split(n)
    )

    assert summary.scores.cross_fitted
    assert summary.scores.comparison
    assert summary.scores.cross_fitted.gain.low > 1  # real, but no more than a random direction's
    assert summary.scores.comparison.control_gain.low > 1
    verdict = sample_gain_verdict("x", summary.scores)
    assert verdict.word == NO_GAIN
    assert "not shown to exceed theirs" in verdict.sentence
    alone = summarize(propensity, GRID, rng=rng(), **split(n))
    verdict = sample_gain_verdict("x", alone.scores)
    assert verdict.word == GAIN
    assert "No control was run" in verdict.sentence


def test_no_gain_stays_none_beside_a_control_that_loses():
    # At layer 0 both halves have slope 4; each half chooses the layer where the other has slope -6.
    by_half = np.where(np.isin(np.abs(GRID), [0.5, 1.5]), 6, -6)
    losing = np.stack([np.full(7, 4), by_half, -by_half]) * GRID
    propensity = np.tile(GRID, (20, 3, 1))
    control = np.tile(losing, (1, 20, 1, 1))
    summary = summarize(propensity, GRID, rng=rng(), control=control, **split(20))

    assert summary.scores.comparison
    np.testing.assert_allclose(summary.scores.comparison.control_gain.value, -10)
    assert summary.scores.comparison.difference.low > 0
    verdict = sample_gain_verdict("x", summary.scores)
    assert verdict.word == NO_GAIN
    assert "its interval is not above 0" in verdict.sentence


def test_a_sample_that_does_not_move_is_not_steerable():
    propensity = np.zeros((4, 2, 7))
    propensity[2, 1] = GRID
    summary = summarize(propensity, GRID, rng=rng(), **split(4, 0.5)).scores

    assert list(summary.share_by_layer) == [0, 0.5]
    assert [summary.fixed.share, summary.oracle.share] == [0, 0.5]


def test_the_comparison_pairs_samples_and_averages_the_control_sets():
    propensity = sweep(rng(1).normal(size=(40, 5)), noise=0.3)
    control = np.stack([sweep(rng(s).normal(size=(40, 5)), noise=0.3, seed=s) for s in (2, 3)])
    summary = summarize(propensity, GRID, rng=rng(), control=control, **split(40))
    every = (summary.scores, *summary.scores.control)
    gains = [scores.cross_fitted.gain.value for scores in every if scores.cross_fitted]
    comparison = summary.scores.comparison

    assert len(gains) == 3
    assert comparison
    np.testing.assert_allclose(comparison.control_gain.value, np.mean(gains[1:]))
    np.testing.assert_allclose(comparison.difference.value, gains[0] - np.mean(gains[1:]))


def test_one_seed_gives_one_result():
    propensity = sweep(rng(1).normal(size=(30, 4)), noise=0.5)
    one, again, other = (
        summarize(propensity, GRID, rng=rng(seed), letters=["A", "B"] * 15, **split(30))
        for seed in (0, 0, 1)
    )
    assert one.scores == again.scores
    assert one.scores.by_layer != other.scores.by_layer


def test_float32_and_float64_sweeps_give_the_same_slopes():
    propensity = sweep(rng(1).normal(size=(30, 4)), noise=0.5).astype(np.float32)
    table = slope_table(propensity, GRID.astype(np.float32))
    np.testing.assert_array_equal(table.slope, slope_table(propensity.astype(float), GRID).slope)


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({"train": np.zeros(4, bool)}, "train split has no sample"),
        ({"test": np.zeros(4, bool)}, "pass more rows"),
        ({"test": np.ones(4, bool)}, "2 samples are in both"),
        ({"letters": ["A"]}, "Pass one a sample"),
        ({"control": np.ones((0, 4, 2, 7))}, "r of at least 1"),
    ],
)
def test_what_does_not_fit_the_sweep_says_what_to_do(changed, remedy):
    propensity = rng().normal(size=(4, 2, 7))
    with pytest.raises(MismatchError, match=remedy):
        summarize(propensity, GRID, **({"rng": rng()} | split(4, 0.5) | changed))


def test_shapes_that_disagree_say_what_to_do_where_no_type_checker_runs():
    code = """
import numpy as np
from actcache.analysis import slopes, summarize
from actcache.errors import MismatchError
ones = np.ones
good = {"train": np.array([True, False]), "test": np.array([False, True]), "rng": None}
for call, remedy in [
    (lambda: slopes(ones((1, 1, 2)), np.arange(3.0)), "measured on"),
    (lambda: summarize(ones((2, 1, 2)), np.arange(2.0), **good | {"test": ones(3, bool)}),
     "one boolean a sample"),
    (lambda: summarize(ones((2, 1, 2)), np.arange(2.0), **good, control=ones((1, 2, 3, 2))),
     "same samples, layers"),
]:
    try:
        call()
    except MismatchError as error:
        assert remedy in str(error), error
    else:
        raise AssertionError(remedy)
"""
    run_code(code)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_direction_that_moves_the_letter_is_said_to(bias):
    """Slopes of +bias for A and −bias for B, about a mean of 0.1: half of them steerable."""
    rng = np.random.default_rng(0)
    letters = np.array(["A", "B"] * 40)
    slope = 0.1 + np.where(letters == "A", bias, -bias)[:, None] + 0.1 * rng.normal(size=(80, 3))
    multipliers = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    train = np.arange(80) < 40

    summary = summarize(
        slope[:, :, None] * multipliers,
        multipliers,
        train=train,
        test=~train,
        rng=rng,
        letters=letters,
    )

    verdict = fixed_layer_verdict("x", summary.scores, None)
    assert (verdict.word == LETTER) == verdict.warning == (bias > 0)
    if bias:
        assert "moves the letter" in verdict.sentence


def test_a_fixed_layer_that_is_given_is_taken_for_all_samples_and_for_each_letter():
    slope = rng(3).normal(size=(60, 4))
    summary = summarize(
        sweep(slope, noise=0),
        GRID,
        **split(60),
        rng=rng(),
        fixed=3,
        letters=["A", "B"] * 30,
        draws=50,
    )
    assert summary.scores.fixed_layer == 3
    assert {scores.fixed_layer for scores in summary.scores.by_letter.values()} == {3}
    np.testing.assert_allclose(summary.scores.fixed.slope.value, slope[24:, 3].mean())


def test_a_letter_of_few_samples_gives_no_warning():
    for n, warned in ((40, True), (12, False)):
        letters = np.array(["A", "B"] * (n // 2))
        slope = np.where(letters == "A", 1.0, -1.0)[:, None] * np.ones((n, 3))
        summary = summarize(sweep(slope, noise=0), GRID, **split(n), rng=rng(), letters=letters)
        assert (fixed_layer_verdict("x", summary.scores, None).word == LETTER) == warned


def test_a_control_on_part_of_the_samples_is_compared_by_means_of_what_each_has():
    propensity = sweep(rng(1).normal(1, 0.5, (60, 3)), noise=0.3)
    random = sweep(rng(2).normal(0, 0.1, (60, 3)), noise=0.3, seed=3)
    sides = split(60)
    has = np.arange(60) % 3 == 0
    part = np.where(has[:, None, None], random, np.nan)

    read: Any = summarize(
        propensity, GRID, rng=rng(), control=part[None], draws=400, **sides
    ).scores

    few = {name: side & has for name, side in sides.items()}
    assert_scores_equal(read, propensity, **sides)
    assert_scores_equal(read.control[0], random, few["train"], few["test"])
    gain = reference.layer_choice(propensity, GRID.tolist(), *sides.values())[1]["gain"]
    control_gain = reference.layer_choice(random, GRID.tolist(), *few.values())[1]["gain"]
    assert read.comparison.control_gain.value == pytest.approx(control_gain)
    assert read.comparison.difference.value == pytest.approx(gain - control_gain)
    tables: list[Any] = [
        slope_table(values, GRID).of(sides["test"]) for values in (propensity, random)
    ]
    fixed = [read.fixed_layer, read.control[0].fixed_layer]
    gains, others = (
        cross_fitted(table.halves, fixed_layer=layer).gain
        for table, layer in zip(tables, fixed, strict=True)
    )
    inside, draws, again = has[sides["test"]], [], rng(5)
    for _ in range(4000):  # the definition: resample, then one mean minus the other
        at = again.integers(len(gains), size=len(gains))
        draws.append(gains[at].mean() - others[at][inside[at]].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert read.comparison.difference.low == pytest.approx(low, abs=0.15 * width)
    assert read.comparison.difference.high == pytest.approx(high, abs=0.15 * width)


def test_samples_that_were_not_swept_have_no_slope_and_may_be_on_neither_side():
    propensity = sweep(rng(1).normal(1, 0.5, (20, 3)), noise=0.3)
    propensity[4] = np.nan
    sides = split(20)

    with pytest.raises(MismatchError, match="1 of 8 train samples were not swept"):
        summarize(propensity, GRID, rng=rng(), **sides)
    sides["train"] = sides["train"] & (np.arange(20) != 4)
    read: Any = summarize(propensity, GRID, rng=rng(), draws=5, **sides)
    assert np.isnan(read.slope[4]).all()
    assert read.oracle_layer[4] == -1
    assert read.cross_fitted_layer[4].tolist() == [-1, -1]
    assert (np.delete(read.oracle_layer, 4) >= 0).all()
