"""SQLite cache of paid embeddings: each text is sent to the service once.

It holds digests of texts and their vectors, no text and no key.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from actcache.encoders.paid_file import PaidFile
from actcache.errors import MismatchError
from actcache.store.storage.user_cache import cache_folder

_TABLES = """
CREATE TABLE IF NOT EXISTS encoders (name TEXT PRIMARY KEY, dimension INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS embeddings (
  digest BLOB PRIMARY KEY, vector BLOB NOT NULL, crc32 INTEGER NOT NULL
) WITHOUT ROWID;
"""


MAX_WIDTH = 1_000_000
"""Of a vector; more is damage, and would take memory."""


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/actcache/embeddings.sqlite`, or the same in `~/.cache`."""
    return cache_folder() / "embeddings.sqlite"


class EmbeddingCache(PaidFile):
    """The vectors of one encoder, in a file that encoders and running processes may share.

    A batch is one transaction. If two processes embed the same text, the first vector stays; read
    the vectors that you use from here, so that all processes agree.

    `encoder` is what identifies it: endpoint, model and requested dimensions.
    """

    def __init__(self, path: Path, *, encoder: Sequence[str | int | None]):
        self._encoder = json.dumps(list(encoder))
        super().__init__(path, tables=_TABLES, content="embeddings")

    @property
    def dimension(self) -> int | None:
        """Width of this encoder's vectors; None if none is cached."""
        query = "SELECT dimension FROM encoders WHERE name = ?"
        with self._errors_explained():
            row = self._file.execute(query, (self._encoder,)).fetchone()
        if row is not None and not (type(row[0]) is int and 0 < row[0] <= MAX_WIDTH):
            raise self._damage(f"a model with {str(row[0])[:40]!r} dimensions")
        return None if row is None else int(row[0])

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return those texts that have no vector yet, in order."""
        digests = [self._digest(text) for text in texts]
        cached = {digest for (digest,) in self._select("embeddings", "digest", digests)}
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
        for digest, raw, checksum in self._select(
            "embeddings", "digest, vector, crc32", list(rows)
        ):
            if zlib.crc32(raw) != checksum or len(raw) != 4 * vectors.shape[1]:
                raise self._damage("a vector differs from its checksum")
            vectors[rows.pop(digest)] = np.frombuffer(raw, "<f4")
        if rows:
            raise self._damage(f"{len(rows)} vectors that were there are gone")
        return vectors

    def _digest(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._encoder}\n{text}".encode()).digest()
