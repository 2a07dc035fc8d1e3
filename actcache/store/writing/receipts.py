"""Shards that several processes write: each leaves a receipt, and one writer appends the records.

A shard's objects are written create-only, so nobody overwrites what somebody vouches for. A record
of the log is a pure function of the receipt, so any coordinator writes the same bytes. Receipts lie
beside the store and are removed when it is finished.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import UInt32

from actcache.errors import DamageError, MismatchError, refuse
from actcache.store.encoding import block_bytes, shard_bytes, shard_parts
from actcache.store.layout import Layout, record_name, shard_name
from actcache.store.log import decode_record, parse_shard, shard
from actcache.store.schema import DOCUMENT_LIMIT, RowArray
from actcache.store.storage.protocol import Storage

SUFFIX = ".receipts"
"""Ends the name of the storage that holds the receipts of a store."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is known of one shard whose objects are whole."""

    shard: int
    store: str
    """sha256 of the store's record 0."""

    checksums: Mapping[str, Sequence[str]]
    """By row array the crc32c of each block, as the log has them."""

    etags: Mapping[str, str]
    """By row array what tells its object from another of that name."""


class Receipts:
    """The receipts of one store."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._storage = receipts_beside(layout.storage)

    def write(self, receipt: Receipt) -> None:
        """Leave a receipt, durably; it replaces an older one of the same shard."""
        self._storage.write(_name(receipt.shard), [json.dumps(asdict(receipt)).encode()])

    def read(self) -> dict[int, Receipt]:
        """Collect by shard the receipts of this store whose objects are as they say."""
        return {receipt.shard: receipt for receipt, is_true in self._read() if is_true}

    def require_true(self, shards: range) -> None:
        """Refuse shards of which a receipt says that their objects were others.

        Raises:
            DamageError: names the shard.
        """
        for receipt, is_true in self._read():
            if receipt.shard in shards and not is_true:
                refuse(
                    f"shard {receipt.shard} of {self._layout.storage.location}",
                    "other bytes",
                    "those of its receipt and of its record",
                )

    def read_true(self, number: int) -> Receipt | None:
        """The receipt of one shard, if its objects are as it says."""
        with suppress(DamageError):
            receipt = _parsed(self._storage.read(_name(number), at_most=DOCUMENT_LIMIT))
            if receipt is not None and self.is_true(receipt):
                return receipt
        return None

    def is_true(self, receipt: Receipt) -> bool:
        """Whether the objects of a receipt are there, and those that it was written for."""
        names = [shard_name(array, receipt.shard) for array in self._layout.arrays.values()]
        with suppress(DamageError):
            return self._fits(receipt, {name: self._layout.storage.etag(name) for name in names})
        return False

    def _read(self) -> list[tuple[Receipt, bool]]:
        """The receipts of this store, and whether each is true; few requests for all."""
        names = [name for name in self._storage.list() if name.endswith(".json")]
        receipts = [receipt for receipt in map(_parsed, self._storage.read_many(names)) if receipt]
        etags: dict[str, str] = {}
        for name in self._layout.arrays if receipts else ():
            etags |= self._layout.storage.etags(name)
        return [
            (receipt, self._fits(receipt, etags))
            for receipt in receipts
            if receipt.store == self._layout.first_record
        ]

    def _fits(self, receipt: Receipt, etags: Mapping[str, str]) -> bool:
        arrays = self._layout.arrays
        return (
            receipt.store == self._layout.first_record
            and receipt.etags.keys() == arrays.keys()
            and all(
                etags.get(shard_name(array, receipt.shard)) == receipt.etags[name]
                for name, array in arrays.items()
            )
        )


def receipts_beside(storage: Storage) -> Storage:
    """The storage of the receipts of the store in `storage`."""
    return storage.sibling(SUFFIX)


def remove_receipts(storage: Storage) -> None:
    """Remove all receipts of the store in `storage`."""
    receipts_beside(storage).remove("")


def write_shard(
    layout: Layout,
    number: int,
    blocks: Mapping[str, np.ndarray],
    *,
    absent: Mapping[str, np.ndarray] | None = None,
) -> Receipt:
    """Write the objects of one shard create-only, whoever else writes it; arguments as `commit`.

    An object of that name counts as ours if its bytes are equal. One of other bytes stands if a
    receipt or a record vouches for it; else an interrupted writer left it, and it is replaced.

    Raises:
        DamageError: a record vouches for the shard, and an object has other bytes.
        NotFiniteError: a value is infinite or not a number.
        MismatchError: blocks are missing, or have another shape or dtype.
    """
    require_blocks(layout, blocks, number)
    rows, size = layout.root.rows_of(number), layout.root.shard_rows
    checksums: dict[str, list[str]] = {}
    etags: dict[str, str] = {}
    for array in layout.arrays.values():

        def parts(array: RowArray = array) -> Iterator[bytes | np.ndarray]:
            checksums[array.name] = []
            return shard_parts(
                array,
                blocks[array.name],
                first_row=rows.start,
                shard_rows=size,
                checksums=checksums[array.name],
                absent=(absent or {}).get(array.name),
            )

        name = shard_name(array, number)
        while (etag := layout.storage.put_if_absent(name, parts())) is None:
            if (etag := _etag_of_equal(layout.storage, name, parts())) is not None:
                break
            if (vouched := _vouched(layout, number)) is not None:
                return vouched
            layout.storage.remove(name)
        etags[array.name] = etag
    return Receipt(shard=number, store=layout.first_record, checksums=checksums, etags=etags)


def shard_record(layout: Layout, receipt: Receipt) -> dict[str, Any]:
    """Content of the record of a shard, from its receipt alone."""
    return shard(
        layout.root.rows_of(receipt.shard),
        list(layout.arrays.values()),
        shard_rows=layout.root.shard_rows,
        checksums=receipt.checksums,
    )


def require_blocks(layout: Layout, blocks: Mapping[str, np.ndarray], number: int) -> None:
    """Refuse blocks that are not those of a shard of this store."""
    arrays, rows = layout.arrays, layout.root.rows_of(number)
    if blocks.keys() != arrays.keys() or not rows:
        raise MismatchError(
            f"rows of {', '.join(sorted(blocks))} were to be committed, expected "
            f"{len(rows)} rows of {', '.join(sorted(arrays))}. Commit each shard once."
        )
    for array in arrays.values():
        block, shape = blocks[array.name], (len(rows), array.n_layers, array.width)
        if block.shape != shape or block.dtype != array.stored:
            raise MismatchError(
                f"'{array.name}' was to be committed as {block.dtype} {list(block.shape)}, "
                f"expected {array.stored} {list(shape)}. Pass rows {rows.start} to {rows.stop}."
            )


def _name(number: int) -> str:
    return f"{number}.json"


def _parsed(raw: bytes) -> Receipt | None:
    """A receipt from its bytes; what is none counts as nothing."""
    with suppress(ValueError, TypeError):
        return Receipt(**json.loads(raw))
    return None


def _etag_of_equal(storage: Storage, name: str, parts: Iterator[bytes | np.ndarray]) -> str | None:
    """The etag of an object if it has just these bytes, and had them while it was read."""
    content = b"".join(bytes(part) for part in parts)  # to the end, so that checksums are filled
    with suppress(DamageError):  # missing, or of another size
        etag = storage.etag(name)
        if storage.read(name, n_bytes=len(content)) == content and storage.etag(name) == etag:
            return etag
    return None


def _vouched(layout: Layout, number: int) -> Receipt | None:
    """The receipt of a shard that a receipt or a record vouches for, None if none does.

    Raises:
        DamageError: a record vouches for other bytes than there are.
    """
    if (receipt := Receipts(layout).read_true(number)) is not None:
        return receipt
    name = record_name(number + 1)
    if not layout.storage.exists(name):
        return None
    where = layout.storage.where(name)
    raw = layout.storage.read(name, n_bytes=layout.record_bytes)
    arrays = list(layout.arrays.values())
    recorded = parse_shard(
        decode_record(raw, number=number + 1, where=where),
        root=layout.root,
        arrays=arrays,
        number=number,
        where=where,
    )
    for array in arrays:
        if not np.array_equal(_checksums(layout, array, number), recorded[array.name]):
            refuse(
                layout.storage.where(shard_name(array, number)),
                "other bytes",
                "those that its record vouches for",
            )
    return Receipt(
        shard=number,
        store=layout.first_record,
        checksums={name: [f"{crc:08x}" for crc in sums] for name, sums in recorded.items()},
        etags={array.name: layout.storage.etag(shard_name(array, number)) for array in arrays},
    )


def _checksums(layout: Layout, array: RowArray, number: int) -> UInt32[np.ndarray, " layer"]:
    """The crc32c of each block that the object of a shard holds."""
    n_bytes = shard_bytes(array, layout.root.shard_rows)
    raw = memoryview(layout.storage.read(shard_name(array, number), n_bytes=n_bytes))
    size = block_bytes(array, layout.root.shard_rows)
    blocks = (bytes(raw[layer * size :][:size]) for layer in range(array.n_layers))
    return np.array([google_crc32c.value(block) for block in blocks], np.uint32)
