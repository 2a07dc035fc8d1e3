"""The log of commits: records that chain, each holding checksums of what it vouches for.

Makes and parses single records, and follows the chain. Parsers raise `DamageError`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from jaxtyping import UInt32

from actcache.errors import FormatError, MismatchError, refuse
from actcache.store.documents import decode, integer, is_a, list_of, match_fields
from actcache.store.encoding import block_bytes
from actcache.store.schema import COMMITS, DOCUMENT_LIMIT, Root, RowArray
from actcache.store.storage.protocol import Storage

ROOT = "zarr.json"
"""The group's document."""

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
    """One record of the log."""

    previous: str
    """sha256 of the record before it."""

    sha256: str
    content: dict[str, Any]


Checksums = Mapping[str, UInt32[np.ndarray, " layer"]]
"""The crc32c of each block of a shard, by row array."""


def record_name(number: int) -> str:
    """The file of one record."""
    return f"{COMMITS}/c.{number}.0"


def sums_of(files: Mapping[str, FileSum]) -> dict[str, Any]:
    """Content of a record that vouches for whole files.

    Record 0 vouches for every file that is written at creation; the seal for the document of the
    group of a finished store.
    """
    return {"files": {name: [file.n_bytes, file.sha256] for name, file in files.items()}}


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
    """Bytes that the largest record of a store can take, rounded up."""
    places = {array.name: ["0" * 8] * array.n_layers for array in arrays}
    rows = range(root.n, root.n)
    contents = (
        sums_of(files),
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
    """A record that is intact: its own sha256 is right, and every byte is as it was written."""
    body = decode(raw, where)
    fields = {"record": is_a(int), "previous": is_a(str), "sha256": is_a(str)}
    frame = match_fields(body, fields, where, f"record {number} of the log")
    # What is hashed ends where this field begins; after it there is padding and nothing else.
    end = f',"sha256":"{frame["sha256"]}"}}'.encode()
    hashed, separator, padding = raw.partition(end)
    if (
        frame["record"] != number
        or hashlib.sha256(hashed + b"}").hexdigest() != frame["sha256"]
        or separator + padding != end.ljust(len(raw) - len(hashed) - 1) + b"\n"
    ):
        refuse(where, "other bytes", f"record {number} of the log, unchanged")
    content = {name: value for name, value in body.items() if name not in fields}
    return Record(frame["previous"], frame["sha256"], content)


def parse_files(record: Record, where: str) -> dict[str, FileSum]:
    """The files that record 0, or the seal, vouches for."""
    files = match_fields(record.content, {"files": is_a(dict)}, where, "sums of files")["files"]
    if not files or not all(map(_is_file_sum, files.values())):
        refuse(where, "another record", "sizes and checksums of files")
    return {name: FileSum(*pair) for name, pair in files.items()}


def parse_shard(
    record: Record, *, root: Root, arrays: Sequence[RowArray], number: int, where: str
) -> Checksums:
    """The checksums of one shard of this store."""
    expected = f"the record of shard {number}"
    rows_and_blocks = {"rows": list_of(is_a(int), 2), "blocks": is_a(dict)}
    blocks = match_fields(record.content, rows_and_blocks, where, expected)["blocks"]
    checksums = {}
    for array in arrays:
        fields = {"bytes": is_a(int), "crc32c": _are_checksums}
        block = match_fields(blocks.get(array.name), fields, where, expected)
        checksums[array.name] = block["crc32c"]
    lengths = {name: len(sums) for name, sums in checksums.items()}
    if lengths != {array.name: array.n_layers for array in arrays} or record.content != shard(
        root.rows_of(number), arrays, shard_rows=root.shard_rows, checksums=checksums
    ):
        refuse(where, "another record", expected)
    return {
        name: np.frombuffer(bytes.fromhex("".join(sums)), ">u4").astype(np.uint32)
        for name, sums in checksums.items()
    }


def read_record(storage: Storage, number: int, record_bytes: int) -> Record:
    """Read one record, and check that it is intact."""
    name = record_name(number)
    raw = storage.read(name, n_bytes=record_bytes)
    return decode_record(raw, number=number, where=storage.where(name))


def follow_log(
    storage: Storage,
    root: Root,
    arrays: Sequence[RowArray],
    first: Record,
    *,
    record_bytes: int,
    listed: Mapping[str, int],
) -> tuple[list[Checksums], str, FileSum | None]:
    """Follow the chain as far as it holds: shards, the last sha256, what the seal vouches for.

    `listed` has the sizes of objects as a listing gave them; records that it has are read many at
    once.
    """
    checksums: list[Checksums] = []
    last = first.sha256
    records = _records_after_the_first(storage, root.n_shards + 1, record_bytes, listed)
    for number in range(root.n_shards):
        where = storage.where(record_name(number + 1))
        try:
            record = next(records)
            if record.previous != last:
                break
            shard = parse_shard(record, root=root, arrays=arrays, number=number, where=where)
        except FormatError:
            if root.complete:
                raise
            break  # the log of an interrupted build ends here
        checksums.append(shard)
        last = record.sha256
    if len(checksums) < root.n_shards:
        if root.complete:
            where = storage.where(record_name(len(checksums) + 1))
            refuse(where, "a record of another store", "one that chains to the record before it")
        return checksums, last, None
    name = record_name(root.n_shards + 1)
    if not root.complete and name not in listed and not storage.exists(name):
        return checksums, last, None
    where = storage.where(name)
    record = next(records)
    files = parse_files(record, where)
    if record.previous != last or files.keys() != {ROOT} or record.content.keys() != {"files"}:
        refuse(where, "another record", "the seal of this store")
    return checksums, last, files[ROOT]


def _records_after_the_first(
    storage: Storage, last: int, record_bytes: int, listed: Mapping[str, int]
) -> Iterator[Record]:
    """Records 1 to `last`; raises at the first that is missing or damaged."""
    names = map(record_name, range(1, last + 1))  # one by one: a hostile store may claim 2^45
    whole = list(takewhile(lambda name: listed.get(name) == record_bytes, names))
    for number, raw in enumerate(storage.read_many(whole, n_bytes=record_bytes), 1):
        yield decode_record(raw, number=number, where=storage.where(record_name(number)))
    for number in range(len(whole) + 1, last + 1):  # not listed: it may be there since
        yield read_record(storage, number, record_bytes)


def _is_file_sum(pair: Any) -> bool:
    """A size and a sha256."""
    match pair:
        case [n_bytes, str(sha256)] if _SHA256.fullmatch(sha256):
            return integer(0, 1 << 48)(n_bytes)
    return False


def _are_checksums(sums: Any) -> bool:
    return (
        type(sums) is list
        and all(type(digits) is str and len(digits) == 8 for digits in sums)
        and _HEX.fullmatch("".join(sums)) is not None
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
