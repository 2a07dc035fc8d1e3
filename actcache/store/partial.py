"""The folder of a store that is not complete: locked, filled, cleaned up, and replaced.

Everything that deletes a file is in here. Knows nothing of residuals.
"""

import fcntl
import os
from dataclasses import replace
from pathlib import Path

from actcache.errors import ActcacheError, FormatError, StoreExistsError
from actcache.store.contents import Creation
from actcache.store.documents import encode, root_document
from actcache.store.encoding import shard_bytes
from actcache.store.layout import Layout, partial_folder, read_layout, record_path, shard_path
from actcache.store.schema import COMMITS
from actcache.store.storage.atomic import ASIDE, remove, sync_folder, write_durably


def lock_folder(folder: Path) -> int:
    """Lock a folder for this process; the lock goes with the process, however that ends."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ActcacheError(
            f"'{folder}' is being written by another process, expected one writer. Wait for it, "
            "or choose another path."
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def fill(folder: Path, plan: Creation, *, overwrite: bool) -> None:
    """Write everything that stands before the first shard; record 0 makes it count."""
    children = list(folder.iterdir())
    if not record_path(folder, 0).exists():
        for child in children:
            if child.name not in plan.top_names and not child.name.endswith(ASIDE):
                raise FormatError(
                    f"'{folder}' holds '{child.name}', expected the beginning of a store. "
                    "Choose another path."
                )
    else:  # without record 0 nothing else counts
        record_path(folder, 0).unlink()
        sync_folder(folder / COMMITS)
    for child in children:
        remove(child)
    folders = {folder}
    for name, raw in plan.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        while path != folder:
            path = path.parent
            folders.add(path)
    if overwrite:
        overwrite_mark(folder).touch()
    for each in folders:
        sync_folder(each)
    write_durably(record_path(folder, 0), [plan.first_record])


def unsealed(layout: Layout) -> Layout:
    """Take back a seal that a kill left behind, so that finishing can begin again."""
    if not layout.sealed:
        return layout
    root = replace(layout.root, complete=False, certificate=None)
    write_durably(layout.folder / "zarr.json", [encode(root_document(root))])
    record_path(layout.folder, root.n_shards + 1).unlink()
    return read_layout(layout.folder)


def remove_uncommitted(layout: Layout) -> None:
    """Remove what an interrupted commit left behind."""
    n_shards = len(layout.checksums)
    kept = {
        layout.folder / array.name: {
            shard_path(layout.folder, array, i).name for i in range(n_shards)
        }
        for array in layout.arrays.values()
    }
    kept[record_path(layout.folder, 0).parent] = {
        record_path(layout.folder, i).name for i in range(n_shards + 1)
    }
    for folder, names in kept.items():
        for file in folder.iterdir():
            if file.name not in names and (file.name.startswith("c.") or file.name.endswith(ASIDE)):
                file.unlink()
    (layout.folder / f"zarr.json{ASIDE}").unlink(missing_ok=True)


def overwrite_mark(folder: Path) -> Path:
    """The file that says that finishing may replace a store: it outlives an interruption."""
    return folder / COMMITS / "overwrite"


def require_free(path: Path) -> None:
    """Refuse a path where something lies."""
    if os.path.lexists(path):
        raise StoreExistsError(
            f"'{path}' exists already. Choose another path, or replace it with --overwrite."
        )


def require_replaceable(path: Path) -> None:
    """Refuse to replace what is no store, such as a folder of somebody's data."""
    if record_path(path, 0).exists() or not os.path.lexists(path):
        return
    # An empty folder is what is left of a store whose removal was interrupted.
    if not path.is_dir() or any(not file.is_dir() for file in path.rglob("*")):
        raise StoreExistsError(
            f"'{path}' exists and is no store, so it will not be replaced. Choose another path."
        )


def put_in_place(folder: Path, path: Path) -> None:
    """Give a complete store its name; replace what lies there, if that was asked for."""
    old = path.with_name(path.name + ".replaced")
    if overwrite_mark(folder).exists():
        require_replaceable(path)
        require_replaceable(old)
        if os.path.lexists(path):
            _remove_store(old)
            path.rename(old)
        overwrite_mark(folder).unlink()
        sync_folder(folder / COMMITS)
    folder.rename(path)
    sync_folder(path.parent)
    _remove_store(old)


def _remove_store(path: Path) -> None:
    """Remove a store, the record by which it is known as one last."""
    if record_path(path, 0).exists():
        require_replaceable(path)
        for child in path.iterdir():
            if child.name != COMMITS:
                remove(child)
        for child in (path / COMMITS).iterdir():
            if child != record_path(path, 0):
                remove(child)
    remove(path)


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
