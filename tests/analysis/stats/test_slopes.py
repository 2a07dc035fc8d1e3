"""Slopes and fits equal their definition, NumPy and SciPy; halves of a grid share nothing."""

import doctest
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from actcache.analysis.stats.slopes import fit_quality, slopes, split_grid
from actcache.errors import MismatchError, NotFiniteError
from tests.reference import sweep as reference

GRID = np.arange(-1.5, 1.6, 0.5)
coarse = st.integers(-3, 3).map(float) | st.floats(-9, 9, width=16)
grids = st.lists(st.integers(-8, 8).map(lambda x: x / 4), min_size=2, max_size=6, unique=True)


def rng(seed=0):
    return np.random.default_rng(seed)


def sweep(slope, *, noise=0.0):
    """Propensity with the given slopes, an offset for each sample, and independent noise."""
    source = rng()
    offset = source.normal(size=(len(slope), 1, 1))
    return slope[..., None] * GRID + offset + noise * source.normal(size=(*slope.shape, len(GRID)))


@given(
    grids.flatmap(lambda g: st.tuples(st.just(g), arrays(float, (2, 3, len(g)), elements=coarse)))
)
def test_slopes_and_fits_equal_the_definition_and_polyfit(drawn):
    grid, propensity = np.array(drawn[0]), drawn[1]
    slope, quality = slopes(propensity, grid), fit_quality(propensity, grid)

    np.testing.assert_allclose(slope, reference.slope_table(propensity, grid), atol=1e-9)
    fitted = np.polyfit(grid, propensity.reshape(6, -1).T, 1)[0].reshape(2, 3)
    np.testing.assert_allclose(slope, fitted, atol=1e-8)
    for at in np.ndindex(2, 3):
        cell = [float(v) for v in propensity[at]]
        rms, rank = reference.residual_rms(cell, grid), reference.spearman(cell, grid.tolist())
        np.testing.assert_allclose(quality.residual_rms[at], rms, atol=1e-9)
        np.testing.assert_allclose(quality.rank_correlation[at], rank, atol=1e-9)


def test_rank_correlation_equals_scipys_and_is_zero_for_a_constant():
    propensity = rng().normal(size=(20, 3, 7)).round(1)
    ranks = fit_quality(propensity, GRID).rank_correlation
    expected = [[spearmanr(GRID, cell).statistic for cell in row] for row in propensity]

    np.testing.assert_allclose(ranks, expected, atol=1e-12)
    assert fit_quality(np.ones((1, 1, 7)), GRID).rank_correlation == 0


def test_a_line_is_fitted_without_residual_and_multiplier_zero_weighs_nothing():
    propensity = sweep(rng(1).normal(size=(5, 4)), noise=0)
    np.testing.assert_allclose(fit_quality(propensity, GRID).residual_rms, 0, atol=1e-12)
    bent = propensity.copy()
    bent[..., 3] += 100  # at multiplier 0
    np.testing.assert_allclose(slopes(bent, GRID), slopes(propensity, GRID), atol=1e-12)
    bent[..., 4] += 100  # and at 0.5 it does
    assert np.abs(slopes(bent, GRID) - slopes(propensity, GRID)).min() > 1


def test_slopes_turn_with_the_sign_of_the_direction_and_of_the_roles():
    propensity = sweep(rng(1).normal(size=(5, 4)), noise=0.3)
    np.testing.assert_allclose(slopes(propensity[..., ::-1], GRID), -slopes(propensity, GRID))
    np.testing.assert_allclose(slopes(-propensity, GRID), -slopes(propensity, GRID))


@pytest.mark.parametrize(
    ("grid", "halves"),
    [
        (GRID, ([-1.5, -0.5, 0.5, 1.5], [-1, 1])),
        (np.array([2.0, -1.0, 1.0, -2.0]), ([-1, 1], [2, -2])),
        (np.arange(-0.4, 0.41, 0.1), ([-0.3, -0.1, 0.1, 0.3], [-0.4, -0.2, 0.2, 0.4])),
    ],
)
def test_halves_are_symmetric_and_share_nothing(grid, halves):
    masks = split_grid(grid)
    assert not isinstance(masks, str)
    for mask, expected in zip(masks, halves, strict=True):
        np.testing.assert_allclose(np.sort(grid[mask]), np.sort(expected), atol=1e-12)
    assert not (masks[0] & masks[1]).any()


@pytest.mark.parametrize(
    ("propensity", "grid", "error", "remedy"),
    [
        (np.ones((1, 1, 3)), np.ones(3), MismatchError, "Sweep more"),
        (np.array([[[0.0, np.nan]]]), np.arange(2.0), NotFiniteError, r"\(0, 0, 1\).*wider dtype"),
        (np.ones((1, 1, 2)), np.array([0, np.inf]), NotFiniteError, "Mend the grid"),
    ],
)
def test_what_has_no_slope_says_what_to_do(propensity, grid, error, remedy):
    with pytest.raises(error, match=remedy):
        slopes(propensity, grid)


def test_the_examples_run():
    assert doctest.testmod(sys.modules[slopes.__module__]).failed == 0
