"""Count, mean and scatter of each class at every layer, in one pass over the residuals.

All that directions and variances need of the residuals, in memory that does not grow with the
number of samples.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float64, Int, Int64, Shaped

from actcache.analysis.stats.float16 import to_float32
from actcache.errors import MismatchError, NotFiniteError

_TILE_ROWS = 64  # rows summed in float32; sums of these sums are float64
_TILE = 2**17  # elements at a time: they stay in a core's cache while they are summed and squared
_PIVOTS = 8  # rows that a pivot is subtracted from at once: NumPy is faster at long ones
_MIN_THREADED = 2**21  # elements of a batch and class; below, threads cost more than they save


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and scatter of each class."""

    count: Int64[np.ndarray, " k"]
    """Samples of each class."""

    mean: Float64[np.ndarray, "k layer d_model"]
    """Mean residual of each class; zero for a class without samples."""

    scatter: Float64[np.ndarray, "k layer d_model"]
    """Sum of squared deviations from the class's mean, coordinate by coordinate; zero likewise."""

    @property
    def variance(self) -> Float64[np.ndarray, "k layer d_model"]:
        """Unbiased variance of each coordinate (divisor count - 1); zero below two samples."""
        return np.asarray(self.scatter / np.maximum(self.count - 1, 1)[:, None, None])

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of samples together, as if one pass had read them all."""
        classes = np.arange(len(self.count))
        return merge_moments([(classes, self), (classes, other)], len(classes))


def merge_moments(
    parts: Iterable[tuple[Int64[np.ndarray, " c"], Moments]], n_classes: int
) -> Moments:
    """Merge the moments of parts of the samples, in order, one part in memory at a time.

    Args:
        parts: each names its classes, and has their moments. Their order decides the last bits.
        n_classes: number of classes `k`; those of a part are from 0 to `k - 1`.

    Raises:
        MismatchError: moments of other layers or widths, or no part.
    """
    count, mean, scatter = np.zeros(n_classes, np.int64), np.zeros(0), np.zeros(0)
    for classes, part in parts:
        shape = (n_classes, *part.mean.shape[1:])
        if not mean.size:
            mean, scatter = np.zeros(shape), np.zeros(shape)
        if mean.shape != shape or len(classes) != len(part.count):
            raise MismatchError(
                f"moments of [classes, layers, d_model] {part.mean.shape} cannot join moments of "
                f"{mean.shape}. Merge moments of one model and one set of classes."
            )
        for place, k in enumerate(classes.tolist()):
            if count[k] == 0:
                mean[k], scatter[k] = part.mean[place], part.scatter[place]
            else:
                both = int(count[k]), int(part.count[place])
                _merge_into(mean[k], scatter[k], part.mean[place], part.scatter[place], count=both)
            count[k] += part.count[place]
        del part  # before the next one is made
    if not mean.size:
        raise MismatchError("no moments were given, expected one part or more. Pass samples.")
    return Moments(count=count, mean=mean, scatter=scatter)


def class_moments(
    batches: Iterable[tuple[Float[np.ndarray, "_ layer d_model"], Int[np.ndarray, " _"]]],
    n_classes: int,
    *,
    threads: int | None = None,
) -> Moments:
    """Accumulate count, mean and scatter of each class over `batches`.

    Each batch is read once. Within it, up to 64 rows at a time are summed in float32 after the
    class's running mean was subtracted, so nothing cancels where a mean is large beside its
    spread; all further sums are float64. Batches merge by the pairwise update of Chan, Golub &
    LeVeque, "Algorithms for computing the sample variance" (1983). So how rows are cut into batches
    changes nothing beyond rounding. For contrast pairs pass the differences.

    Args:
        batches: pairs of residuals `[b, layer, d_model]` (float16, float32; float64 stays float64)
            and class labels `[b]`, as `Residuals.batches` and a column give them. A row labelled -1
            is skipped. Memory order may be samples first or layers first. One batch is held at a
            time.
        n_classes: number of classes `k`; labels run from 0 to `k - 1`.
        threads: threads that share the layers of a large batch; by default one for each processor
            of this process, up to 4. The result does not depend on it.

    Raises:
        NotFiniteError: a residual of a row that counts is infinite or not a number.

    Example:
        >>> resid = np.array([[[1.0]], [[3.0]], [[10.0]]], np.float16)  # 3 samples, 1 layer
        >>> class_moments([(resid, np.array([0, 0, 1]))], n_classes=2).mean[:, 0, 0]
        array([ 2., 10.])
    """
    count = np.zeros(n_classes, np.int64)
    mean: Float64[np.ndarray, "k layer d_model"] | None = None
    threads = _default_threads() if threads is None else threads
    with ThreadPoolExecutor(threads) as pool:  # starts no thread before the first task
        for resid, labels in batches:
            if mean is None:
                mean = np.zeros((n_classes, *resid.shape[1:]))
                scatter = np.zeros_like(mean)
            _check(resid, labels, shape=mean.shape)
            if not resid[:, 0].flags.c_contiguous:  # samples first, or neither order
                resid = np.ascontiguousarray(resid)
            for k in np.unique(labels[labels >= 0]):
                rows = np.flatnonzero(labels == k)
                add = partial(_add_rows, mean[k], scatter[k], resid, rows, count=int(count[k]))
                large = len(rows) * mean[k].size >= _MIN_THREADED
                parts = np.array_split(np.arange(resid.shape[1]), threads if large else 1)
                waiting = [pool.submit(add, layers) for layers in parts[1:]]
                add(parts[0])
                for done in waiting:
                    done.result()
                count[k] += len(rows)
    if mean is None:
        raise MismatchError("no batch of residuals was given, expected one or more. Pass samples.")
    if not np.isfinite(mean).all():
        _, layer, column = np.argwhere(~np.isfinite(mean))[0].tolist()
        raise NotFiniteError(
            f"a residual at layer {layer}, coordinate {column} is not finite. "
            f"Find it with: actcache verify"
        )
    return Moments(count=count, mean=mean, scatter=scatter)


def _default_threads() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cpus or 1, 4)


def _add_rows(
    mean: Float64[np.ndarray, "layer d_model"],
    scatter: Float64[np.ndarray, "layer d_model"],
    resid: Float[np.ndarray, "b layer d_model"],
    rows: Int[np.ndarray, " r"],
    layers: Int[np.ndarray, " l"],
    *,
    count: int,
) -> None:
    """Add `rows` of a batch to the moments of one class, which has `count` samples so far."""
    n_layers, d_model = mean.shape
    dtype = np.result_type(resid.dtype, np.float32)
    at_once = min(_TILE_ROWS, max(1, _TILE // d_model), len(rows))
    parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    # Buffers are reused: allocating fresh ones for each tile would cost more than the sums.
    deviation = np.empty((at_once, d_model), dtype)
    gathered = deviation if resid.dtype == dtype else np.empty(deviation.shape, resid.dtype)
    pivots = np.empty((_PIVOTS, d_model), dtype)
    samples_first = resid.flags.c_contiguous
    for layer in layers:  # tile by tile as they lie in memory, each within the cache
        # Deviations from a pivot near the mean cancel nothing in float32. The pivot is the running
        # mean; at first the class's first row, which is one of those summed, so its deviation
        # bounds the scatter from below: an outlier as pivot costs a few digits, for one batch.
        pivots[:] = mean[layer] if count else resid[rows[0], layer]
        total, squares = np.zeros(d_model), np.zeros(d_model)
        for part in parts:
            flat = deviation[: len(part)]
            if part[-1] - part[0] == len(part) - 1:
                tile = resid[part[0] : part[-1] + 1, layer]
            else:
                tile = gathered[: len(part)]
                if samples_first:
                    source, places = resid.reshape(-1, d_model), part * n_layers + layer
                else:
                    source, places = resid[:, layer], part
                source.take(places, axis=0, out=tile, mode="clip")  # other modes write twice
            if tile.dtype == np.float16:
                tile = to_float32(tile, out=flat)
            _subtract(tile, pivots, out=flat)
            total += np.add.reduce(flat, axis=0)
            np.square(flat, out=flat)
            squares += np.add.reduce(flat, axis=0)
        total /= len(rows)  # mean deviation from the pivot
        squares -= len(rows) * total * total  # about the rows' own mean (Steiner)
        _merge_into(
            mean[layer], scatter[layer], pivots[0] + total, squares, count=(count, len(rows))
        )


def _subtract(
    tile: Float[np.ndarray, "r d_model"],
    pivots: Float[np.ndarray, "p d_model"],
    *,
    out: Float[np.ndarray, "r d_model"],
) -> None:
    """Subtract the pivot, which each row of `pivots` holds, from each row of the tile."""
    if len(tile) % len(pivots) or not tile.flags.c_contiguous:
        np.subtract(tile, pivots[0], out=out)
    else:
        long = (-1, pivots.size)  # several rows as one: NumPy's inner loop runs longer
        np.subtract(tile.reshape(long), pivots.reshape(-1), out=out.reshape(long))


def _merge_into(
    mean: Float64[np.ndarray, "*shape"],
    scatter: Float64[np.ndarray, "*shape"],
    other_mean: Float64[np.ndarray, "*shape"],
    other_scatter: Float64[np.ndarray, "*shape"],
    *,
    count: tuple[int, int],
) -> None:
    """Merge the second of two sets of samples into the first, in place (Chan et al.)."""
    # mean = mean_1 + w·δ and scatter = S_1 + S_2 + w·n_1·δ², with δ = mean_2 - mean_1, w = n_2 / n.
    weight = count[1] / max(sum(count), 1)  # 0 where both are empty
    delta = other_mean - mean
    mean += weight * delta
    delta *= delta
    delta *= weight * count[0]
    scatter += delta
    scatter += other_scatter


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
