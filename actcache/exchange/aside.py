"""A file or folder that is written aside, synced, and then given its name: whole, or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actcache.errors import StoreExistsError
from actcache.store.partial import remove
from actcache.store.storage.atomic import ASIDE, make_folder, os_errors_explained, sync_folder


@contextmanager
def written_aside(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield where to write; on leaving without an error it gets its name.

    Args:
        path: what it will be called.
        overwrite: replace a file that lies there; a folder is never replaced.

    Raises:
        StoreExistsError: something lies at `path`.
        ActcacheError: it cannot be written.
    """
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise StoreExistsError(
            f"'{path}' exists already. Choose another path"
            + ("." if path.is_dir() else ", or replace it with --overwrite.")
        )
    aside = path.with_name(f".{path.name}{ASIDE}")
    with os_errors_explained(f"'{path}' cannot be written"):
        make_folder(path.absolute().parent)
        remove(aside)
        try:
            yield aside
            _sync(aside)
            aside.replace(path)
            sync_folder(path.absolute().parent)
        except BaseException:
            remove(aside)
            raise


def _sync(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
        sync_folder(path)
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
