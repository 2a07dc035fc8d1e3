"""A new store whose values come from somewhere else: read shard by shard, committed as a build is.

The common part of copying rows, of reusing a file that was exported, and of unpacking an archive.
Knows the writer; refuses to know where values come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from actcache.errors import MismatchError
from actcache.store.contents import ColumnValues
from actcache.store.layout import partial_folder
from actcache.store.schema import Kind, RowArray
from actcache.store.storage.atomic import remove
from actcache.store.store import Residuals, Store, open_store
from actcache.store.writer import Writer

SHARD_ROWS: int | None = None
"""Rows of a shard, for tests; by default as `schema.shard_rows` chooses."""

Read = Callable[[RowArray, slice], Shaped[np.ndarray, "_ layer width"]]
"""Gives some rows of one array in its stored dtype; bfloat16 as its bits, uint16."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All of a store but the values of its row arrays."""

    kind: Kind
    n: int
    arrays: Sequence[RowArray]
    columns: Mapping[str, ColumnValues]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    certificate: Any = None
    shard_rows: int | None = None
    shard_reason: str = "as asked"
    digest: str | None = field(default=None, repr=False)
    """What `Store.digest` of the result must be; None where nothing is known of it."""


def fill_store(
    path: str | Path,
    contents: Contents,
    *,
    read: Read,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Write a whole store; memory holds one shard of each array.

    Args:
        path: where it will be; until it is complete it is `PATH.partial`.
        contents: what it holds.
        read: gives the values.
        resume: go on with an interrupted one of the same contents.
        overwrite: replace a store that lies at `path`, and an interrupted one.
        on_rows: told how many rows were committed, each time.

    Raises:
        StoreExistsError: a store, or the rest of one, lies at `path`.
        MismatchError: `resume`, and the rest has other contents; or the values have not the digest
            that they must have, and then nothing is left at `path`.
    """
    path = Path(path)
    start = Writer.resume if resume else Writer.create
    with start(
        path,
        kind=contents.kind,
        n=contents.n,
        arrays=contents.arrays,
        columns=contents.columns,
        config=contents.config,
        provenance=contents.provenance,
        shard_rows=contents.shard_rows or SHARD_ROWS,
        shard_reason=contents.shard_reason,
        overwrite=overwrite,
    ) as writer:
        on_rows(writer.committed)
        while writer.committed < writer.n:
            rows = writer.next_rows
            writer.commit({array.name: read(array, rows) for array in contents.arrays})
            on_rows(rows.stop - rows.start)
        with open_store(path, partial=True) as written:
            found = written.digest
        if contents.digest not in (None, found):
            remove(partial_folder(path))
            raise MismatchError(
                f"what was written to '{path}' has the digest {found[:16]}…, expected "
                f"{str(contents.digest)[:16]}…, that of the store it was exported from: the file "
                "was changed or damaged since. Export it again."
            )
        writer.finish(contents.certificate)
    return open_store(path)


def array_of(residuals: Residuals) -> RowArray:
    """What a row array of an open store is."""
    _, n_layers, width = residuals.shape
    return RowArray(
        residuals.name,
        n_layers,
        width,
        residuals.dtype,  # type: ignore[arg-type]  # RowArray checks it
        residuals.dimension_names,
    )


def stored_values(residuals: Residuals) -> Residuals:
    """A row array that is read as it is kept: bfloat16 as its bits."""
    return residuals.bits if residuals.dtype == "bfloat16" else residuals


def columns_of(store: Store) -> dict[str, ColumnValues]:
    """Every column of a store, plain and ragged, in order; coordinates of dimensions too."""
    ragged = set(store.columns.ragged_names)
    return {
        name: store.ragged(name) if name in ragged else store[name]
        for name in store.columns.all_names
    }


def coordinates(arrays: Sequence[RowArray]) -> set[str]:
    """Names of columns that would hold coordinates of a dimension, not a value for each row."""
    return {name for array in arrays for name in array.dimension_names[1:]}
