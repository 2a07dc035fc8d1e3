"""Whether a store can be written where it is to be, asked before rows are read."""

import os
from pathlib import Path

from actcache.errors import ActcacheError
from actcache.store.partial import LocalDestination


def require_place(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a path that is taken, inside a store, or in a folder that cannot be written.

    Raises:
        StoreExistsError: something lies there that this run may not replace.
        ActcacheError: the folder is none, or is not writable.
    """
    destination = LocalDestination(path)
    if not resume:
        destination.require_new(overwrite=overwrite)
    folder = destination.path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "may not be written" if folder.is_dir() else "is no folder"
        raise ActcacheError(
            f"'{path}' cannot be created: '{folder}' {problem}. Choose a folder with room, that "
            "you may write to."
        )
