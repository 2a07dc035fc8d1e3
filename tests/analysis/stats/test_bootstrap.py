"""Bootstrap means and tied ranks equal their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from actcache.analysis.stats import bootstrap
from actcache.analysis.stats.bootstrap import average_ranks, bootstrap_means, interval
from actcache.errors import MismatchError
from tests.reference.stats import ranks

coarse = st.integers(-3, 3).map(float) | st.floats(-9, 9, width=16)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=coarse))
def test_ranks_equal_the_definition_and_scipys(values):
    expected = [ranks(list(column)) for column in values.T]
    np.testing.assert_array_equal(average_ranks(values), np.transpose(expected))
    np.testing.assert_array_equal(average_ranks(values), rankdata(values, axis=0))


def test_bootstrap_means_are_means_of_resampled_rows_however_they_are_chunked(monkeypatch):
    values = rng(1).normal(size=(20, 3))
    rows = rng(9).integers(20, size=(40, 20))
    expected = np.array([values[r].mean(0) for r in rows])

    np.testing.assert_allclose(bootstrap_means(values, rng(9), draws=40), expected)
    monkeypatch.setattr(bootstrap, "_CHUNK", 60)
    np.testing.assert_allclose(bootstrap_means(values, rng(9), draws=40), expected)


def test_the_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    values = rng(5).normal(size=(60, 2000))  # 2000 experiments, true mean 0
    low, high = interval(bootstrap_means(values, rng(6), draws=400), level=0.9).T
    # The percentile interval of 60 normal values covers 0.89; 2000 experiments scatter by 0.007.
    assert abs(((low < 0) & (high > 0)).mean() - 0.89) < 0.03


def test_no_draw_or_no_row_is_refused():
    for values, draws in ((np.ones((0, 1)), 5), (np.ones((2, 1)), 0)):
        with pytest.raises(MismatchError, match="draws of at least 1"):
            bootstrap_means(values, rng(), draws=draws)
