"""Subsets: a store made of some rows, layers and positions of another.

No value is computed: residuals are copied as they are stored, each block checked against its
checksum. The provenance of the result records what it was made from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from actcache.data.samples import TEXT_COLUMNS, rows_digest
from actcache.data.spans import SPAN
from actcache.errors import MismatchError
from actcache.store.copies.fill import Read, fill_store
from actcache.store.copies.selection import Selection, select_arrays, select_layers, select_rows
from actcache.store.schema import LEFT_OUT, Ragged, RowArray, coordinates
from actcache.store.storage.address import bucket_address
from actcache.store.store import Store, open_store
from actcache.store.writing.contents import ColumnValues, StoreContents


@dataclass(frozen=True)
class Source:
    """Rows of one store."""

    store: Store
    rows: Int64[np.ndarray, " _"]
    """Which, in rising order."""


def subset(
    source: str | Path,
    path: str | Path,
    *,
    selection: Selection,
    shard_rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Write a part of a store as a new store.

    Rows keep their order and their splits, layers their numbers (in the column `layer`).

    Args:
        source: a finished store of residuals.
        path: where the new one will be; until it is finished it is `PATH.partial`.
        selection: what the new store keeps.
        shard_rows: rows of a shard; by default as many as suit their size.
        resume: continue an interrupted one.
        overwrite: replace a store at `path`.
        on_rows: called with the number of rows of each commit.

    Raises:
        MismatchError: nothing is left, or something is asked for that the store does not hold.
        StoreExistsError: the path is taken.
        FormatError: a block that would be copied is damaged.
    """
    store = open_source(source)
    require_another(path, [store])
    rows = select_rows(store, selection)
    numbers = select_layers(store, selection)
    places = np.flatnonzero(np.isin(store.layers, numbers))
    arrays = [
        array if has_no_layers(array) else replace(array, n_layers=places.size)
        for array in select_arrays(store, selection)
    ]
    sources = [Source(store, rows)]
    columns = join_columns(sources, arrays)
    if selection.layers is not None:
        columns["layer"] = numbers
    provenance = {
        **without_left_out(store.provenance),
        "subset_of": {
            "digest": store.digest,
            "n": store.n,
            "selection": selection.recorded(rows),
            **({"subset_of": before} if (before := store.provenance.get("subset_of")) else {}),
        },
    }
    return fill_store(
        path,
        StoreContents(
            kind="residuals",
            n=rows.size,
            arrays=arrays,
            columns=columns,
            config=store.config,
            provenance=with_data_digest(provenance, columns),
            left_out=store.left_out,
            shard_rows=shard_rows,
        ),
        read=reader(sources, layers=None if selection.layers is None else places),
        certificate=_of_layers(store.certificate, places),
        resume=resume,
        overwrite=overwrite,
        on_rows=on_rows,
    )


def reader(sources: Sequence[Source], *, layers: Int64[np.ndarray, " layer"] | None = None) -> Read:
    """Make a function that reads the rows of several stores, one store after the other.

    `layers` are places of the layers to read, of all arrays but `embed`; by default all.
    """
    stops = np.cumsum([source.rows.size for source in sources]).tolist()

    def read(array: RowArray, rows: slice) -> Shaped[np.ndarray, "_ layer width"]:
        # Layer-major, as on disk, so that writing the shard copies nothing.
        block = np.empty((array.n_layers, rows.stop - rows.start, array.width), array.stored)
        for source, stop in zip(sources, stops, strict=True):
            start = stop - source.rows.size
            first, last = max(rows.start, start), min(rows.stop, stop)
            if first >= last:
                continue
            values = source.store.array(array.name).stored
            numbers = source.rows[first - start : last - start]
            chosen = slice(None) if layers is None or has_no_layers(array) else layers
            copied = values[numbers, chosen]
            block[:, first - rows.start : last - rows.start] = copied.swapaxes(0, 1)
            source.store.close()  # what was read once need not stay mapped
        return block.swapaxes(0, 1)

    return read


def open_source(path: str | Path) -> Store:
    """A finished store of residuals, each block checked when it is first read."""
    store = open_store(path, check=True)
    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals. Pass a store that build "
            "wrote."
        )
    return store


