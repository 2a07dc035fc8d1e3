"""Is there room on the disk? Asked before a build or sweep begins, so that none ends half-way.

Compares bytes with what the file system has free. Quotas, and what others write meanwhile, it does
not see: a full disk is still told when it comes, and what was committed is kept.
"""

import shutil
from pathlib import Path

from actcache.errors import ActcacheError, FormatError
from actcache.store.encoding import shard_bytes
from actcache.store.layout import partial_folder, read_layout, record_path


def require_room(path: str | Path, n_bytes: int) -> None:
    """Refuse to begin what will not fit.

    Args:
        path: where it is to be written; it need not exist yet.
        n_bytes: bytes that are still to be written there.

    Raises:
        ActcacheError: the file system has fewer free.
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


def committed_bytes(path: str | Path) -> int:
    """Bytes of the shards that an interrupted build or sweep of `path` has on disk already.

    None of what is damaged counts; whoever goes on with it is told.
    """
    folder = partial_folder(Path(path))
    if not record_path(folder, 0).exists():
        return 0
    try:
        layout = read_layout(folder)
    except FormatError:
        return 0
    each = sum(shard_bytes(array, layout.root.shard_rows) for array in layout.arrays.values())
    return each * len(layout.checksums)


def _in_words(n_bytes: int) -> str:
    size, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.4g} {units[0]}"
