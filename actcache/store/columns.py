"""The values of columns, as they were written or not at all."""

import numpy as np

from actcache.errors import refuse
from actcache.store.encoding import decode_numbers, decode_strings
from actcache.store.layout import Layout, column_path
from actcache.store.log import FileSum
from actcache.store.schema import Column
from actcache.store.storage.files import read_file

_FIXED_WIDTH_LIMIT = 64 << 20


def read_column(column: Column, raw: bytes, where: str) -> np.ndarray:
    """A column's values, read-only.

    Strings come as NumPy's fixed-width text (`<U…`), which saves and compares without surprise; as
    Python strings in an object array where that would take more than 64 MB, since one long prompt
    makes all rows as wide, or where text ends in NUL, which fixed width drops.

    Args:
        column: what it is.
        raw: the bytes of its chunk.
        where: the file, for messages.

    Raises:
        FormatError: they are not the values of such a column.
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


def read_checked_column(layout: Layout, column: Column) -> np.ndarray:
    """All values of one column, if they are those that were written.

    Raises:
        FormatError: they are not.
    """
    path = column_path(column)
    if 0 in column.shape:
        return read_column(column, b"\0\0\0\0" if column.dtype == "string" else b"", path)
    expected = layout.files[path]
    raw = read_file(layout.folder / path, n_bytes=expected.n_bytes)
    if FileSum.of(raw) != expected:
        refuse(str(layout.folder / path), "other bytes", "those of its creation")
    return read_column(column, raw, str(layout.folder / path))
