"""The direction that steers each row of a sweep: shared, by behavior, or each row's own."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float32, Int64

from actcache.analysis.directions.difference_of_means import Directions
from actcache.errors import MismatchError
from actcache.store.store import Store


@dataclass(frozen=True)
class RowDirections:
    """The direction of every row, computed for some rows at a time.

    A direction of its own for every row (an oracle's, a network's) makes gigabytes at a real
    model's size, so a sweep asks for those of one batch and never for all.
    """

    rows: Callable[[Int64[np.ndarray, " b"]], Float32[np.ndarray, "b layer d_model"]]
    """Directions of the rows with these numbers, at all layers of the model."""

    digest: str
    """Identifies the directions: a finished sweep with the same digest is reused."""


def shared_directions(
    values: Float32[np.ndarray, "k layer d_model"], of: Int64[np.ndarray, " n"]
) -> RowDirections:
    """Steer rows with a few directions; `of` says which of them belongs to each row."""
    parts = (np.ascontiguousarray(values), np.ascontiguousarray(of))
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    return RowDirections(partial(_take_shared, values, of), digest)


def _take_shared(
    values: Float32[np.ndarray, "k layer d_model"],
    of: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " b"],
) -> Float32[np.ndarray, "b layer d_model"]:
    return np.asarray(values[of[rows]])


AnyDirections = (
    RowDirections
    | Directions
    | Float[np.ndarray, "layer d_model"]
    | Float[np.ndarray, "n layer d_model"]
)
"""One direction for all rows, one for each behavior or one for each row."""


def row_directions(store: Store, directions: AnyDirections, *, name: str) -> RowDirections:
    """Say which direction steers each row of a store.

    An array holds one direction for all rows or one for each. Of `difference_of_means`, a single
    direction steers every row, and several steer the rows of their behavior.

    Raises:
        MismatchError: shapes that do not fit the store, or a behavior without a direction.
    """
    if isinstance(directions, RowDirections):
        return directions
    if not isinstance(directions, Directions):
        values = np.asarray(directions, np.float32)
        shape = (store.n_layers, store.d_model)
        if values.shape == shape:
            return shared_directions(values[None], np.zeros(store.n, np.int64))
        if values.shape == (store.n, *shape):
            return shared_directions(values, np.arange(store.n))
        raise MismatchError(
            f"the directions '{name}' have shape {list(values.shape)}, expected {list(shape)} or "
            f"{[store.n, *shape]}. Pass a direction for every layer of the store."
        )
    names = list(directions.names)
    if len(names) == 1:
        return shared_directions(directions.values, np.zeros(store.n, np.int64))
    absent = sorted(set(store["behavior"].tolist()) - set(names))
    if absent:
        raise MismatchError(
            f"the directions '{name}' are of {', '.join(names)}, but the store has rows of "
            f"{', '.join(absent)} too. Pass directions of every behavior, or one array."
        )
    of = np.array([names.index(behavior) for behavior in store["behavior"].tolist()], np.int64)
    return shared_directions(directions.values, of)
