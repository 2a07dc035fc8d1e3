"""The contents of a new store; documents and columns are encoded before a byte is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actcache.errors import FormatError, MismatchError
from actcache.identity import require_same
from actcache.store.columns import read_checked_column, read_column
from actcache.store.documents import (
    GROUP,
    column_document,
    commits_document,
    decode,
    encode,
    root_document,
    row_array_document,
)
from actcache.store.encoding import encode_numbers, encode_strings, shard_bytes
from actcache.store.layout import LOG, ROOT, Layout, column_name, folders_above
from actcache.store.log import NO_RECORD, FileSum, bytes_of_record, encode_record, sums_of
from actcache.store.schema import (
    COMMITS,
    LEFT_OUT,
    Column,
    Kind,
    Ragged,
    Root,
    RowArray,
    check_name,
    coordinates,
)
from actcache.store.schema import shard_rows as choose_shard_rows
from actcache.store.storage.protocol import Storage

SWEPT = "swept"
"""Column of a sweep, bool `[n, array]`, arrays in the order of their names: which rows each has. In
the others it is NaN."""

ColumnValues = np.ndarray | Sequence[str] | Ragged
"""The types that a column can be given in."""


@dataclass(frozen=True, kw_only=True)
class StoreContents:
    """All of a store but the values of its row arrays."""

    kind: Kind
    n: int
    """Rows, 1 or more."""

    arrays: Sequence[RowArray]
    columns: Mapping[str, ColumnValues]
    """What is known about each row: strings, numbers `[n]` or `[n, _]`, or ragged integers; and
    the coordinates of dimensions, by the names of these."""

    config: Mapping[str, Any]
    """Settings, as JSON; a resumed store must have the same."""

    provenance: Mapping[str, Any]
    """Where the numbers come from, as JSON; a resumed store must have the same."""

    left_out: Sequence[Mapping[str, Any]] = ()
    """Rows that are not in the store, as JSON: `id`, `reason` and what else is known."""

    shard_rows: int | None = None
    """Rows of a shard; None lets `schema.shard_rows` choose, or takes those of a resumed store."""

    shard_reason: str = "as asked"
    """Why a shard has that many rows."""

    def absent(self, rows: slice) -> dict[str, np.ndarray]:
        """Say for each array which of some rows it does not have, as the column `swept` does."""
        swept = self.columns.get(SWEPT)
        if not isinstance(swept, np.ndarray) or swept.shape != (self.n, len(self.arrays)):
            return {}
        names = sorted(array.name for array in self.arrays)
        return {name: ~swept[rows, i] for i, name in enumerate(names)}

    def encode(self) -> "EncodedContents":
        """Encode all documents and columns; refuse what cannot be stored."""
        names = [array.name for array in self.arrays]
        shard_rows, shard_reason = self.shard_rows, self.shard_reason
        if self.n < 1 or not names or (shard_rows is not None and not 1 <= shard_rows <= self.n):
            raise MismatchError(
                f"a store of {self.n} rows and {len(names)} row arrays in shards of {shard_rows} "
                "rows was asked for, expected one or more of each. Give it rows."
            )
        if shard_rows is None:
            shard_rows, shard_reason = choose_shard_rows(self.arrays, self.n)
        root = Root(
            kind=self.kind,
            n=self.n,
            shard_rows=shard_rows,
            shard_reason=shard_reason,
            config=_as_json(self.config),
            provenance=_as_json(self.provenance),
        )
        dimensions = coordinates(self.arrays)
        columns = [
            pair
            for name, values in self.columns.items()
            for pair in _encode_column(name, values, self.n, dimensions)
        ]
        if self.left_out:
            columns.append(_encode_left_out(self.left_out))
        groups = folders_above(names)
        _require_different([*names, *groups, *(column.name for column, _ in columns), COMMITS])
        files = {ROOT: encode(root_document(root))}
        files |= {f"{name}/zarr.json": encode(GROUP) for name in sorted(groups)}
        for array in self.arrays:
            files[f"{array.name}/zarr.json"] = encode(row_array_document(array, root))
        for column, raw in columns:
            files[f"{column.name}/zarr.json"] = encode(column_document(column))
            if 0 not in column.shape:  # Zarr has no chunk where there is no value
                files[column_name(column)] = raw
        sums = {name: FileSum.of(raw) for name, raw in files.items()} | {LOG: FileSum.of(b"")}
        record_bytes = bytes_of_record(root, self.arrays, sums)
        files[LOG] = encode(commits_document(root.n_shards + 2, record_bytes))
        sums[LOG] = FileSum.of(files[LOG])
        record, _ = encode_record(
            sums_of(sums), number=0, previous=NO_RECORD, record_bytes=record_bytes
        )
        return EncodedContents(
            root,
            {array.name: array for array in self.arrays},
            {column.name: column for column, _ in columns},
            files,
            record,
        )


@dataclass(frozen=True)
class EncodedContents:
    """Everything that is written before the first shard."""

    root: Root
    arrays: Mapping[str, RowArray]
    columns: Mapping[str, Column]
    files: Mapping[str, bytes]
    first_record: bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole store, once it is finished."""
        root, arrays = self.root, self.arrays.values()
        shards = root.n_shards * sum(shard_bytes(array, root.shard_rows) for array in arrays)
        records = (root.n_shards + 2) * len(self.first_record)
        return shards + records + sum(map(len, self.files.values()))


