"""Fills a store shard by shard, so that whatever is counted as committed is right.

See `schema` for what is written, and in which order.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import IncompleteStoreError, StoreExistsError, refuse
from actcache.store.documents import encode, root_document
from actcache.store.encoding import shard_bytes, shard_parts
from actcache.store.layout import ROOT, Layout, read_layout, record_name, shard_name
from actcache.store.log import FileSum, encode_record, shard, sums_of
from actcache.store.storage.atomic import os_errors_explained
from actcache.store.storage.protocol import LargeObject, Storage
from actcache.store.writing.contents import StoreContents, require_same_store
from actcache.store.writing.partial import (
    Destination,
    begin,
    destination_of,
    is_begun,
    remove_temporaries,
    remove_uncommitted,
    unsealed,
)
from actcache.store.writing.receipts import (
    Receipt,
    Receipts,
    remove_receipts,
    require_blocks,
    shard_record,
    write_shard,
)


class Writer:
    """The one writer of a store that is not finished. Use it as a context manager.

    Leaving the context without `finish` leaves what was committed, which `resume` continues.
    """

    def __init__(
        self,
        destination: Destination,
        layout: Layout,
        unlock: Callable[[], None],
        *,
        shared: bool,
    ):
        self._destination = destination
        self._layout = layout
        self._unlock: Callable[[], None] | None = unlock
        self._last_record = layout.last_record
        self._shared = shared
        self._shard = len(layout.checksums)
        self.n = layout.root.n
        """Rows of the finished store."""

        self.shard_rows = layout.root.shard_rows
        """Rows of each commit, but for the last."""

        self.receipts = Receipts(layout)
        """Those that other processes left, where a store is written by several."""

    @classmethod
    def create(
        cls,
        path: str | Path | Storage,
        contents: StoreContents,
        *,
        overwrite: bool = False,
        shared: bool = False,
    ) -> "Writer":
        """Begin a store.

        Args:
            path: where it will be; until it is finished it is `PATH.partial`. Or a storage, in
                which it is written where it stays.
            contents: all of it but the values of its row arrays.
            overwrite: replace the store at `path` when this one is finished, and an interrupted
                one now.
            shared: other processes write the shards, as `receipts` says; always so in a bucket.

        Raises:
            StoreExistsError: a store, or an interrupted one, is there already.
            MismatchError: columns, config or provenance cannot be stored.
            ActcacheError: the folder cannot be written, or its file system has no room for all.
        """
        destination, encoded = destination_of(path), contents.encode()
        storage = destination.storage
        destination.remove_replaced()
        destination.require_new(overwrite=overwrite)
        destination.require_room(encoded.n_bytes)
        with _locked(storage, f"'{storage.location}' cannot be created") as unlock:
            begin(storage, encoded, overwrite=overwrite)
            return cls(destination, read_layout(storage), unlock, shared=shared)

    @classmethod
    def resume(
        cls,
        path: str | Path | Storage,
        contents: StoreContents,
        *,
        overwrite: bool = False,
        shared: bool = False,
    ) -> "Writer":
        """Continue an interrupted store; where there is none, begin it. Arguments as `create`.

        Raises:
            MismatchError: the store was begun with other contents: names the first field.
            StoreExistsError: the store is finished.
            FormatError: the interrupted store is damaged.
            ActcacheError: another process is writing it, or there is no room for the rest.
        """
        destination = destination_of(path)
        storage = destination.storage
        if not destination.begun():
            return cls.create(path, contents, overwrite=overwrite, shared=shared)
        with _locked(storage, f"'{storage.location}' cannot be continued") as unlock:
            encoded = contents.encode()
            if not is_begun(storage):  # interrupted before it was created
                if not overwrite:
                    destination.require_free(overwrite=False)
                begin(storage, encoded, overwrite=overwrite)
            layout = read_layout(storage)
            require_same_store(encoded, layout, shard_rows=contents.shard_rows)
            destination.require_free(overwrite=overwrite)
            if not storage.is_shared:
                layout = unsealed(layout)
            if shared or storage.is_shared:
                Receipts(layout).require_true(range(len(layout.checksums)))
            else:
                remove_uncommitted(layout)
                remove_receipts(storage)  # their shards are written anew
            destination.require_room(encoded.n_bytes)
            return cls(destination, layout, unlock, shared=shared)

    @property
    def layout(self) -> Layout:
        """The store as it was when it was opened for writing: what other processes need of it."""
        return self._layout

    @property
    def committed(self) -> int:
        """Rows that are safe on disk."""
        return min(self._shard * self.shard_rows, self.n)

    @property
    def next_rows(self) -> slice:
        """The rows that the next commit must bring; empty when all are there."""
        return slice(self.committed, min(self.committed + self.shard_rows, self.n))

    def commit(
        self, blocks: Mapping[str, np.ndarray], *, absent: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Write the next shard of every row array; when this returns it is safe on disk.

        Arrays that lie layer by layer in memory (`[layer, rows, width]` with the first two axes
        swapped) are written without a copy.

        Args:
            blocks: for each row array `[rows, layer, width]`, in its dtype; bfloat16 as uint16.
            absent: for some arrays a bool `[rows]`: rows that were not computed and may be NaN.

        Raises:
            NotFiniteError: a value is infinite or not a number: names row, layer, value.
            ActcacheError: it could not be written; what was committed before is kept.
        """
        self._require_open()
        layout, storage, rows = self._layout, self._layout.storage, self.next_rows
        if self._shared or storage.is_shared:
            with self._errors_explained():
                self.accept(write_shard(layout, self._shard, blocks, absent=absent))
            return
        absent = absent or {}
        require_blocks(layout, blocks, self._shard)
        arrays = list(layout.arrays.values())
        with self._errors_explained():
            checksums: dict[str, list[str]] = {array.name: [] for array in arrays}
            storage.write_large(
                LargeObject(
                    shard_name(array, self._shard),
                    shard_bytes(array, self.shard_rows),
                    shard_parts(
                        array,
                        blocks[array.name],
                        first_row=rows.start,
                        shard_rows=self.shard_rows,
                        checksums=checksums[array.name],
                        absent=absent.get(array.name),
                    ),
                )
                for array in arrays
            )
            committed = range(rows.start, rows.stop)
            self._append(shard(committed, arrays, shard_rows=self.shard_rows, checksums=checksums))
        self._shard += 1

    def accept(self, receipt: Receipt) -> None:
        """Append the record of the next shard, which another process has written.

        Raises:
            DamageError: its objects are gone, or others than it was written for.
        """
        self._require_open()
        if receipt.shard != self._shard or not self.receipts.is_true(receipt):
            refuse(
                f"shard {self._shard} of {self._layout.storage.location}",
                "other bytes",
                "those of its receipt",
            )
        with self._errors_explained():
            self._append(shard_record(self._layout, receipt))
        self._shard += 1

    def finish(self, certificate: Any = None) -> None:
        """Seal the store and give it its name. Nothing opens it for writing again.

        `certificate` is evidence to record with it, as JSON.
        """
        self._require_open()
        layout, storage = self._layout, self._layout.storage
        if self.committed < self.n:
            raise IncompleteStoreError(
                f"'{storage.location}' holds {self.committed} of {self.n} rows, expected all of "
                "them before it is finished. Commit the rest."
            )
        if not storage.is_shared:
            self._destination.require_free(overwrite=False)
            if self._shared:
                remove_temporaries(layout)
        # A worker that wakes late, on a device of other last bits, may have taken an object for a
        # leftover in the instant before its record was there.
        self.receipts.require_true(range(layout.root.n_shards))
        root = replace(layout.root, complete=True, certificate=certificate)
        document = encode(root_document(root))
        with self._errors_explained():
            self._append(sums_of({ROOT: FileSum.of(document)}))
            storage.write(ROOT, [document])
            self._destination.put_in_place()
            remove_receipts(storage)
        self.close()

    def close(self) -> None:
        """Release the lock; what was committed stays."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _append(self, content: Mapping[str, Any]) -> None:
        number = self._shard + 1
        raw, digest = encode_record(
            content,
            number=number,
            previous=self._last_record,
            record_bytes=self._layout.record_bytes,
        )
        storage, name = self._layout.storage, record_name(number)
        if not (self._shared or storage.is_shared):
            storage.write(name, [raw])
        elif storage.put_if_absent(name, [raw]) is None and storage.read(name) != raw:
            raise StoreExistsError(
                f"'{storage.where(name)}' was written by another build, with other values, "
                "expected one build of a store. Wait for that one, or choose another path."
            )
        self._last_record = digest

    def _require_open(self) -> None:
        if self._unlock is None:
            raise StoreExistsError(
                f"the writer of '{self._layout.storage.location}' is closed. Open it again with "
                "Writer.resume."
            )

    def _errors_explained(self) -> AbstractContextManager[None]:
        """Say in one line what the storage refused, and how many rows are safe."""
        where = self._layout.storage.location
        return os_errors_explained(
            f"'{where}' cannot be written", committed=f"{self.committed} of {self.n}"
        )


@contextmanager
def _locked(storage: Storage, what: str) -> Iterator[Callable[[], None]]:
    """Take the lock, which an error in the block releases; say in one line what went wrong."""
    with os_errors_explained(what):
        unlock = storage.lock()
        try:
            yield unlock
        except BaseException:
            unlock()
            raise
