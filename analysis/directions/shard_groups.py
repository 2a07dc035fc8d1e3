"""Moments of a whole store: those of its groups of shards, merged in order.

A group is 64 consecutive shards, and its moments are of its own rows alone. So each can be computed
anywhere, in any order, and the result has the bits that one process gets.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float, Int64

from actcache.analysis.stats.moments import Moments, class_moments, merge_moments
from actcache.analysis.stats.units import MapUnits
from actcache.errors import MismatchError
from actcache.store.store import Store

GROUP_SHARDS = 64
"""Shards of a group. A part of the definition: another number gives other bits."""

BATCH_ROWS = 256
"""Rows in memory at a time. A part of the definition of moments, as is the size of a shard: within
a group, other batches change the result by rounding."""


def store_moments(
    store: Store,
    classes: Mapping[str, Int64[np.ndarray, " n"]],
    n_classes: int,
    *,
    map_units: MapUnits = map,
) -> Moments:
    """Compute count, mean and scatter of each class of a store, streaming it once.

    The store's shards form groups of `GROUP_SHARDS`. Each group's moments are `class_moments` of
    its rows alone, in batches of `BATCH_ROWS` that no shard shares with another, one position after
    the other; `merge_moments` merges them in the order of the shards. So all bits are decided by
    the store, the classes and these two numbers. In memory are those of all classes, and of one
    group the classes that it has.

    Args:
        store: of residuals.
        classes: by position, the class of each row's residuals there; -1 where they do not count.
        n_classes: classes run from 0 to `n_classes - 1`.
        map_units: calls a function on each group, and gives the results in order.

    Raises:
        MismatchError: no row counts.
        NotFiniteError: a residual that counts is infinite or not a number.
    """
    counts = np.any([of_row >= 0 for of_row in classes.values()], axis=0)
    groups = np.unique(np.flatnonzero(counts) // (GROUP_SHARDS * store.shard_rows))
    if not groups.size:
        raise MismatchError("no row counts, expected one or more. Choose rows of the store.")
    parts = map_units(partial(_group_moments, store, dict(classes)), groups.tolist())
    return merge_moments(parts, n_classes)


def _group_moments(
    store: Store, classes: Mapping[str, Int64[np.ndarray, " n"]], group: int
) -> tuple[Int64[np.ndarray, " c"], Moments]:
    """Compute the moments of one group; also which classes it has, rising."""
    size = GROUP_SHARDS * store.shard_rows
    rows = slice(group * size, (group + 1) * size)
    present = np.unique(np.concatenate([of_row[rows] for of_row in classes.values()]))
    present = present[present >= 0]

    def batches() -> Iterator[tuple[Float[np.ndarray, "b layer d"], Int64[np.ndarray, " b"]]]:
        for position, of_row in classes.items():
            select = np.zeros(store.n, bool)
            select[rows] = of_row[rows] >= 0
            for row_numbers, resid in store.resid(position).batches(rows=BATCH_ROWS, select=select):
                yield resid, np.searchsorted(present, of_row[row_numbers])

    return present, class_moments(batches(), len(present))
