"""Directions: the difference of means and its theorems, units, random stand-ins, angles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.directions.difference_of_means import (
    cosine,
    difference_of_means,
    random_directions,
    unit,
)
from actcache.analysis.stats.moments import class_moments
from actcache.errors import MismatchError
from tests.reference import stats as reference

LABELS = np.array([0, 1, 1, 0, 1, 0, 0])


def residuals(seed=0, n=7):
    return np.random.default_rng(seed).normal(size=(n, 3, 8)).astype(np.float32)


def directions(resid, labels=LABELS, **which):
    moments = class_moments([(resid, labels)], 2)
    return difference_of_means(moments, **(which or {"positive": 1, "negative": 0}))


def test_the_difference_of_means_is_what_it_says():
    resid = residuals()
    _, mean, _ = reference.class_moments(resid, LABELS, 2)
    np.testing.assert_allclose(directions(resid), mean[1] - mean[0], rtol=1e-5, atol=1e-6)
    assert directions(resid).dtype == np.float32


def test_a_constant_added_to_all_residuals_changes_nothing():
    resid, constant = residuals(), residuals(1, n=1)
    np.testing.assert_allclose(directions(resid + constant), directions(resid), atol=1e-6)
    # and it bites: added to one class, it is the whole change
    moved = resid + constant * LABELS[:, None, None]
    np.testing.assert_allclose(directions(moved), directions(resid) + constant[0], atol=1e-6)


def test_swapping_the_classes_negates():
    resid = residuals()
    swapped = directions(resid, positive=0, negative=1)
    np.testing.assert_array_equal(swapped, -directions(resid))


def test_the_order_of_rows_changes_nothing():
    resid, order = residuals(), np.random.default_rng(3).permutation(len(LABELS))
    permuted = directions(resid[order], LABELS[order])
    np.testing.assert_allclose(permuted, directions(resid), atol=1e-6)
    # and it bites: with the labels left behind, something changes
    assert np.abs(directions(resid[order]) - directions(resid)).max() > 0.1


def test_class_means_projected_on_it_differ_by_its_squared_norm():
    resid = residuals()
    d = directions(resid)
    projection = np.einsum("nld,ld->nl", resid, d)
    gap = projection[LABELS == 1].mean(0) - projection[LABELS == 0].mean(0)
    np.testing.assert_allclose(gap, (d**2).sum(-1), rtol=1e-5)


def test_for_contrast_pairs_it_is_the_mean_of_the_differences():
    positive, negative = residuals(4), residuals(5)
    pairs = class_moments([(positive - negative, np.zeros(len(positive), int))], 1)
    both = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], len(positive))
    np.testing.assert_allclose(directions(both, labels), pairs.mean[0], atol=1e-6)


@pytest.mark.parametrize(
    ("positive", "negative", "remedy"),
    [(3, 0, "Pass one of them"), (2, 0, "train split"), (1, 1, "Pass two classes")],
)
def test_classes_that_give_no_direction_are_refused(positive, negative, remedy):
    moments = class_moments([(residuals(), LABELS)], 3)
    with pytest.raises(MismatchError, match=remedy):
        difference_of_means(moments, positive=positive, negative=negative)


def test_a_unit_direction_has_norm_one_and_zero_stays_zero():
    d = residuals()[0]
    d[1] = 0
    scaled = unit(d)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(scaled[0] * np.linalg.norm(d[0]), d[0], rtol=1e-6)
    assert scaled.dtype == np.float32


def test_random_directions_keep_the_norm_and_nothing_else():
    d = np.random.default_rng(0).normal(size=(4, 2000)).astype(np.float32) * [[1], [0], [10], [100]]
    d = d.astype(np.float32)
    drawn = random_directions(d, np.random.default_rng(1), count=30)

    norm = np.linalg.norm(d, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), np.tile(norm, (30, 1)), rtol=1e-5)
    # Cosines of independent directions scatter by 1/sqrt(2000) = 0.022 about 0.
    cosines = [cosine(drawn[:, layer], drawn[:, layer]) for layer in (0, 2, 3)]
    apart = np.array([c[~np.eye(30, dtype=bool)] for c in cosines])
    assert np.abs(apart).max() < 0.15
    assert abs(apart.std() - 2000**-0.5) < 0.003
    again = random_directions(d, np.random.default_rng(1), count=30)
    np.testing.assert_array_equal(again, drawn)


@settings(deadline=None)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=16)),
    arrays(np.float32, (2, 4), elements=st.floats(-9, 9, width=16)),
)
def test_cosines_equal_the_definition(a, b):
    expected = [[reference.cosine(x, y) for y in b] for x in a]
    np.testing.assert_allclose(cosine(a, b), expected, atol=1e-6)
