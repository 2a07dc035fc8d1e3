"""What every encoder gives: one vector of length 1 for each row, and what identifies them.

Knows nothing of where vectors come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Real

from actcache.errors import MismatchError, NotFiniteError


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The prompts of a store as vectors."""

    values: Float32[np.ndarray, "n e"]
    """One row for each of the store's, in its order; each of length 1."""

    name: str
    """The encoder's, as `parse_encoder` reads it, with the layer filled in."""

    settings: dict[str, Any]
    """All that identifies the vectors, as JSON: model, digest of its weights where they are known,
    pooling, dimension, digest of the texts. Two runs with equal settings may be compared."""

    n_new: int
    """Distinct texts that were embedded now."""

    n_kept: int
    """Distinct texts that were embedded before, or of `cache` the rows."""

    tokens: int
    """Tokens of the new texts: those that the model ran, or that the service says it counted."""

    n_truncated: int = 0
    """Distinct texts longer than the model's limit, of which it saw the beginning."""


def unit_rows(
    vectors: Real[np.ndarray, "n e"], *, names: Sequence[str], what: str
) -> Float32[np.ndarray, "n e"]:
    """Scale each row to length 1. Norms are summed in float64.

    Args:
        vectors: of any float dtype.
        names: what each row is called, for messages.
        what: what they are, for messages: "the residual after layer 3".

    Raises:
        NotFiniteError: a value is not finite.
        MismatchError: a row is all zeros, so it has no direction.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    for row in np.flatnonzero(~np.isfinite(squares))[:1]:
        raise NotFiniteError(
            f"{what} of sample '{names[row]}' is not finite, expected numbers. Leave this encoder, "
            "or that sample, out."
        )
    for row in np.flatnonzero(squares == 0)[:1]:
        raise MismatchError(
            f"{what} of sample '{names[row]}' is all zeros, expected a vector that can be scaled "
            "to length 1. Use another layer or encoder, or leave that sample out."
        )
    units = np.empty(vectors.shape, np.float32)
    np.divide(vectors, np.sqrt(squares)[:, None], out=units, casting="same_kind")
    return units
