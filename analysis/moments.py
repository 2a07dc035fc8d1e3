"""Count, mean and scatter of each class at every layer, in one pass over the residuals.

All that directions and variances need of the residuals, in memory that does not grow with the
number of samples. Refuses to know where batches come from and what classes mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Shaped

from actcache.analysis.halves import float32_of
from actcache.errors import MismatchError, NotFiniteError

_TILE_ROWS = 64  # rows summed in float32 before float64 takes over
_TILE = 2**18  # elements at a time: they stay in a core's cache while they are summed and squared


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What `class_moments` saw of each class."""

    count: Int64[np.ndarray, " k"]
    """Samples of each class."""

    mean: Float64[np.ndarray, "k layer d_model"]
    """Mean residual of each class; zero for a class without samples."""

    scatter: Float64[np.ndarray, "k layer d_model"]
    """Sum of squared deviations from the class's mean, coordinate by coordinate."""

    @property
    def variance(self) -> Float64[np.ndarray, "k layer d_model"]:
        """Unbiased variance of each coordinate (divisor count - 1); zero below two samples."""
        return np.asarray(self.scatter / np.maximum(self.count - 1, 1)[:, None, None])

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of samples together, as if one pass had seen them all.

        Args:
            other: moments over the same classes, layers and width, of other samples.

        Raises:
            MismatchError: classes, layers or width differ.
        """
        if self.mean.shape != other.mean.shape:
            raise MismatchError(
                f"moments of [classes, layers, d_model] {other.mean.shape} cannot join moments of "
                f"{self.mean.shape}. Merge moments of one model and one set of classes."
            )
        count, mean, scatter = _merged(
            (self.count, self.mean, self.scatter), (other.count, other.mean, other.scatter)
        )
        return Moments(count=count, mean=mean, scatter=scatter)


def class_moments(
    batches: Iterable[tuple[Float[np.ndarray, "_ layer d_model"], Int[np.ndarray, " _"]]],
    n_classes: int,
) -> Moments:
    """Accumulate count, mean and scatter of each class over `batches`.

    Each batch is read once. Within it, up to 64 rows at a time are summed by a float32 matmul after
    the class's running mean was subtracted, so nothing cancels where a mean is large beside its
    spread; all further sums are float64. Batches merge by the pairwise update of Chan, Golub &
    LeVeque, "Algorithms for computing the sample variance" (1983). So how rows are cut into batches
    changes nothing beyond rounding. For contrast pairs pass the differences.

    Args:
        batches: pairs of residuals `[b, layer, d_model]` (float16, float32; float64 stays float64)
            and class labels `[b]`, as `Residuals.batches` and a column give them. A row labelled -1
            is skipped. Memory order is free: samples first or layers first. One batch is held at a
            time.
        n_classes: number of classes `k`; labels run from 0 to `k - 1`.

    Returns:
        The moments. A class without samples has count 0, mean 0 and scatter 0.

    Raises:
        MismatchError: a label outside -1 … `n_classes - 1`, batches that differ in layers or width
            or lack a label for some row, or no batch at all.
        NotFiniteError: a residual of a row that counts is infinite or not a number.

    Example:
        >>> resid = np.array([[[1.0]], [[3.0]], [[10.0]]], np.float16)  # 3 samples, 1 layer
        >>> class_moments([(resid, np.array([0, 0, 1]))], n_classes=2).mean[:, 0, 0]
        array([ 2., 10.])
    """
    count = np.zeros(n_classes, np.int64)
    mean: Float64[np.ndarray, "k layer d_model"] | None = None
    for resid, labels in batches:
        if mean is None:
            mean = np.zeros((n_classes, *resid.shape[1:]))
            scatter = np.zeros_like(mean)
        _check(resid, labels, shape=mean.shape)
        if labels.size and labels.min() < 0:
            resid, labels = resid[labels >= 0], labels[labels >= 0]
        if labels.size == 0:
            continue
        present, first, codes = np.unique(labels, return_index=True, return_inverse=True)
        old = count[present], mean[present], scatter[present]
        # A class's first row is one of those summed, so its deviation bounds the class's scatter
        # from below: even an outlier as pivot costs at most a few digits of float32.
        dtype = np.result_type(resid.dtype, np.float32)
        pivot = np.where(old[0][:, None, None] > 0, old[1], resid[first]).astype(dtype)
        batch = _batch_moments(resid, codes, pivot=pivot)
        count[present], mean[present], scatter[present] = _merged(old, batch)
    if mean is None:
        raise MismatchError("no batch of residuals was given, expected one or more. Pass samples.")
    if not np.isfinite(mean).all():
        k, layer, column = (int(i) for i in np.argwhere(~np.isfinite(mean))[0])
        raise NotFiniteError(
            f"a residual of class {k} at layer {layer}, coordinate {column} is not finite. "
            f"Find it with: actcache verify"
        )
    return Moments(count=count, mean=mean, scatter=scatter)


_Parts = tuple[
    Int64[np.ndarray, " k"],
    Float64[np.ndarray, "k layer d_model"],
    Float64[np.ndarray, "k layer d_model"],
]


def _merged(old: _Parts, new: _Parts) -> _Parts:
    """Counts, means and scatters of two disjoint sets of samples together (Chan et al.)."""
    count = old[0] + new[0]
    weight = (new[0] / np.maximum(count, 1))[:, None, None]  # of the new samples; 0 of none
    step = new[1] - old[1]
    mean = old[1] + weight * step
    step *= step
    step *= weight * old[0][:, None, None]
    step += old[2]
    step += new[2]
    return count, mean, step


def _batch_moments(
    resid: Float[np.ndarray, "b layer d_model"],
    codes: Int[np.ndarray, " b"],
    *,
    pivot: Float[np.ndarray, "k layer d_model"],
) -> _Parts:
    """Moments of one batch whose rows have the class `codes`, all of them present."""
    if not resid[:, 0].flags.c_contiguous:  # samples first in memory, or nothing that helps
        resid = np.ascontiguousarray(resid)
    total = np.zeros(pivot.shape)
    squares = np.zeros(pivot.shape)
    at_once = min(_TILE_ROWS, max(1, _TILE // resid.shape[2]))
    for k in range(len(pivot)):
        members = np.flatnonzero(codes == k)
        for start in range(0, len(members), at_once):
            rows = members[start : start + at_once]
            _add_rows(total[k], squares[k], resid, rows, pivot=pivot[k])
    count = np.bincount(codes, minlength=len(pivot)).astype(np.int64)
    total /= count[:, None, None]  # mean deviation from the pivot
    squares -= count[:, None, None] * total * total
    np.maximum(squares, 0, out=squares)  # rounding only: a scatter is not negative
    total += pivot
    return count, total, squares


def _add_rows(
    total: Float64[np.ndarray, "layer d_model"],
    squares: Float64[np.ndarray, "layer d_model"],
    resid: Float[np.ndarray, "b layer d_model"],
    rows: Int[np.ndarray, " r"],
    *,
    pivot: Float[np.ndarray, "layer d_model"],
) -> None:
    """Add the deviations of `rows` from the pivot, and their squares, in place."""
    n_layers, d_model = pivot.shape
    ones = np.ones(len(rows), pivot.dtype)
    deviation = np.empty((len(rows), d_model), pivot.dtype)
    is_run = rows[-1] - rows[0] == len(rows) - 1
    samples_first = resid.flags.c_contiguous
    for layer in range(n_layers):  # block by block as they lie in memory, each within the cache
        if is_run:
            tile = resid[rows[0] : rows[-1] + 1, layer]
        elif samples_first:
            tile = resid.reshape(-1, d_model).take(rows * n_layers + layer, axis=0)
        else:
            tile = resid[:, layer].take(rows, axis=0)
        if tile.dtype == np.float16:
            tile = float32_of(tile, out=deviation)
        np.subtract(tile, pivot[layer], out=deviation)
        total[layer] += ones @ deviation
        np.multiply(deviation, deviation, out=deviation)
        squares[layer] += ones @ deviation


def _check(
    resid: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], *, shape: tuple[int, ...]
) -> None:
    n_classes = shape[0]
    if resid.shape[1:] != shape[1:]:
        raise MismatchError(
            f"a batch has [layers, d_model] {resid.shape[1:]}, the first one {shape[1:]}. "
            f"Pass batches of one model."
        )
    if labels.shape != resid.shape[:1]:
        raise MismatchError(
            f"a batch of {len(resid)} samples came with labels of shape {labels.shape}. "
            f"Pass one label a sample."
        )
    if labels.size and not (labels.min() >= -1 and labels.max() < n_classes):
        raise MismatchError(
            f"labels run from {labels.min()} to {labels.max()}, but n_classes={n_classes} allows "
            f"-1 (skip) to {n_classes - 1}. Pass n_classes={max(labels.max() + 1, n_classes)} "
            f"and no label below -1."
        )
