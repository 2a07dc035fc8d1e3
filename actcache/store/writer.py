"""Fills a store shard by shard, so that whatever is counted as committed is right.

Holds the lock of a partial store; knows arrays and columns, not where they come from. See `schema`
for what it writes and in which order.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import IncompleteStoreError, MismatchError, StoreExistsError
from actcache.store.contents import ColumnValues, plan_creation, require_same_store
from actcache.store.documents import encode, root_document
from actcache.store.encoding import shard_bytes, shard_parts
from actcache.store.layout import Layout, partial_folder, read_layout, record_path, shard_path
from actcache.store.log import FileSum, encode_record, seal, shard
from actcache.store.partial import (
    committed_bytes,
    fill,
    lock_folder,
    overwrite_mark,
    put_in_place,
    remove_uncommitted,
    require_free,
    require_replaceable,
    unsealed,
)
from actcache.store.schema import Kind, RowArray
from actcache.store.storage.atomic import (
    LargeFile,
    make_folder,
    os_errors_explained,
    write_durably,
    write_large_files,
)
from actcache.store.storage.room import require_room


class Writer:
    """The one writer of a store that is not complete. Use it as a context manager.

    Leaving the context without `finish` leaves `PATH.partial`, which `resume` goes on with.
    """

    def __init__(self, path: Path, layout: Layout, lock: int):
        self._path = path
        self._layout = layout
        self._lock: int | None = lock
        self._last_record = layout.last_record
        self._shard = len(layout.checksums)
        self.n = layout.root.n
        """Rows, when it is complete."""

        self.shard_rows = layout.root.shard_rows
        """Rows that each commit brings, but for the last."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        kind: Kind,
        n: int,
        arrays: Sequence[RowArray],
        columns: Mapping[str, ColumnValues],
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        overwrite: bool = False,
        shard_rows: int | None = None,
        shard_reason: str = "as asked",
    ) -> "Writer":
        """Begin a store; until it is complete it lies at `PATH.partial`.

        Args:
            path: where it will be.
            kind: what it holds.
            n: its rows, 1 or more.
            arrays: its row arrays.
            columns: what is known of each row: strings, numbers `[n]` or `[n, _]`, or ragged
                integers; and the coordinates of dimensions, by their names.
            config: what was asked for, as JSON; `resume` compares it.
            provenance: where the numbers come from, as JSON; `resume` compares it.
            overwrite: replace the store that lies at `path` when this one is complete, and an
                interrupted one now.
            shard_rows: rows of a shard; by default as `schema.shard_rows` finds.
            shard_reason: why so many, where they are given.

        Raises:
            StoreExistsError: a store, or an interrupted one, is there already.
            MismatchError: columns, config or provenance cannot be stored.
            ActcacheError: the folder cannot be written, or its file system has no room for all.
        """
        path = _absolute(path)
        plan = plan_creation(
            kind=kind, n=n, arrays=arrays, columns=columns, config=config, provenance=provenance,
            shard_rows=shard_rows, shard_reason=shard_reason,
        )  # fmt: skip
        folder = partial_folder(path)
        if not overwrite:
            require_free(path)
        require_replaceable(path)
        if os.path.lexists(folder) and not overwrite:
            raise StoreExistsError(
                f"'{folder}' exists already: a build was interrupted, or is running. Go on with "
                "--resume, or begin anew with --overwrite."
            )
        require_room(path, plan.n_bytes - committed_bytes(path))  # what is replaced makes room
        with os_errors_explained(f"'{folder}' cannot be created"):
            make_folder(folder)
            lock = lock_folder(folder)
            try:
                fill(folder, plan, overwrite=overwrite)
                return cls(path, read_layout(folder), lock)
            except BaseException:
                os.close(lock)
                raise

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        kind: Kind,
        n: int,
        arrays: Sequence[RowArray],
        columns: Mapping[str, ColumnValues],
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        overwrite: bool = False,
        shard_rows: int | None = None,
        shard_reason: str = "as asked",
    ) -> "Writer":
        """Go on with an interrupted store; where there is none, begin it.

        Args: as `create`; `shard_rows` is the interrupted store's where None.

        Raises:
            MismatchError: the store was begun with something else: names the first field.
            StoreExistsError: the store is complete.
            FormatError: what lies there is damaged.
            ActcacheError: another process is writing it, or there is no room for the rest.
        """
        path = _absolute(path)
        folder = partial_folder(path)
        if not os.path.lexists(folder):
            return cls.create(
                path, kind=kind, n=n, arrays=arrays, columns=columns, config=config,
                provenance=provenance, overwrite=overwrite, shard_rows=shard_rows,
                shard_reason=shard_reason,
            )  # fmt: skip
        with os_errors_explained(f"'{folder}' cannot be continued"):
            lock = lock_folder(folder)
            try:
                plan = plan_creation(
                    kind=kind, n=n, arrays=arrays, columns=columns, config=config,
                    provenance=provenance, shard_rows=shard_rows, shard_reason=shard_reason,
                )  # fmt: skip
                if not record_path(folder, 0).exists():  # killed before it was created
                    fill(folder, plan, overwrite=overwrite)
                layout = read_layout(folder)
                require_same_store(plan, layout, shard_rows=shard_rows)
                if overwrite:
                    overwrite_mark(folder).touch()
                elif not overwrite_mark(folder).exists():
                    require_free(path)
                layout = unsealed(layout)
                remove_uncommitted(layout)
                require_room(path, plan.n_bytes - committed_bytes(path))
                return cls(path, layout, lock)
            except BaseException:
                os.close(lock)
                raise

    @property
    def committed(self) -> int:
        """Rows that are safe on disk."""
        return min(self._shard * self.shard_rows, self.n)

    @property
    def next_rows(self) -> slice:
        """The rows that the next commit must bring; empty when all are there."""
        return slice(self.committed, min(self.committed + self.shard_rows, self.n))

    def commit(self, blocks: Mapping[str, np.ndarray]) -> None:
        """Write the next shard of every row array; when this returns it is safe on disk.

        Arrays that lie layer by layer in memory (`[layer, rows, width]` with the first two axes
        swapped) are written without a copy.

        Args:
            blocks: for each row array `[rows, layer, width]`, in its dtype; bfloat16 as uint16.

        Raises:
            MismatchError: other arrays, shapes or dtypes than the store's.
            NotFiniteError: a value is infinite or not a number: names row, layer, value.
            ActcacheError: it could not be written; what was committed before is kept.
        """
        self._require_open()
        layout, rows = self._layout, self.next_rows
        n_rows = rows.stop - rows.start
        arrays = list(layout.arrays.values())
        if blocks.keys() != layout.arrays.keys() or n_rows == 0:
            raise MismatchError(
                f"rows of {', '.join(sorted(blocks))} were to be committed, expected "
                f"{n_rows} rows of {', '.join(sorted(layout.arrays))}. Commit each shard once."
            )
        for array in arrays:
            block, shape = blocks[array.name], (n_rows, array.n_layers, array.width)
            if block.shape != shape or block.dtype != array.stored:
                raise MismatchError(
                    f"'{array.name}' was to be committed as {block.dtype} {list(block.shape)}, "
                    f"expected {array.stored} {list(shape)}. Pass rows {rows.start} to {rows.stop}."
                )
        with os_errors_explained(
            f"'{layout.folder}' cannot be written", kept=f"{self.committed} of {self.n}"
        ):
            checksums: dict[str, list[str]] = {array.name: [] for array in arrays}
            write_large_files(
                LargeFile(
                    shard_path(layout.folder, array, self._shard),
                    shard_bytes(array, self.shard_rows),
                    shard_parts(
                        array,
                        blocks[array.name],
                        first_row=rows.start,
                        shard_rows=self.shard_rows,
                        checksums=checksums[array.name],
                    ),
                )
                for array in arrays
            )
            content = shard(
                range(rows.start, rows.stop),
                arrays,
                shard_rows=self.shard_rows,
                checksums=checksums,
            )
            self._append(self._shard + 1, content)
        self._shard += 1

    def finish(self, certificate: Any = None) -> None:
        """Seal the complete store and give it its name. Nothing opens it for writing again.

        Args:
            certificate: evidence to keep with it, as JSON.

        Raises:
            IncompleteStoreError: rows are missing.
            StoreExistsError: something came to lie at its path meanwhile.
        """
        self._require_open()
        layout, folder = self._layout, self._layout.folder
        if self.committed < self.n:
            raise IncompleteStoreError(
                f"'{folder}' holds {self.committed} of {self.n} rows, expected all of them before "
                "it is finished. Commit the rest."
            )
        if not overwrite_mark(folder).exists():
            require_free(self._path)
        document = encode(
            root_document(replace(layout.root, complete=True, certificate=certificate))
        )
        with os_errors_explained(f"'{folder}' cannot be finished", kept=f"{self.n} of {self.n}"):
            self._append(self._shard + 1, seal(FileSum.of(document)))
            write_durably(folder / "zarr.json", [document])
            put_in_place(folder, self._path)
        self.close()

    def close(self) -> None:
        """Release the lock; what was committed stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _append(self, number: int, content: Mapping[str, Any]) -> None:
        raw, digest = encode_record(
            content,
            number=number,
            previous=self._last_record,
            record_bytes=self._layout.record_bytes,
        )
        write_durably(record_path(self._layout.folder, number), [raw])
        self._last_record = digest

    def _require_open(self) -> None:
        if self._lock is None:
            raise StoreExistsError(
                f"the writer of '{self._path}' is closed. Open it again with Writer.resume."
            )


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() follows links: replacing one would hit its target
