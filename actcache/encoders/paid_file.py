"""A SQLite file of answers that were paid for, which running processes may share.

It holds digests of what was asked, no text of it and no key.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from actcache.errors import ActcacheError, FormatError

T = TypeVar("T", bound="PaidFile")

_VERSION = 1
_QUERY_SIZE = 500  # digests in one query; SQLite takes at least 999 values


class PaidFile:
    """A file of answers by digest. A context manager.

    What one transaction writes is on disk when it ends (rollback journal, `synchronous = EXTRA`): a
    kill or a power cut loses nothing that was put and leaves nothing half-written.

    Args:
        path: of the file; made if it is not there.
        tables: statements that make its tables where they are missing, apart by semicolons. The
            table of answers has a primary key `digest`.
        content: what it holds, such as `embeddings`, for messages.
    """

    def __init__(self, path: Path, *, tables: str, content: str):
        self.path = path
        self._content = content
        with self._errors_explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            self._prepare(tables)
        except BaseException:
            self._file.close()
            raise

    def _prepare(self, tables: str) -> None:
        with self._errors_explained():
            self._file.execute("PRAGMA synchronous = EXTRA")
        with self._transaction():
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            (n_tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and n_tables:
                raise self._damage("another program's database")
            if version not in (0, _VERSION):
                raise FormatError(
                    f"'{self.path}' has version {version}, but this actcache reads {_VERSION}. "
                    f"Upgrade actcache, or cache {self._content} in another file."
                )
            for statement in tables.split(";"):
                self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version = {_VERSION}")

    def __enter__(self: T) -> T:  # not `Self`, which the shape checks of tests cannot read
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def _select(
        self, table: str, columns: str, digests: Sequence[bytes]
    ) -> Iterator[tuple[Any, ...]]:
        """Read columns of the rows that have one of these digests, in any order."""
        for start in range(0, len(digests), _QUERY_SIZE):
            some = digests[start : start + _QUERY_SIZE]
            marks = ",".join("?" * len(some))
            query = f"SELECT {columns} FROM {table} WHERE digest IN ({marks})"
            with self._errors_explained():
                rows = self._file.execute(query, some).fetchall()
            yield from rows

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors_explained(), self._file:  # commits, or rolls back
            # Immediate: two processes wait for each other here, not half-way, where one would fail.
            self._file.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise ActcacheError(
                f"cannot cache {self._content} in '{self.path}' ({error}), expected a file that "
                "can be written. Choose another file."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damage(str(error)) from error

    def _damage(self, what: str) -> FormatError:
        return FormatError(
            f"'{self.path}' is not a cache of {self._content}, or it is damaged ({what}). Choose "
            "another file, or move this one away: what it holds will be paid for again."
        )
