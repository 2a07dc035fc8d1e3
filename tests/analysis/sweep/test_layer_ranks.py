import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.sweep import layer_ranks as labels
from actcache.analysis.sweep.layer_ranks import (
    active_layers,
    best_layers,
    layer_frequencies,
    ranked_layers,
    smoothed_labels,
)
from actcache.errors import MismatchError, NotFiniteError
from tests.reference import sweep as reference

# Few distinct values, so that ties are common.
TABLES = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-2, 2).map(float))
)


@given(TABLES, st.data())
def test_ranks_are_those_of_the_loop(slope, data):
    rank = data.draw(st.integers(1, slope.shape[1]))
    expected = [reference.layers_by_slope(row)[rank - 1] for row in slope]
    np.testing.assert_array_equal(ranked_layers(slope, rank=rank), expected)


@given(TABLES)
def test_the_best_layer_is_the_first_with_the_largest_slope(slope):
    np.testing.assert_array_equal(best_layers(slope), slope.argmax(1))


@given(TABLES, st.data())
def test_smoothed_labels_are_those_of_the_loop(slope, data):
    top = data.draw(st.integers(1, min(3, slope.shape[1])))
    n_train = data.draw(st.integers(1, len(slope)))
    frequency = layer_frequencies(slope[:n_train])
    np.testing.assert_allclose(frequency, reference.frequencies(slope[:n_train]), rtol=1e-15)
    expected = [reference.smoothed_label(row, top, frequency) for row in slope]
    np.testing.assert_array_equal(smoothed_labels(slope, top=top, frequency=frequency), expected)


@given(TABLES)
def test_smoothing_over_one_layer_changes_nothing(slope):
    smoothed = smoothed_labels(slope, top=1, frequency=layer_frequencies(slope))
    np.testing.assert_array_equal(smoothed, best_layers(slope))


@given(TABLES)
def test_smoothing_over_all_layers_leaves_one(slope):
    smoothed = smoothed_labels(slope, top=slope.shape[1], frequency=layer_frequencies(slope))
    frequency = layer_frequencies(slope)
    np.testing.assert_array_equal(frequency[smoothed], frequency.max())


def test_among_equal_frequencies_the_larger_slope_decides():
    slope = np.array([[0.1, 0.5, 0.9], [0.9, 0.5, 0.1]])
    frequency = np.array([0.25, 0.5, 0.25])
    np.testing.assert_array_equal(smoothed_labels(slope, top=2, frequency=frequency), [1, 1])
    even = np.full(3, 1 / 3)
    np.testing.assert_array_equal(smoothed_labels(slope, top=2, frequency=even), [2, 0])


def test_active_layers_are_those_that_occur():
    np.testing.assert_array_equal(active_layers(np.array([5, 2, 5, 9])), [2, 5, 9])


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_there_is_no_layer_for_is_refused(rank):
    with pytest.raises(MismatchError, match="Pass a smaller one, or sweep more layers"):
        ranked_layers(np.zeros((2, 3)), rank=rank)


def test_a_slope_that_is_not_finite_is_named():
    slope = np.zeros((4, 3))
    slope[2, 1] = np.nan
    with pytest.raises(NotFiniteError, match="sample 2 at layer place 1 is nan"):
        best_layers(slope)


def test_no_sample_has_no_frequencies():
    with pytest.raises(MismatchError, match="Give rows to the train split"):
        layer_frequencies(np.zeros((0, 3)))


def test_the_examples_hold():
    assert doctest.testmod(labels).failed == 0
