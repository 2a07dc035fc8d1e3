"""Moments equal their definition however rows are cut, laid out and labelled."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from actcache.analysis.stats import moments
from actcache.analysis.stats.moments import Moments, class_moments
from actcache.errors import MismatchError, NotFiniteError
from tests.reference import stats as reference


@st.composite
def labelled(draw):
    """Residuals of some dtype and memory order, labels with skips and empty classes, and cuts."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    value = st.floats(-1000, 1000, width=16) | st.integers(-3, 3).map(float)
    resid = draw(arrays(dtype, shape, elements=value))
    order = draw(st.sampled_from(["samples first", "layers first", "neither"]))
    if order == "layers first":  # as a shard has them
        resid = np.ascontiguousarray(resid.transpose(1, 0, 2)).transpose(1, 0, 2)
    elif order == "neither":
        resid = np.asfortranarray(resid)
    n_classes = draw(st.integers(1, 4))
    labels = draw(arrays(np.int64, shape[:1], elements=st.integers(-1, n_classes - 1)))
    cuts = sorted(draw(st.lists(st.integers(0, shape[0]), max_size=4)))
    return resid, labels, n_classes, cuts


def cut(resid, labels, cuts):
    return list(zip(np.split(resid, cuts), np.split(labels, cuts), strict=True))


