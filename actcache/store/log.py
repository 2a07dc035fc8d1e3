"""The log of commits: records that chain, each holding checksums of what it vouches for.

Makes and reads single records in memory; which of them exist is for `layout` to find out.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt32

from actcache.errors import MismatchError, refuse
from actcache.store.documents import decode
from actcache.store.encoding import block_bytes
from actcache.store.schema import DOCUMENT_LIMIT, Root, RowArray

NO_RECORD = "0" * 64
"""What the first record chains to."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]*")


@dataclass(frozen=True)
class FileSum:
    """What a file must be."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, raw: bytes) -> "FileSum":
        """Of a file with these bytes."""
        return cls(len(raw), hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True)
class Record:
    """One record, whole in itself."""

    previous: str
    """sha256 of the record before it."""

    sha256: str
    content: dict[str, Any]


Checksums = Mapping[str, UInt32[np.ndarray, " layer"]]
"""Of one shard: for each row array the crc32c of each block."""


def creation(files: Mapping[str, FileSum]) -> dict[str, Any]:
    """Content of record 0: every file that was written at creation."""
    return {"files": _sums(files)}


def shard(
    rows: range,
    arrays: Sequence[RowArray],
    *,
    shard_rows: int,
    checksums: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Content of the record of one shard."""
    return {
        "rows": [rows.start, rows.stop],
        "blocks": {
            array.name: {
                "bytes": block_bytes(array, shard_rows),
                "crc32c": list(checksums[array.name]),
            }
            for array in arrays
        },
    }


def seal(root: FileSum) -> dict[str, Any]:
    """Content of the last record: the group's document as it is when the store is complete."""
    return {"files": _sums({"zarr.json": root})}


def encode_record(
    content: Mapping[str, Any], *, number: int, previous: str, record_bytes: int
) -> tuple[bytes, str]:
    """A record as it stands on disk, and its sha256."""
    body = {"record": number, "previous": previous, **content}
    digest = hashlib.sha256(_json(body)).hexdigest()
    raw = _json({**body, "sha256": digest})
    assert len(raw) < record_bytes  # `bytes_of_record` made room
    return raw.ljust(record_bytes - 1) + b"\n", digest


def bytes_of_record(root: Root, arrays: Sequence[RowArray], files: Mapping[str, FileSum]) -> int:
    """Bytes that the largest record of a store can take, rounded up.

    Raises:
        MismatchError: more than a reader would accept.
    """
    places = {array.name: ["0" * 8] * array.n_layers for array in arrays}
    rows = range(root.n, root.n)
    contents = (
        creation(files),
        shard(rows, arrays, shard_rows=root.shard_rows, checksums=places),
    )
    frame = len(_json({"record": root.n, "previous": NO_RECORD, "sha256": NO_RECORD}))
    size = frame + max(len(_json(content)) for content in contents) + 64
    size += -size % 512
    if size > DOCUMENT_LIMIT:
        raise MismatchError(
            f"a record of this store would take {size} bytes, expected {DOCUMENT_LIMIT} at most. "
            "Keep fewer arrays in one store."
        )
    return size


def decode_record(raw: bytes, *, number: int, where: str) -> Record:
    """A record that is whole: its own sha256 holds, and no byte is other than it was written.

    Raises:
        FormatError: it is not.
    """
    body = decode(raw, where)
    digest, previous = body.pop("sha256", None), body.get("previous")
    if type(digest) is not str or type(previous) is not str:
        refuse(where, "another document", f"record {number} of the log")
    # What is hashed ends where this field begins; after it there is padding and nothing else.
    end = f',"sha256":"{digest}"}}'.encode()
    hashed, found, padding = raw.partition(end)
    if (
        type(body.get("record")) is not int
        or body["record"] != number
        or hashlib.sha256(hashed + b"}").hexdigest() != digest
        or found + padding != end.ljust(len(raw) - len(hashed) - 1) + b"\n"
    ):
        refuse(where, "other bytes", f"record {number} of the log, unchanged")
    content = {name: value for name, value in body.items() if name not in ("record", "previous")}
    return Record(previous, digest, content)


def parse_files(record: Record, where: str) -> dict[str, FileSum]:
    """The files that record 0, or the seal, vouches for.

    Raises:
        FormatError: it is not such a record.
    """
    files = record.content.get("files")
    if type(files) is not dict or not files:
        refuse(where, "another record", "sizes and checksums of files")
    sums = {}
    for name, pair in files.items():
        if (
            type(pair) is not list
            or len(pair) != 2
            or type(pair[0]) is not int
            or not 0 <= pair[0] < 1 << 48
            or type(pair[1]) is not str
            or not _SHA256.fullmatch(pair[1])
        ):
            refuse(where, "another record", "sizes and checksums of files")
        sums[name] = FileSum(pair[0], pair[1])
    return sums


def parse_shard(
    record: Record, *, root: Root, arrays: Sequence[RowArray], number: int, where: str
) -> Checksums:
    """The checksums of one shard.

    Raises:
        FormatError: it is not the record of that shard of this store.
    """
    blocks, rows = record.content.get("blocks"), record.content.get("rows")
    names = {array.name for array in arrays}
    if type(blocks) is not dict or blocks.keys() != names or type(rows) is not list:
        refuse(where, "another record", f"that of shard {number}")
    sums: dict[str, Any] = {}
    found: dict[str, UInt32[np.ndarray, " layer"]] = {}
    for array in arrays:
        block = blocks[array.name]
        sums[array.name] = block.get("crc32c") if type(block) is dict else None
        found[array.name] = _parse_sums(sums[array.name], array.n_layers, where)
    expected = shard(root.rows_of(number), arrays, shard_rows=root.shard_rows, checksums=sums)
    sizes = [*rows, *(block.get("bytes") for block in blocks.values())]
    if record.content != expected or not all(type(size) is int for size in sizes):
        refuse(where, "another record", f"that of shard {number}")
    return found


def _parse_sums(sums: Any, n_layers: int, where: str) -> UInt32[np.ndarray, " layer"]:
    """Checksums from their hexadecimal digits."""
    if (
        type(sums) is not list
        or len(sums) != n_layers
        or not all(type(each) is str and len(each) == 8 for each in sums)
        or not _HEX.fullmatch(digits := "".join(sums))
    ):
        refuse(where, "another record", f"checksums of {n_layers} layers")
    return np.frombuffer(bytes.fromhex(digits), ">u4").astype(np.uint32)


def _sums(files: Mapping[str, FileSum]) -> dict[str, list[int | str]]:
    return {name: [each.n_bytes, each.sha256] for name, each in files.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
