"""Bootstrap means, intervals and tied ranks, each over all columns at once."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from actcache.errors import MismatchError

_CHUNK = 2**21  # counts drawn at a time: bounds memory to some 50 MB, whatever n and draws are


@dataclass(frozen=True)
class Interval:
    """A mean over samples and its bootstrap interval."""

    value: float
    """The mean itself, not the bootstrap's."""

    low: float
    high: float

    def __str__(self) -> str:
        # A mean of differences that cancel leaves 1e-18, which is 0 to a reader. Digits beyond the
        # interval's own say nothing: it is written with two.
        value, low, high = (round(x, 12) + 0.0 for x in (self.value, self.low, self.high))
        if not 0 < high - low < math.inf:
            return f"{value:.3g} [{low:.3g}, {high:.3g}]"
        digits = max(0, 1 - math.floor(math.log10(high - low)))
        # Adding 0 turns a rounded -0.0 into 0.
        shown = [f"{round(x, digits) + 0.0:.{digits}f}" for x in (value, low, high)]
        return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def bootstrap_means(
    values: Float[np.ndarray, "n column"], rng: np.random.Generator, *, draws: int = 1000
) -> Float64[np.ndarray, "draws column"]:
    """Column means of `draws` resamples of the rows, with replacement.

    Counts how often each row is drawn; a matmul with the counts gives all means of a chunk of
    draws, so that no resample is ever copied. Rows are drawn whole, so columns stay paired.
    """
    n = len(values)
    if n == 0 or draws < 1:
        raise MismatchError(
            f"{draws} bootstrap draws of {n} samples were asked for, expected one or more of both. "
            f"Check the split, and pass draws of at least 1."
        )
    chunk = max(1, _CHUNK // n)
    means = np.empty((draws, values.shape[1]))
    columns = np.asarray(values, np.float64)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        # Row numbers, shifted by n a draw: one bincount then counts all draws at once.
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts @ columns / n
    return means


def interval(
    means: Float64[np.ndarray, " draws *column"], *, level: float = 0.95
) -> Float64[np.ndarray, "*column 2"]:
    """Percentile interval of each column: the middle `level` of the draws."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([low, high], axis=-1)


def mean_intervals(
    values: Float[np.ndarray, "n column"],
    rng: np.random.Generator,
    *,
    draws: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """Mean of each column with its bootstrap interval."""
    drawn = bootstrap_means(values, rng, draws=draws)
    return estimates(np.asarray(values, np.float64).mean(0), drawn, level=level)


def estimates(
    mean: Float64[np.ndarray, " column"],
    drawn: Float64[np.ndarray, "draws column"],
    *,
    level: float = 0.95,
) -> list[Interval]:
    """Each column's mean with the interval of its draws."""
    bounds = interval(drawn, level=level)
    return [Interval(float(m), float(b[0]), float(b[1])) for m, b in zip(mean, bounds, strict=True)]


def average_ranks(values: Float[np.ndarray, " n *column"]) -> Float64[np.ndarray, " n *column"]:
    """Rank of each value within its column, from 1; equal values share their mean rank.

    The same as `scipy.stats.rankdata(values, axis=0)`, without SciPy's import time.
    """
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    n = len(values)
    place = np.arange(n, dtype=np.float64).reshape(-1, *([1] * (values.ndim - 1)))
    new = np.ones(values.shape, bool)  # whether a run of equal values begins
    new[1:] = ordered[1:] != ordered[:-1]
    last = np.ones(values.shape, bool)  # whether it ends
    last[:-1] = new[1:]
    # The place of a run's first and last value, carried along the run.
    first_place = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    last_place = np.minimum.accumulate(np.where(last, place, n)[::-1], axis=0)[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first_place + last_place) / 2 + 1, axis=0)
    return ranks
