"""Keeps every vector that was paid for, so that no text is paid for twice. One SQLite file.

Knows digests and vectors; knows no service, and keeps no text and no key.
"""

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError, FormatError, MismatchError

_VERSION = 1
_AT_ONCE = 500  # digests in one query; SQLite takes at least 999 values
_SCHEMA = """
CREATE TABLE IF NOT EXISTS encoders (
  name TEXT PRIMARY KEY, dimension INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS embeddings (
  digest BLOB PRIMARY KEY, vector BLOB NOT NULL, crc32 INTEGER NOT NULL
) WITHOUT ROWID;
"""


def default_keeper() -> Path:
    """`$XDG_CACHE_HOME/actcache/embeddings.sqlite`, or below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    return folder / "actcache" / "embeddings.sqlite"


class Keeper:
    """The vectors of one encoder in a file that others may share, processes at the same time too.

    A batch is one transaction, on disk before `put` returns (rollback journal, `synchronous =
    EXTRA`): a kill or a power cut loses nothing that was put and leaves nothing half. A vector that
    another process put first stays; read what you use from here, and all agree.

    Args:
        path: the file; it and its folder are made if need be.
        encoder: what tells the encoder from others, such as endpoint, model and asked dimensions.

    Raises:
        FormatError: the file is damaged, or something else.
        ActcacheError: it cannot be opened here.
    """

    def __init__(self, path: Path, *, encoder: Sequence[str | int | None]):
        self.path = path
        self._encoder = json.dumps(list(encoder))
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        self._file.execute("PRAGMA synchronous = EXTRA")
        with self._transaction():
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            (n_tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and n_tables:
                raise self._damaged("a database of something else")
            if version not in (0, _VERSION):
                raise FormatError(
                    f"'{self.path}' has version {version}, but this actcache reads {_VERSION}. "
                    "Upgrade actcache, or keep embeddings in another file."
                )
            for statement in _SCHEMA.split(";"):
                self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version = {_VERSION}")

    def digest(self, text: str) -> bytes:
        """32 bytes that stand for a text as this encoder sees it."""
        return hashlib.sha256(f"{self._encoder}\n{text}".encode()).digest()

    @property
    def dimension(self) -> int | None:
        """Width of this encoder's kept vectors; None before the first."""
        with self._explained():
            row = self._file.execute(
                "SELECT dimension FROM encoders WHERE name = ?", (self._encoder,)
            ).fetchone()
        return None if row is None else int(row[0])

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those texts that have no vector yet, in order."""
        digests = [self.digest(text) for text in texts]
        kept = {digest for digest, *_ in self._rows("digest", digests)}
        return [text for text, digest in zip(texts, digests, strict=True) if digest not in kept]

    def put(self, vectors: Mapping[str, Float32[np.ndarray, " e"]]) -> None:
        """Keep vectors by their texts, all or none.

        Raises:
            MismatchError: they are not as wide as those that this encoder has given before.
        """
        with self._explained(), self._transaction():
            for text, vector in vectors.items():
                self._file.execute(
                    "INSERT OR IGNORE INTO encoders VALUES (?, ?)", (self._encoder, vector.size)
                )
                kept = self.dimension
                if vector.size != kept:
                    raise MismatchError(
                        f"a vector has {vector.size} dimensions, but '{self.path}' keeps {kept} "
                        "for this model. Keep embeddings in another file."
                    )
                raw = np.ascontiguousarray(vector, "<f4").tobytes()
                self._file.execute(
                    "INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)",
                    (self.digest(text), raw, zlib.crc32(raw)),
                )

    def read(self, texts: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """The kept vectors of texts, in order.

        Raises:
            MismatchError: one of them has none.
            FormatError: one is damaged.
        """
        found = np.empty((len(texts), self.dimension or 0), np.float32)
        places = {self.digest(text): place for place, text in enumerate(texts)}
        n_found = 0
        for digest, raw, crc in self._rows("digest, vector, crc32", list(places)):
            if zlib.crc32(raw) != crc or len(raw) != 4 * found.shape[1]:
                raise self._damaged("a vector differs from its checksum")
            found[places[digest]] = np.frombuffer(raw, "<f4")
            n_found += 1
        if n_found != len(texts):
            raise MismatchError(
                f"'{self.path}' keeps {n_found} of {len(texts)} texts, expected all. Embed the "
                "others first, and each text once."
            )
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _rows(self, columns: str, digests: Sequence[bytes]) -> Iterable[tuple[Any, ...]]:
        for start in range(0, len(digests), _AT_ONCE):
            some = digests[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT {columns} FROM embeddings WHERE digest IN ({marks})"
            with self._explained():
                rows = self._file.execute(query, some).fetchall()
            yield from rows

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate: two processes wait for one another here, not half-way, where one would fail.
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._file.in_transaction:  # SQLite may have ended it itself
                self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise ActcacheError(
                f"cannot use '{self.path}' to keep embeddings ({error}), expected a file that can "
                "be written here. Name another."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> FormatError:
        return FormatError(
            f"'{self.path}' is no file of embeddings, or it is damaged ({what}). Name another, or "
            "move it away: what it kept will be paid for again."
        )
