"""SQLite cache of paid embeddings: each text is sent to the service once.

It holds digests of texts and their vectors, no text and no key.
"""

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError, FormatError, MismatchError

_VERSION = 1
_QUERY_SIZE = 500  # digests in one query; SQLite takes at least 999 values
_TABLES = """
CREATE TABLE IF NOT EXISTS encoders (name TEXT PRIMARY KEY, dimension INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS embeddings (
  digest BLOB PRIMARY KEY, vector BLOB NOT NULL, crc32 INTEGER NOT NULL
) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/actcache/embeddings.sqlite`, or the same in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    return folder / "actcache" / "embeddings.sqlite"


class EmbeddingCache:
    """The vectors of one encoder, in a file that encoders and running processes may share.

    A batch is one transaction, on disk before `put` returns (rollback journal, `synchronous =
    EXTRA`): a kill or a power cut loses nothing that was put and leaves nothing half-written. If
    two processes embed the same text, the first vector stays; read the vectors that you use from
    here, so that all processes agree.

    `encoder` is what identifies it: endpoint, model and requested dimensions.
    """

    def __init__(self, path: Path, *, encoder: Sequence[str | int | None]):
        self.path = path
        self._encoder = json.dumps(list(encoder))
        with self._errors_explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
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
                    "Upgrade actcache, or cache embeddings in another file."
                )
            for statement in _TABLES.split(";"):
                self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version = {_VERSION}")

    @property
    def dimension(self) -> int | None:
        """Width of this encoder's vectors; None if none is cached."""
        query = "SELECT dimension FROM encoders WHERE name = ?"
        with self._errors_explained():
            row = self._file.execute(query, (self._encoder,)).fetchone()
        return None if row is None else int(row[0])

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return those texts that have no vector yet, in order."""
        digests = [self._digest(text) for text in texts]
        cached = {digest for (digest,) in self._select("digest", digests)}
        return [text for text, digest in zip(texts, digests, strict=True) if digest not in cached]

    def put(self, texts: Sequence[str], vectors: Float32[np.ndarray, "n e"]) -> None:
        """Add the vectors of a batch, all or none."""
        width = vectors.shape[1]
        raw = [vector.tobytes() for vector in vectors.astype("<f4")]
        rows = [(self._digest(text), v, zlib.crc32(v)) for text, v in zip(texts, raw, strict=True)]
        with self._transaction():
            self._file.execute(
                "INSERT OR IGNORE INTO encoders VALUES (?, ?)", (self._encoder, width)
            )
            if width != self.dimension:
                raise MismatchError(
                    f"a vector has {width} dimensions, but those of this model in '{self.path}' "
                    f"have {self.dimension}. Cache embeddings in another file."
                )
            self._file.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", rows)

    def read(self, texts: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """Read the vectors of distinct texts that were all put, in order."""
        vectors = np.empty((len(texts), self.dimension or 0), np.float32)
        rows = {self._digest(text): row for row, text in enumerate(texts)}
        for digest, raw, checksum in self._select("digest, vector, crc32", list(rows)):
            if zlib.crc32(raw) != checksum or len(raw) != 4 * vectors.shape[1]:
                raise self._damage("a vector differs from its checksum")
            vectors[rows.pop(digest)] = np.frombuffer(raw, "<f4")
        if rows:
            raise self._damage(f"{len(rows)} vectors that were there are gone")
        return vectors

    def __enter__(self) -> "EmbeddingCache":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def _digest(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._encoder}\n{text}".encode()).digest()

    def _select(self, columns: str, digests: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(digests), _QUERY_SIZE):
            some = digests[start : start + _QUERY_SIZE]
            marks = ",".join("?" * len(some))
            query = f"SELECT {columns} FROM embeddings WHERE digest IN ({marks})"
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
                f"cannot cache embeddings in '{self.path}' ({error}), expected a file that can be "
                "written. Choose another file."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damage(str(error)) from error

    def _damage(self, what: str) -> FormatError:
        return FormatError(
            f"'{self.path}' is not a cache of embeddings, or it is damaged ({what}). Choose "
            "another file, or move this one away: what it holds will be paid for again."
        )
