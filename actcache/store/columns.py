"""The columns of a store. Each is read on first use, and is as it was written or refused."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from actcache.errors import refuse
from actcache.store.documents import decode
from actcache.store.encoding import decode_numbers, decode_strings
from actcache.store.layout import Layout, column_name, read_in_place
from actcache.store.log import FileSum
from actcache.store.schema import LEFT_OUT, Column, Ragged

_FIXED_WIDTH_LIMIT = 64 << 20


class Columns(Mapping[str, np.ndarray]):
    """What is known about the rows, by name: strings and numbers; ragged columns by `ragged`."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._plain = [
            name
            for name, column in layout.columns.items()
            if column.part_of is None and column.dimension_names != (LEFT_OUT,)
        ]
        self._values: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._plain:
            raise KeyError(name)
        values = self._read(name)
        if self._layout.columns[name].dimension_names[0] == "n":
            return values[: self._layout.committed]
        return values

    def __getstate__(self) -> dict[str, Any]:
        # For workers: they read for themselves.
        return {**self.__dict__, "_values": {}}

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain)

    def __len__(self) -> int:
        return len(self._plain)

    def ragged(self, name: str) -> Ragged:
        """A ragged column; `KeyError` if there is none of that name."""
        column = self._layout.columns.get(name)
        if column is None or column.part_of != name:
            raise KeyError(name)
        offsets = self._read(f"{name}_offsets")
        whole = Ragged(self._read(name), offsets)
        stop = self._layout.committed
        return Ragged(whole.flat[: offsets[stop]], offsets[: stop + 1])

    def with_ragged(self) -> dict[str, np.ndarray | Ragged]:
        """Every column, ragged ones too, in the order in which they were written."""
        return {
            name: self[name] if column.part_of is None else self.ragged(name)
            for name, column in self._layout.columns.items()
            if name in self._plain or column.part_of == name
        }

    @property
    def ragged_names(self) -> list[str]:
        """Names of the ragged columns."""
        return [name for name, column in self._layout.columns.items() if column.part_of == name]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The column of rows that were left out, which is about none of the store's rows."""
        column = self._layout.columns.get(LEFT_OUT)
        if column is None or column.dimension_names != (LEFT_OUT,):
            return []
        return parse_left_out(self._read(LEFT_OUT), self._layout.storage.where(LEFT_OUT))

    def _read(self, name: str) -> np.ndarray:
        if name not in self._values:
            column = self._layout.columns[name]
            self._values[name] = read_in_place(
                self._layout, lambda: read_checked_column(self._layout, column)
            )
        return self._values[name]


def read_column(column: Column, raw: bytes, where: str) -> np.ndarray:
    """A column's values, read-only, from the bytes of its chunk.

    Strings come as NumPy's fixed-width text (`<U…`), which saves and compares without surprise; as
    Python strings in an object array where that would take more than 64 MB, since one long prompt
    makes all rows as wide, or where text ends in NUL, which fixed width drops.
    """
    if column.dtype != "string":
        return decode_numbers(raw, column, where)
    strings = decode_strings(raw, column.shape[0], where)
    longest = max(map(len, strings), default=0)
    fits = 4 * longest * len(strings) <= _FIXED_WIDTH_LIMIT
    fixed = fits and not any(text.endswith("\0") for text in strings)
    values = np.array(strings, dtype=np.str_ if fixed else object)
    values.flags.writeable = False
    return values


def parse_left_out(values: np.ndarray, where: str) -> list[dict[str, Any]]:
    """Parse the values of the column of rows that were left out."""
    if values.dtype.kind not in "UO":
        refuse(where, f"values of {values.dtype}", "texts")
    return [decode(text.encode(), where) for text in values.tolist()]


def empty_chunk(column: Column) -> bytes:
    """The bytes of a column without values, for which Zarr has no chunk."""
    return b"\0\0\0\0" if column.dtype == "string" else b""


def read_checked_column(layout: Layout, column: Column) -> np.ndarray:
    """All values of one column, if they are those that were written."""
    name = column_name(column)
    where = layout.storage.where(name)
    if 0 in column.shape:
        return read_column(column, empty_chunk(column), where)
    expected = layout.files[name]
    raw = layout.storage.read(name, n_bytes=expected.n_bytes)
    if FileSum.of(raw) != expected:
        refuse(where, "other bytes", "those of its creation")
    return read_column(column, raw, where)
