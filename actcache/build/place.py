"""Whether a store can be written where it is to be, asked before rows are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actcache.errors import ActcacheError
from actcache.store.storage.address import bucket_address
from actcache.store.writing.contents import require_same_config
from actcache.store.writing.partial import Destination, LocalDestination, begun_root, destination_of


def require_place(
    path: str | Path,
    *,
    resume: bool,
    overwrite: bool,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a path that is taken, inside a store, or in a folder that cannot be written.

    With `config`, the settings as JSON, also refuse to resume what was begun with others.

    Raises:
        StoreExistsError: something lies there that this run may not replace.
        MismatchError: the interrupted store there has other settings: names the first.
        ActcacheError: the folder is none, or is not writable; or the bucket cannot be written, or
            lets a second writer replace an object.
    """
    destination = destination_of(path)
    if bucket_address(path) is not None:
        from actcache.store.storage.s3 import require_create_only  # needs obstore

        require_create_only(destination.storage)
    if not resume:
        destination.require_new(overwrite=overwrite)
    elif config is not None:
        _require_resumable(destination, config)
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


def _require_resumable(destination: Destination, config: Mapping[str, Any]) -> None:
    """Refuse early what `Writer.resume` would refuse when the model is loaded."""
    storage = destination.storage
    root = begun_root(storage) if destination.begun() else None
    if root is None or root.complete:
        destination.require_free(overwrite=False)
    if root is not None:
        require_same_config(config, storage, root)
