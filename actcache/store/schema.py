"""The format of a store, number 1: what is on disk, and the types that describe it.

A store is a folder that any Zarr v3 reader opens as a group. Reading it needs no Zarr:

    STORE.zarr/
      zarr.json                 the group; its attributes are the fields of `Root`
      commits/                  uint8 [record, byte]: the log of what was committed
        zarr.json  c.0.0  c.1.0  …
      resid_post/               a group for each folder in the name of a row array
        zarr.json
        prompt/                 a row array [n, layer, width]: residuals, propensities
          zarr.json  c.0.0.0  c.1.0.0  …       one file for each shard of S rows
      id/  prompt/  …           columns: what is known about each row, one chunk each
        zarr.json  c.0

**A shard** holds S rows of all layers; the last one is padded with zeros. Its file is, for each
layer in order, one block of S·width values (little endian, C order, not compressed), then offset
and length of each block (uint64), then their crc32c (uint32): Zarr's `sharding_indexed` codec with
inner chunks (S, 1, width) and the index at the end. So one layer of a shard is one contiguous range
at a known place. S is the same for all row arrays of a store: the attribute `shard_rows`;
`shard_reason` says why. bfloat16 is stored as its bits: uint16, with the attribute
`dtype: "bfloat16"`.

**A column** is one Zarr array of one chunk, not compressed: strings (`vlen-utf8`) or numbers. Its
first dimension is called `n` if it has a value for each row; a column that is named like a
dimension of a row array (`layer`, `multiplier`) holds the coordinates of that dimension. The column
`left_out`, whose one dimension is called so too, holds the rows that the build left out, each as
JSON: `id`, `reason`, and of too long ones `tokens` and `context`; it is absent if there are none
(earlier versions wrote the list into the provenance). A ragged column `x` is the flat values `x`,
and `x_offsets`, int64 [n + 1]: row i is `x[offsets[i]:offsets[i + 1]]`.

**The log** is a chain of JSON records of one size (padded with spaces, one newline at the end).
Each holds its number, the sha256 of the record before it, and its own `sha256`, computed over the
record's JSON without this field. Record 0, written at creation, holds size and sha256 of every
document and column. Record k + 1 says that shard k of every row array is on disk: its rows, and
bytes and crc32c of each block.

**The seal** is the last record of the log: size and sha256 of the group's document, which alone
changes (`complete`, `certificate`) when a store is finished. A store is finished when its log is
sealed and that document is there, whatever the folder is called and wherever it is.

Only the longest prefix of well-formed records that chain counts; readers ignore anything else. A
shard is written under a temporary name, synced and renamed before its record is. On a local disk
the folder is called `STORE.zarr.partial` until it is sealed, and a file `commits/overwrite`
may say that it will replace a finished store. Documents are at most 1 MB each; a reader accepts
them only exactly as they are written here, follows no link and allocates no more than files hold.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int, Int64

from actcache.errors import FormatError, MismatchError

FORMAT = 1
"""The number of this format. Readers refuse a higher one."""

DOCUMENT_LIMIT = 1 << 20
"""Bytes of a metadata document, or of one record of the log, at most."""

Dtype = Literal["float32", "float16", "bfloat16"]
Kind = Literal["residuals", "sweep"]

RowKind = Literal["pairs", "labels", "prompts"]
"""What the rows of a store are: see `Store.row_kind`."""

COMMITS = "commits"
"""Name of the log; no array or column can have it."""

LEFT_OUT = "left_out"
"""Name of the column of rows that were left out, and of its dimension."""


@dataclass(frozen=True)
class RowArray:
    """A row array, which is written shard by shard: `[n, layer, width]`."""

    name: str
    """For example `resid_post/prompt`: site and position."""

    n_layers: int
    """Layers; 1 for `embed`."""

    width: int
    """d_model, or whatever the last dimension counts."""

    dtype: Dtype
    """Type of the values; bfloat16 is stored as its bits."""

    dimension_names: tuple[str, str, str] = ("n", "layer", "d_model")
    """What the three dimensions are called."""

    def __post_init__(self) -> None:
        check_name(self.name)
        sizes = (self.n_layers, self.width)
        if self.dtype not in get_args(Dtype) or any(not 0 < size < 1 << 31 for size in sizes):
            raise FormatError(
                f"'{self.name}' has {self.n_layers} layers of width {self.width} in {self.dtype}, "
                f"expected 1 or more each, in {', '.join(get_args(Dtype))}. "
                "Such an array cannot be stored."
            )
        names = self.dimension_names
        if [type(name) for name in names] != [str] * 3 or not all(0 < len(x) < 256 for x in names):
            raise FormatError(
                f"the dimensions of '{self.name}' are called {names!r}, expected three names. "
                "Such an array cannot be stored."
            )

    @property
    def stored(self) -> str:
        """NumPy's name of what is on disk: `uint16` for bfloat16, else the dtype itself."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all layers."""
        return self.n_layers * self.width * np.dtype(self.stored).itemsize