def require_same_store(
    contents: EncodedContents, layout: Layout, *, shard_rows: int | None
) -> None:
    """Compare what a build is about to write with what the store was begun with."""
    what, remedy = _continuing(layout.storage)
    require_same(_summary(contents), _summary(layout), what=what, remedy=remedy)
    for name, column in contents.columns.items():
        file = column_name(column)
        if file not in contents.files or FileSum.of(contents.files[file]) == layout.files[file]:
            continue
        new = read_column(column, contents.files[file], file).tolist()
        old = read_checked_column(layout, column).tolist()
        row = next(i for i, pair in enumerate(zip(new, old, strict=True)) if pair[0] != pair[1])
        field = f"columns.{name}[{row}]"
        require_same({field: new[row]}, {field: old[row]}, what=what, remedy=remedy)
    if shard_rows is not None:
        stored = {"shard_rows": layout.root.shard_rows}
        require_same({"shard_rows": shard_rows}, stored, what=what, remedy=remedy)


def require_same_config(config: Mapping[str, Any], storage: Storage, root: Root) -> None:
    """Compare the settings alone: they are known before a model is loaded."""
    what, remedy = _continuing(storage)
    require_same({"config": _as_json(config)}, {"config": root.config}, what=what, remedy=remedy)


def _continuing(storage: Storage) -> tuple[str, str]:
    """What is compared, and what to do where it differs."""
    return (
        f"this build and '{storage.location}', which it was to continue,",
        "Use the settings, data and model it was begun with, or begin anew with --overwrite.",
    )


def _summary(store: EncodedContents | Layout) -> dict[str, Any]:
    root = store.root
    return {
        "kind": root.kind,
        "config": root.config,
        "provenance": root.provenance,
        "n": root.n,
        "arrays": {name: _as_json(vars(array)) for name, array in store.arrays.items()},
        "columns": {name: _as_json(vars(column)) for name, column in store.columns.items()},
    }


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, keys are strings."""
    return decode(encode(dict(value)), "config and provenance")


def _require_different(names: Sequence[str]) -> None:
    """Names that differ only in case would be one folder on some systems."""
    folded = [name.casefold() for name in names]
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise FormatError(
                f"two arrays, columns or folders of the store would be called '{name}', expected "
                "different names. Rename one."
            )


def _encode_column(
    name: str, values: ColumnValues, n: int, dimensions: set[str]
) -> list[tuple[Column, bytes]]:
    check_name(name)
    if "/" in name:
        raise FormatError(
            f"a column cannot be called '{name}', expected no slash. Choose another name."
        )
    if isinstance(values, Ragged):
        if len(values) != n:
            raise _wrong_length(name, len(values), n)
        flat, offsets = (np.ascontiguousarray(part) for part in (values.flat, values.offsets))
        return [
            (Column(name, flat.dtype.name, flat.shape, (None,), name), encode_numbers(flat)),
            (
                Column(f"{name}_offsets", "int64", offsets.shape, (None,), name),
                encode_numbers(offsets),
            ),
        ]
    length, first = len(values), name if name in dimensions else "n"
    if length != n and first == "n":
        raise _wrong_length(name, length, n)
    if not isinstance(values, np.ndarray) or values.dtype.kind in "UOT":
        if isinstance(values, np.ndarray) and values.ndim != 1:
            raise _unfit(name, values)
        return [(Column(name, "string", (length,), (first,)), encode_strings(values, name))]
    if values.ndim > 2 or values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise _unfit(name, values)
    dims = (first, None)[: values.ndim]
    column = Column(name, values.dtype.newbyteorder("=").name, values.shape, dims)
    return [(column, encode_numbers(values))]


def _encode_left_out(rows: Sequence[Mapping[str, Any]]) -> tuple[Column, bytes]:
    texts = [encode(dict(row), indent=None).decode() for row in rows]
    column = Column(LEFT_OUT, "string", (len(texts),), (LEFT_OUT,))
    return column, encode_strings(texts, LEFT_OUT)


def _wrong_length(name: str, length: int, n: int) -> MismatchError:
    return MismatchError(
        f"column '{name}' has {length} values, expected one for each of {n} rows. "
        "Pass as many, or name it like the dimension whose coordinates it holds."
    )


def _unfit(name: str, values: np.ndarray) -> MismatchError:
    return MismatchError(
        f"column '{name}' is {values.dtype} {list(values.shape)}, expected strings [n], or numbers "
        "[n] or [n, _]. Convert it."
    )
