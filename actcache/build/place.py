"""Whether a store can be written where it is to be, asked before rows are read."""

import os
from pathlib import Path

from actcache.errors import ActcacheError
from actcache.store.partial import LocalDestination, destination_of
from actcache.store.storage.address import bucket_address


def require_place(path: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a path that is taken, inside a store, or in a folder that cannot be written.

    Raises:
        StoreExistsError: something lies there that this run may not replace.
        ActcacheError: the folder is none, or is not writable; or the bucket cannot be written, or
            lets a second writer replace an object.
    """
    destination = destination_of(path)
    if bucket_address(path) is not None:
        from actcache.store.storage.s3 import require_create_only  # needs obstore

        require_create_only(destination.storage)
    if not resume:
        destination.require_new(overwrite=overwrite)
    if not isinstance(destination, LocalDestination):
        return
    folder = destination.path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "may not be written" if folder.is_dir() else "is no folder"
        raise ActcacheError(
            f"'{path}' cannot be created: '{folder}' {problem}. Choose a folder with room, that "
            "you may write to."
        )
