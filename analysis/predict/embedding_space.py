"""Embeddings before any predictor: how well behaviors are separated, and a projection to 2-D."""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from actcache.errors import ActcacheError, MismatchError

Method = Literal["auto", "pca", "umap"]

_ZERO = 1e-14  # distances below it are rounding
_NEIGHBORS = 15  # UMAP's default; it needs more rows than these
_SMALL = 256  # rows or columns up to which all axes are found at once


@dataclass(frozen=True, kw_only=True)
class Silhouette:
    """How much closer rows are to their own behavior than to the next (Rousseeuw 1987)."""

    values: Float64[np.ndarray, " n"]
    """Of each row, from −1 to 1; 0 where it is the only one of its behavior."""

    mean: float
    """Over all rows: the number that the W2S paper compares encoders by."""

    by_behavior: dict[str, float]
    """Mean over the rows of each behavior, in order of their names."""


def silhouette_by_behavior(
    embeddings: Float[np.ndarray, "n e"], behaviors: Sequence[str] | np.ndarray
) -> Silhouette:
    """Silhouette with behaviors as clusters and cosine distance, `1 − u·v`.

    With a(i) the mean distance to the other rows of i's behavior and b(i) the least mean distance
    to the rows of another, s(i) = (b − a) / max(a, b): scikit-learn's `silhouette_samples` with
    `metric="cosine"`. The mean distance to a set is one minus the product with its mean vector, so
    that no pair is compared and time is linear in n, where scikit-learn's is quadratic.

    Rows of embeddings may have any length but 0; sums are float64.

    Raises:
        MismatchError: there is one behavior, or a row is all zeros or not finite.

    Example:
        >>> apart = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> silhouette_by_behavior(apart, ["a", "a", "b", "b"]).mean
        1.0
    """
    units = _units(embeddings)
    n = len(units)
    if len(behaviors) != n:
        raise MismatchError(
            f"there are {len(behaviors)} behaviors for {n} embeddings, expected one for each. Take "
            "both from one store."
        )
    names, of_row = np.unique(np.asarray(behaviors), return_inverse=True)
    k = len(names)
    if k < 2:
        raise MismatchError(
            f"the embeddings are all of {k} behavior, expected two or more to tell apart. Build a "
            "store of several."
        )
    counts = np.bincount(of_row, minlength=k)
    sums = np.stack([units[of_row == behavior].sum(0) for behavior in range(k)])  # [k, e]
    rows = np.arange(n)
    products = units @ sums.T  # [n, k]: of each row, summed over each behavior
    between = 1 - products / counts
    between[rows, of_row] = np.inf
    nearest = between.min(1)
    others = counts[of_row] - 1
    with_itself = np.einsum("ij,ij->i", units, units)
    # Summed distance to the others of its behavior: without the row itself, whose distance is 0.
    to_others = others - (products[rows, of_row] - with_itself)
    alone = others == 0
    within = np.where(alone, 0, to_others / np.maximum(others, 1))
    # Equal vectors are at distance 0 up to rounding of the sums.
    within[np.abs(within) < _ZERO] = 0
    nearest[np.abs(nearest) < _ZERO] = 0
    largest = np.maximum(within, nearest)
    values = np.divide(nearest - within, largest, out=np.zeros(n), where=(largest > 0) & ~alone)
    return Silhouette(
        values=values,
        mean=float(values.mean()),
        by_behavior={
            str(name): float(values[of_row == behavior].mean())
            for behavior, name in enumerate(names)
        },
    )


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Embeddings in the plane, to plot."""

    points: Float32[np.ndarray, "n 2"]
    """In the order of the embeddings."""

    method: str
    """`pca` or `umap`."""

    explained: tuple[float, float] | None
    """Of PCA: the share of the variance on each axis."""

    seed: int
    """Seed of UMAP; PCA needs none."""


def project_to_plane(
    embeddings: Float[np.ndarray, "n e"], *, method: Method = "auto", seed: int = 0
) -> Projection:
    """Project embeddings to two dimensions, by scikit-learn's PCA or by UMAP with cosine distance.

    Rows may have any length but 0, and are scaled to 1. Without a second axis its coordinate is 0.
    The method `auto` is UMAP if it is installed and there are enough rows for it, else PCA; the
    seed is UMAP's.
    """
    units = _units(embeddings)
    if method == "umap" or (method == "auto" and len(units) > _NEIGHBORS and has_umap()):
        return _umap(units, seed)
    return _pca(units, seed)


def _pca(units: Float64[np.ndarray, "n e"], seed: int) -> Projection:
    n, width = units.shape
    points = np.zeros((n, 2), np.float32)
    shares = [0.0, 0.0]
    rank = min(2, n - 1, width)
    if rank > 0 and np.ptp(units, axis=0).max() > _ZERO:
        from sklearn.decomposition import PCA

        # By default it would take a randomised solver for large shapes, which is off by several
        # per cent where the variance is spread over many axes, as it is in embeddings.
        solver = "full" if min(n, width) <= _SMALL else "arpack"
        pca = PCA(rank, svd_solver=solver, random_state=0)
        points[:, :rank] = pca.fit_transform(units)
        shares[:rank] = pca.explained_variance_ratio_.tolist()
    return Projection(points=points, method="pca", explained=(shares[0], shares[1]), seed=seed)


def has_umap() -> bool:
    """Whether umap-learn is installed; it is not imported."""
    return importlib.util.find_spec("umap") is not None


def _umap(units: Float64[np.ndarray, "n e"], seed: int) -> Projection:
    # It warns of what we do not use: TensorFlow, several threads, precomputed distances.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            umap = importlib.import_module("umap")
        except ImportError as error:
            raise ActcacheError(
                f"the projection asks for UMAP, which cannot be imported ({error}). Install "
                "umap-learn, or use pca."
            ) from error
        neighbors = min(_NEIGHBORS, len(units) - 1)
        reducer = umap.UMAP(metric="cosine", n_neighbors=neighbors, random_state=seed, n_jobs=1)
        points = np.asarray(reducer.fit_transform(units), np.float32)
    return Projection(points=points, method="umap", explained=None, seed=seed)


def _units(embeddings: Float[np.ndarray, "n e"]) -> Float64[np.ndarray, "n e"]:
    wide = np.asarray(embeddings, np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    bad: Int64[np.ndarray, " _"] = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise MismatchError(
            f"the embedding of row {bad[0]} is all zeros or not finite, expected a direction. "
            "Leave that row out."
        )
    return np.asarray(wide / norms[:, None])