def assert_equal(computed: Moments, count, mean, scatter, *, size):
    np.testing.assert_array_equal(computed.count, count)
    assert (computed.scatter >= 0).all()
    # Sums of up to 64 rows are float32: a few of its last digits (6e-8), relative to what is summed.
    np.testing.assert_allclose(computed.mean, mean, rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(computed.scatter, scatter, rtol=1e-5, atol=1e-12 * size**2)


@given(labelled())
def test_equals_the_definition_however_rows_are_batched(drawn):
    resid, labels, n_classes, cuts = drawn
    expected = reference.class_moments(resid, labels, n_classes)
    size = float(np.abs(resid).max())

    assert_equal(class_moments(cut(resid, labels, cuts), n_classes), *expected, size=size)


@given(labelled(), st.integers(1, 4), st.integers(1, 12))
def test_equals_the_definition_however_tiles_are_cut(drawn, rows, tile):
    resid, labels, n_classes, cuts = drawn
    expected = reference.class_moments(resid, labels, n_classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_TILE_ROWS", rows)
        patch.setattr(moments, "_TILE", tile)
        computed = class_moments(cut(resid, labels, cuts), n_classes)

    assert_equal(computed, *expected, size=float(np.abs(resid).max()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equals_numpy_on_many_rows_and_wide_layers(dtype):
    rng = np.random.default_rng(0)
    resid = rng.normal(3, 2, size=(700, 2, 5000)).astype(dtype)
    labels = rng.integers(3, size=700)
    computed = class_moments(cut(resid, labels, [256, 512]), 3)

    for k in range(3):
        wide = resid[labels == k].astype(np.float64)
        np.testing.assert_allclose(computed.mean[k], wide.mean(0), atol=2e-6)
        np.testing.assert_allclose(computed.variance[k], wide.var(0, ddof=1), rtol=5e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_threads_change_no_bit(threads, monkeypatch):
    resid = np.random.default_rng(0).normal(3, 2, size=(50, 3, 40)).astype(np.float16)
    labels = np.arange(50) % 2
    alone = class_moments([(resid, labels)], 2, threads=1)
    monkeypatch.setattr(moments, "_MIN_THREADED", 1)
    computed = class_moments([(resid, labels)], 2, threads=threads)

    np.testing.assert_array_equal(computed.mean, alone.mean)
    np.testing.assert_array_equal(computed.scatter, alone.scatter)


def test_a_thread_that_meets_an_infinity_says_so(monkeypatch):
    monkeypatch.setattr(moments, "_MIN_THREADED", 1)
    resid = np.ones((4, 3, 2), np.float16)
    resid[2, 2, 1] = np.inf
    with pytest.raises(NotFiniteError):
        class_moments([(resid, np.zeros(4, int))], 1, threads=3)


def test_nothing_cancels_where_a_mean_is_large_beside_its_spread():
    rng = np.random.default_rng(1)
    resid = (1e5 + rng.normal(size=(500, 1, 40))).astype(np.float32)
    labels = np.zeros(500, int)
    computed = class_moments(cut(resid, labels, [100, 300]), 1)
    wide = resid.astype(np.float64)

    np.testing.assert_allclose(computed.mean[0], wide.mean(0), rtol=1e-10)
    np.testing.assert_allclose(computed.variance[0], wide.var(0, ddof=1), rtol=1e-5)
    # and it would cancel: the textbook formula in float32 has no digit left
    textbook = (resid**2).mean(0) - resid.mean(0) ** 2
    assert np.abs(textbook - wide.var(0)).max() > 1


def test_float64_residuals_keep_their_digits():
    resid = 1e6 + np.random.default_rng(1).normal(size=(100, 1, 4)) * 1e-3
    computed = class_moments(cut(resid, np.zeros(100, int), [40]), 1)

    np.testing.assert_allclose(computed.variance[0], resid.var(0, ddof=1), rtol=1e-8)
    assert np.ptp(resid.astype(np.float32)) == 0  # in float32 there is nothing to see


def test_an_outlier_as_first_row_and_a_drift_between_batches_do_no_harm():
    rng = np.random.default_rng(2)
    resid = rng.normal(size=(400, 1, 20)).astype(np.float32)
    resid[0] = 1000
    resid[200:] += 300
    computed = class_moments(cut(resid, np.zeros(400, int), [100, 200, 300]), 1)
    wide = resid.astype(np.float64)

    np.testing.assert_allclose(computed.mean[0], wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(computed.variance[0], wide.var(0, ddof=1), rtol=1e-5)


@given(labelled(), st.integers(0, 6))
def test_merged_moments_equal_those_of_one_pass(drawn, at):
    resid, labels, n_classes, _ = drawn
    at = min(at, len(resid) - 1)
    parts = [
        class_moments([(resid[rows], labels[rows])], n_classes)
        for rows in (slice(at, None), slice(at))
    ]
    expected = reference.class_moments(resid, labels, n_classes)

    before = parts[0].mean.copy(), parts[0].scatter.copy()
    merged = parts[0].merge(parts[1])

    assert_equal(merged, *expected, size=float(np.abs(resid).max()))
    np.testing.assert_array_equal((parts[0].mean, parts[0].scatter), before)


def test_moments_of_other_shapes_do_not_merge():
    one = class_moments([(np.ones((1, 2, 3), np.float32), np.array([0]))], 1)
    other = class_moments([(np.ones((1, 2, 4), np.float32), np.array([0]))], 1)
    with pytest.raises(MismatchError, match="of one model"):
        one.merge(other)


def test_a_skipped_row_is_not_even_looked_at():
    resid = np.ones((3, 1, 2), np.float32)
    resid[1] = np.nan
    labels = np.array([0, -1, 0])

    assert np.isfinite(class_moments([(resid, labels)], 1).mean).all()
    with pytest.raises(NotFiniteError, match="actcache verify"):
        class_moments([(resid, np.array([0, 0, 0]))], 1)


def test_batches_are_taken_one_at_a_time():
    alive: list[bool] = []

    def batches():
        for _ in range(3):
            assert not alive, "the batch before is still held"
            alive.append(True)
            yield np.ones((2, 1, 1), np.float32), np.zeros(2, int)
            alive.clear()

    assert class_moments(batches(), 1).count[0] == 6


@pytest.mark.parametrize(
    ("batches", "remedy"),
    [
        ([], "Pass samples"),
        ([(np.ones((1, 1, 1), np.float32), np.array([2]))], "Pass n_classes=3"),
        ([(np.ones((1, 1, 1), np.float32), np.array([-2]))], "no label below -1"),
        (
            [
                (np.ones((1, 1, 1), np.float32), np.array([0])),
                (np.ones((1, 2, 1), np.float32), np.array([0])),
            ],
            "batches of one model",
        ),
        ([(np.ones((2, 1, 1), np.float32), np.array([0]))], "one label a sample"),
    ],
)
def test_what_cannot_be_summed_says_what_to_do(batches, remedy):
    with pytest.raises(MismatchError, match=remedy):
        class_moments(iter(batches), 2)


def test_the_examples_run():
    assert doctest.testmod(moments).failed == 0
