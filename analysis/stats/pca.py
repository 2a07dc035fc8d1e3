"""Principal components of vectors: few coordinates that hold all that the train rows vary in.

n train rows span at most n directions of a residual stream that is thousands wide, so in
coordinates along them nothing of the train rows is lost.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

SAME = 1e-6
"""Components whose spread is below this share of the largest are rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """An orthonormal basis, the direction of largest spread first."""

    center: Float64[np.ndarray, " d"]
    """Subtracted from a vector before it is projected; zero if not centred."""

    basis: Float32[np.ndarray, "d r"]
    """Unit columns; the largest entry of each is positive, which fixes the sign everywhere."""

    def coordinates(self, vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n r"]:
        """Projections of vectors, from float64 sums."""
        return np.asarray((np.asarray(vectors, np.float64) - self.center) @ self.basis)


def principal_components(
    train: Float[np.ndarray, "n d"], *, centred: bool, limit: int
) -> Components:
    """Find the directions in which train rows vary, about their mean or about zero.

    From the eigenvectors of the smaller of the two Gram matrices, in float64: as exact as an SVD
    down to `SAME`, and faster where there are fewer rows than coordinates.

    Returns:
        All directions in which the rows have any spread, or the first `limit`; none where all
        rows are equal (or zero).
    """
    from scipy.linalg import eigh

    rows = np.asarray(train, np.float64)
    center = rows.mean(0) if centred else np.zeros(rows.shape[1])
    rows = rows - center
    n, d = rows.shape
    gram = rows @ rows.T if n < d else rows.T @ rows
    size = len(gram)
    count = min(limit, size)
    squares, vectors = eigh(gram, subset_by_index=[size - count, size - 1])  # rising
    squares, vectors = squares[::-1], vectors[:, ::-1]  # the largest first
    real = squares > max(squares[0], 0) * SAME**2
    basis = vectors[:, real]
    if n < d:
        basis = rows.T @ basis / np.sqrt(squares[real])  # from left to right singular vectors
    largest = np.abs(basis).argmax(0)
    basis = basis * np.where(basis[largest, np.arange(basis.shape[1])] < 0, -1, 1)
    return Components(center=center, basis=basis.astype(np.float32))


def principal_basis(
    values: Float32[np.ndarray, "n e"], *, components: int | None = None
) -> tuple[Float32[np.ndarray, " e"], Float32[np.ndarray, "e p"]]:
    """Mean of rows, and their principal components about it, scaled by one number.

    Returns:
        The mean, and at most `components` of them (None: all along which the rows differ) times
        the number that gives `(values - mean) @ basis` a mean square of 1. One zero component where
        all rows are equal.
    """
    limit = min(values.shape) if components is None else components
    principal = principal_components(values, centred=True, limit=limit)
    center = principal.center.astype(np.float32)
    if not principal.basis.shape[1]:
        return center, np.zeros((len(center), 1), np.float32)
    size = np.sqrt((principal.coordinates(values) ** 2).mean())
    return center, (principal.basis / size).astype(np.float32)