def coordinates(arrays: Iterable[RowArray]) -> set[str]:
    """Names of columns that would hold coordinates of a dimension, not a value for each row."""
    return {name for array in arrays for name in array.dimension_names[1:]}


@dataclass(frozen=True)
class Column:
    """The description of a column, without its values."""

    name: str
    dtype: str
    """`string`, or NumPy's name of a bool, integer or float dtype."""

    shape: tuple[int, ...]
    """One or two dimensions."""

    dimension_names: tuple[str | None, ...]
    """`n` first if there is a value for each row."""

    part_of: str | None = None
    """Name of the ragged column that this array is one half of."""

    def fits(self, n_bytes: int) -> bool:
        """Whether its values can take so many bytes. Python's integers do not overflow."""
        if self.dtype == "string":  # the count, and the length of each
            return self.shape == (0,) or n_bytes >= 4 + 4 * self.shape[0]
        return n_bytes == math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Ragged:
    """Integers of a different count in each row, such as tokens. Reads like a list of arrays."""

    flat: Int[np.ndarray, " _"]
    """The values of all rows, one row after the other."""

    offsets: Int64[np.ndarray, " _"]
    """`[n + 1]`: where each row begins, and where the last one ends."""

    def __post_init__(self) -> None:
        offsets = self.offsets
        if not (
            offsets.ndim == self.flat.ndim == 1
            and offsets.size
            and offsets[0] == 0
            and offsets[-1] == self.flat.size
            and (offsets[1:] >= offsets[:-1]).all()
        ):
            raise FormatError(
                f"the offsets of a ragged column do not cut its {self.flat.size} values into "
                "rows, expected them to rise from 0 to that. Build it with Ragged.of."
            )

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """Token ids, or other integers that fit into int32, as a ragged column."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = np.fromiter(chain.from_iterable(rows), np.int64, offsets[-1])
        if flat.size and not -(2**31) <= flat.min() <= flat.max() < 2**31:
            raise MismatchError(
                f"a ragged column holds {flat.min()} to {flat.max()}, expected integers of 32 "
                "bits. Keep larger ones in a plain column."
            )
        return cls(flat.astype(np.int32), offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, row: int) -> Int[np.ndarray, " _"]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a ragged column of {len(self)} rows")
        row %= len(self)
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Int[np.ndarray, " _"]]:
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class Root:
    """The attributes of the group: what is said about a whole store."""

    kind: Kind
    n: int
    """Rows of the finished store."""

    shard_rows: int
    shard_reason: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    complete: bool = False
    certificate: Any = None
    """Evidence that was recorded at the end: of a build, rows that were run again."""

    @property
    def n_shards(self) -> int:
        """Shards of each row array."""
        return -(-self.n // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        start = shard * self.shard_rows
        return range(start, min(start + self.shard_rows, self.n))


def shard_rows(
    arrays: Sequence[RowArray], n: int, *, target_bytes: int = 64 << 20, at_most: int = 512
) -> tuple[int, str]:
    """Choose how many rows a shard holds, and say why.

    Large enough that a file is worth its sync (32 to 256 MB write at full speed), small enough that
    an interrupted build loses little. From 16 on a multiple of 16, so that blocks of common widths
    begin on a page of memory. `target_bytes` is the size of a shard of the largest array, `at_most`
    the rows that a resumed build may have to compute again.
    """
    largest = max(arrays, key=lambda array: array.row_bytes)
    fit = max(target_bytes // largest.row_bytes, 1)
    rows, reason = min(
        (
            fit,
            f"{target_bytes} bytes a shard, at {largest.row_bytes} bytes a row of '{largest.name}'",
        ),
        (at_most, f"at most {at_most} rows, so that an interrupted build loses little"),
        (n, f"the store has {n} rows"),
    )
    if rows >= 16 and rows < n:
        rows -= rows % 16
    return rows, reason


_SEGMENT = re.compile(r"(?!\.|__)[^\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff]+(?<![. ])")
_SEGMENT_LIMIT = 200  # bytes; file systems allow 255


def check_name(name: str) -> None:
    """Refuse a name that is not safe as a path inside a store, on any system."""
    parts = name.split("/")
    taken = parts[0] == COMMITS or any(
        part == "zarr.json" or part == "c" or part.startswith("c.") or part.endswith(".tmp")
        for part in parts
    )
    if taken or len(parts) > 8 or not all(map(_is_segment, parts)):
        raise FormatError(
            f"{name!r} cannot be the name of an array or column; expected words such as 'prompt' "
            "or 'resid_post/prompt', without characters that paths give a meaning. Choose another "
            "name."
        )


def _is_segment(part: str) -> bool:
    return _SEGMENT.fullmatch(part) is not None and len(part.encode()) <= _SEGMENT_LIMIT
