"""The rows of one layer in coordinates of the space that its train rows span.

A method that only rotates with its data (ridge, L2 logistic, LDA shrunk to the identity, PCA, RFM)
ends in a direction that is a sum of train rows: moving along anything else changes no product with
a row and adds to the penalty (the representer theorem; Kimeldorf & Wahba 1971). So n rows of a
residual stream d wide need min(n, d) coordinates, and nothing is lost but rounding. Rows are not
centred before they are factorised: raw rows, rows of unit norm, and either of them centred, all lie
in the same space, so that one factorisation serves every method.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64


@dataclass(frozen=True, kw_only=True)
class CentredRows:
    """Rows minus the mean of the train rows, in the coordinates of a `RowSpace`."""

    train: Float64[np.ndarray, "n r"]
    validation: Float64[np.ndarray, "m r"]

    outside: Float64[np.ndarray, " m"]
    """Squared length of what the coordinates do not hold of each validation row."""

    def scaled_to_unit(self) -> "CentredRows":
        """Scale each centred row to norm 1; a row at the mean stays zero."""
        inside = np.einsum("mr,mr->m", self.validation, self.validation)
        length = _positive(np.sqrt(inside + self.outside))
        return CentredRows(
            train=self.train / _positive(np.linalg.norm(self.train, axis=1))[:, None],
            validation=self.validation / length[:, None],
            outside=self.outside / length**2,
        )


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """Train and validation rows of one layer, in an orthonormal basis of the train rows' span."""

    basis: Float64[np.ndarray, "d_model r"] | None
    """Orthonormal columns. None with as many train rows as coordinates, or more: the coordinates
    are then the model's own."""

    d_model: int

    train: Float64[np.ndarray, "n r"]
    """Train rows; nothing of them lies outside."""

    validation: Float64[np.ndarray, "m r"]
    """What validation rows have in the space: all that counts for a product with a direction."""

    outside: Float64[np.ndarray, " m"]
    """Squared length of the rest of each validation row."""

    def centred(self, *, unit_rows: bool) -> CentredRows:
        """Subtract the train mean, with `unit_rows` after each row was divided by its norm."""
        train, validation, outside = self.train, self.validation, self.outside
        if unit_rows:
            squared = np.einsum("mr,mr->m", validation, validation) + outside
            train = train / _positive(np.linalg.norm(train, axis=1))[:, None]
            validation = validation / _positive(np.sqrt(squared))[:, None]
            outside = outside / _positive(squared)
        mean = train.mean(0)
        return CentredRows(train=train - mean, validation=validation - mean, outside=outside)

    def direction(self, weights: Float64[np.ndarray, " r"]) -> Float32[np.ndarray, " d_model"]:
        """Turn coordinates into a unit direction of the model."""
        wide = weights if self.basis is None else self.basis @ weights
        length = np.linalg.norm(wide)
        return np.asarray(wide / (length or 1.0), np.float32)


def row_space(
    train: Float[np.ndarray, "n d_model"], validation: Float[np.ndarray, "m d_model"]
) -> RowSpace:
    """Factorise the train rows of one layer once, in float64 (Householder QR).

    Equal rows and dependent ones need no care: a column too many in the basis has coordinates zero.
    """
    from scipy.linalg import qr

    wide, judged = np.array(train, np.float64, order="C"), np.asarray(validation, np.float64)
    n, d_model = wide.shape
    if n >= d_model:
        nothing = np.zeros(len(judged))
        return RowSpace(basis=None, d_model=d_model, train=wide, validation=judged, outside=nothing)
    # In the memory of the rows themselves, which are this function's own copy.
    basis, upper = qr(wide.T, overwrite_a=True, mode="economic", check_finite=False)
    del wide
    basis = np.ascontiguousarray(basis)
    inside = judged @ basis
    rest = judged - inside @ basis.T  # subtracting squared lengths instead would cancel
    return RowSpace(
        basis=basis,
        d_model=d_model,
        train=np.ascontiguousarray(upper.T),
        validation=inside,
        outside=np.einsum("md,md->m", rest, rest),
    )


def _positive(lengths: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Lengths to divide by: 1 where a row has none."""
    return np.where(lengths > 0, lengths, 1.0)