def join_columns(sources: Sequence[Source], arrays: Sequence[RowArray]) -> dict[str, ColumnValues]:
    """The columns of several stores, rows one store after the other.

    All have the columns of the first, but for those that rows brought themselves: where a store
    lacks one, its rows have an empty text or NaN.
    """
    dimensions = coordinates(arrays)
    joined: dict[str, ColumnValues] = {}
    for name, first in sources[0].store.columns.with_ragged().items():
        if name in dimensions:
            joined[name] = first
        elif isinstance(first, Ragged):
            joined[name] = _join_ragged([(s.store.ragged(name), s.rows) for s in sources])
        else:
            joined[name] = _join_column(sources, name)
    for source in sources[1:]:
        new = [name for name in source.store.columns if name not in {*joined, *dimensions}]
        joined |= {name: _join_column(sources, name) for name in new}
    return joined


def is_row_column(store: Store, name: str) -> bool:
    """Whether rows brought a column themselves, so that other stores need not have it."""
    built = {*TEXT_COLUMNS, *store.columns.ragged_names, SPAN, "n_tokens"}
    return name not in built and name in store.columns and store.columns[name].ndim == 1


def _join_column(sources: Sequence[Source], name: str) -> np.ndarray:
    """One column of several stores, as numbers if all values are."""
    parts = [
        source.store[name][source.rows] if name in source.store.columns else None
        for source in sources
    ]
    present = [part for part in parts if part is not None]
    kinds = {part.dtype.kind for part in present}
    if len(present) == len(parts) and (kinds <= set("UO") or len(kinds) == 1):
        return np.concatenate(present) if len(parts) > 1 else present[0]
    dtype, missing = (np.float64, np.nan) if kinds <= set("biuf") else (object, "")
    return np.concatenate(
        [
            np.full(source.rows.size, missing, dtype)
            if part is None
            else part.astype(dtype if dtype is np.float64 else str).astype(dtype)
            for source, part in zip(sources, parts, strict=True)
        ]
    )


def with_data_digest(
    provenance: Mapping[str, Any], columns: Mapping[str, ColumnValues]
) -> dict[str, Any]:
    """Provenance with the digest of these rows, if it had one."""
    if "data_sha256" not in provenance or not {"id", "split", "digest"} <= columns.keys():
        return dict(provenance)
    rows = zip(*(map(str, columns[name]) for name in ("id", "split", "digest")), strict=True)
    return {**provenance, "data_sha256": rows_digest(rows)}


def without_left_out(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without the rows left out, which earlier versions wrote there."""
    return {name: value for name, value in provenance.items() if name != LEFT_OUT}


def require_another(path: str | Path, stores: Sequence[Store]) -> None:
    """Refuse to write a store over one that it is made from."""
    for store in stores:
        address = bucket_address(path)
        if address == str(store.path) or (
            address is None
            and isinstance(store.path, Path)
            and Path(path).resolve() == store.path.resolve()
        ):
            raise MismatchError(
                f"'{store.path}' would be read and replaced, expected another path for what is "
                "made from it. Pass one with -o."
            )


def has_no_layers(array: RowArray) -> bool:
    """Whether an array has no layers of the model: the input of the first block."""
    return array.name.startswith("embed/")


def _join_ragged(parts: Sequence[tuple[Ragged, Int64[np.ndarray, " _"]]]) -> Ragged:
    """Some rows of several ragged columns, one column after the other."""
    flat, counts = [], []
    for ragged, rows in parts:
        starts = ragged.offsets[rows]
        counts.append(ragged.offsets[rows + 1] - starts)
        before = np.cumsum(counts[-1]) - counts[-1]
        flat.append(
            ragged.flat[np.repeat(starts - before, counts[-1]) + np.arange(sum(counts[-1]))]
        )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Ragged(np.concatenate(flat), offsets.astype(np.int64))


def _of_layers(certificate: Any, layers: Int64[np.ndarray, " layer"]) -> Any:
    """A certificate whose errors are those of some layers."""
    errors = certificate.get("largest_relative_error") if isinstance(certificate, dict) else None
    if not isinstance(errors, list) or not layers.size or layers.max() >= len(errors):
        return certificate
    return {**certificate, "largest_relative_error": [errors[i] for i in layers.tolist()]}
