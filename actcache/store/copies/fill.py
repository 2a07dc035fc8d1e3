"""Fills a new store from another source: read shard by shard, committed as a build is.

Copies of stores, imported files and unpacked archives are written here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import Store, open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.partial import discard
from actcache.store.writing.writer import Writer

Read = Callable[[RowArray, slice], Shaped[np.ndarray, "_ layer width"]]
"""Gives some rows of one array in its stored dtype; bfloat16 as its bits, uint16."""


Fill = Callable[..., Store]
"""`fill_store` with what a caller decides: path, `resume`, `overwrite`, `on_rows`."""


def fill_store(
    path: str | Path,
    contents: StoreContents,
    *,
    read: Read,
    certificate: Any = None,
    digest: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Write a whole store; memory holds one shard of each array.

    `digest` is what `Store.digest` of the result must be, where that is known: if it is another,
    nothing is left at `path`. `on_rows` receives the number of rows of each commit.
    """
    start = Writer.resume if resume else Writer.create
    with start(path, contents, overwrite=overwrite) as writer:
        on_rows(writer.committed)
        while writer.committed < writer.n:
            rows = writer.next_rows
            values = {array.name: read(array, rows) for array in contents.arrays}
            writer.commit(values, absent=contents.absent(rows))
            on_rows(rows.stop - rows.start)
        with open_store(path, partial=True) as written:
            written_digest = written.digest
        if digest not in (None, written_digest):
            discard(path)
            raise MismatchError(
                f"what was written to '{path}' has the digest {written_digest[:16]}…, expected "
                f"{str(digest)[:16]}…, that of the store it was exported from: the file was "
                "changed or damaged since. Export it again."
            )
        writer.finish(certificate)
    return open_store(path)
