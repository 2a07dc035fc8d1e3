"""Disk space: checked before a build or sweep begins, so that none ends half-way.

Quotas, and what others write meanwhile, are not seen: a full disk is then an error when it happens,
and what was committed is kept.
"""

import shutil
from pathlib import Path

from actcache.errors import ActcacheError


def require_room(path: str | Path, n_bytes: int) -> None:
    """Refuse to begin what will not fit.

    Args:
        path: where it is to be written; it need not exist yet.
        n_bytes: bytes that are still to be written there.

    Raises:
        ActcacheError: the file system has fewer bytes free.
    """
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ActcacheError(
            f"the file system of '{folder}' has {_in_words(free)} free, expected "
            f"{_in_words(n_bytes)}, which are still to be written to '{path}'. Make room there, "
            "or choose another place with -o."
        )


def _in_words(n_bytes: int) -> str:
    size, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.4g} {units[0]}"
