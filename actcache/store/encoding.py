"""The bytes of one chunk: where a block is in a shard, and how a column is encoded."""

import math
import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np

from actcache.errors import MismatchError, NotFiniteError, refuse
from actcache.store.schema import Column, RowArray

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000}


def block_bytes(array: RowArray, rows: int) -> int:
    """Bytes of one layer of a shard of so many rows."""
    return rows * array.width * np.dtype(array.stored).itemsize


def shard_bytes(array: RowArray, rows: int) -> int:
    """Bytes of a shard's file: the blocks, 16 of index for each, and 4 of checksum."""
    return array.n_layers * (block_bytes(array, rows) + 16) + 4


def shard_index(array: RowArray, rows: int) -> bytes:
    """What follows the blocks: offset and length of each, then the crc32c of those."""
    size = block_bytes(array, rows)
    places = np.full((array.n_layers, 2), size, "<u8")
    places[:, 0] *= np.arange(array.n_layers, dtype="<u8")
    index = places.tobytes()
    return index + struct.pack("<I", google_crc32c.value(index))


def shard_parts(
    array: RowArray,
    block: np.ndarray,
    *,
    first_row: int,
    shard_rows: int,
    checksums: list[str],
    absent: np.ndarray | None = None,
) -> Iterator[bytes | np.ndarray]:
    """What the file of a shard holds, in order; fills `checksums` on the way.

    Rows that are `absent` may be NaN, all others are finite.
    """
    padding = bytes(block_bytes(array, shard_rows - len(block)))
    for layer in range(array.n_layers):
        values = np.ascontiguousarray(block[:, layer])
        checked = (
            values if absent is None else np.where(absent[:, None], values.dtype.type(0), values)
        )
        _require_finite(array, checked, layer=layer, first_row=first_row)
        checksum = google_crc32c.value(values)
        if padding:
            checksum = google_crc32c.extend(checksum, padding)
        checksums.append(f"{checksum:08x}")
        yield values
        yield padding
    yield shard_index(array, shard_rows)


def _require_finite(array: RowArray, values: np.ndarray, *, layer: int, first_row: int) -> None:
    # By the bits, where infinity and what follows it are the largest numbers: those above 0 when
    # read with a sign, those below 0 when read without. Right for bfloat16, and needs no memory.
    size = values.itemsize
    infinity, sign = _INFINITY[array.dtype], 1 << (8 * size - 1)
    signed, unsigned = values.view(f"i{size}"), values.view(f"u{size}")
    if signed.max() < infinity and unsigned.max() < infinity + sign:
        return
    row, column = (int(i) for i in np.argwhere((unsigned & (sign - 1)) >= infinity)[0])
    if array.dtype == "bfloat16":
        values = (unsigned.astype(np.uint32) << 16).view(np.float32)
    raise NotFiniteError(
        f"'{array.name}' of row {first_row + row} at layer {layer} is {values[row, column]} in "
        f"coordinate {column}, expected a finite value of {array.dtype}. Look at that row, or keep "
        "a wider dtype with --store-dtype float32."
    )


def encode_strings(values: Sequence[str] | np.ndarray, name: str) -> bytes:
    """Zarr's `vlen-utf8`: the count, then of each string its length in bytes and its bytes."""
    parts = [struct.pack("<I", len(values))]
    for row, value in enumerate(values):
        try:
            raw = value.encode("utf-8")
        except (AttributeError, UnicodeEncodeError):
            raise MismatchError(
                f"column '{name}' has {value!r} in row {row}, expected text that UTF-8 can hold. "
                "Repair that value."
            ) from None
        parts += (struct.pack("<I", len(raw)), raw)
    return b"".join(parts)


def decode_strings(raw: bytes, n: int, where: str) -> list[str]:
    """The strings of a `vlen-utf8` chunk, which they fill exactly."""
    if len(raw) < 4 * (n + 1) or struct.unpack_from("<I", raw)[0] != n:
        refuse(where, "other bytes", f"{n} strings")
    values, start = [], 4
    try:
        for _ in range(n):
            (size,) = struct.unpack_from("<I", raw, start)
            end = start + 4 + size
            values.append(str(raw[start + 4 : end], "utf-8"))
            start = end
    except (struct.error, UnicodeDecodeError):
        refuse(where, "other bytes", f"{n} strings of UTF-8")
    if start != len(raw):
        refuse(where, f"{len(raw)} bytes", f"{n} strings that take {start}")
    return values


def encode_numbers(values: np.ndarray) -> bytes:
    """Zarr's `bytes` codec, little endian."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def decode_numbers(raw: bytes, column: Column, where: str) -> np.ndarray:
    """The values of a numeric column, read-only."""
    dtype = np.dtype(column.dtype).newbyteorder("<")
    # Python's integers do not overflow where a declared shape is absurd.
    size = math.prod(column.shape) * dtype.itemsize
    if len(raw) != size:
        refuse(where, f"{len(raw)} bytes", f"{size}")
    if column.dtype == "bool" and any(raw.translate(None, b"\x00\x01")):
        refuse(where, "other bytes", "booleans")
    return np.frombuffer(raw, dtype).reshape(column.shape)
