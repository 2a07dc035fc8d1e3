"""A store that is not finished: begun, cleaned up after an interruption, and put in place.

Everything that decides to delete is in this module. A local store is written to `PATH.partial` and
renamed at the end; in any other storage it is written where it stays. Either way it is finished
when its log is sealed.
"""

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from actcache.errors import ActcacheError, FormatError, StoreExistsError
from actcache.store.documents import decode, encode, parse_root, root_document
from actcache.store.encoding import shard_bytes
from actcache.store.layout import (
    PARTIAL,
    ROOT,
    Layout,
    partial_folder,
    read_layout,
    record_name,
    shard_name,
)
from actcache.store.schema import COMMITS, DOCUMENT_LIMIT, Root
from actcache.store.storage.address import bucket_address, storage_at
from actcache.store.storage.atomic import TEMPORARY, remove, sync_path
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.protocol import Storage
from actcache.store.writing.contents import EncodedContents

OVERWRITE_MARK = f"{COMMITS}/overwrite"
"""A file that says that finishing may replace a store: it outlives an interruption. It holds the
sha256 of the first record of the new store, so that an older interrupted one beside it is not taken
for it; an empty one, as earlier versions wrote it, goes with any."""


class Destination:
    """Where a store is written. In a storage without renames it is written where it stays."""

    def __init__(self, storage: Storage):
        self.storage = storage

    def begun(self) -> bool:
        """Whether a store was begun there."""
        return bool(self.storage.list())

    def finished(self) -> bool:
        """Whether a finished store lies there."""
        return self.storage.exists(record_name(0)) and read_layout(self.storage).complete

    def require_new(self, *, overwrite: bool) -> None:
        """Refuse a place that is not empty: nothing there could be kept until the end.

        In a bucket an interrupted store may be begun anew.
        """
        if overwrite and self.storage.is_shared:
            self.require_free(overwrite=False)
        elif self.begun():
            raise StoreExistsError(
                f"'{self.storage.location}' is not empty, expected room for a store. Continue it "
                "with --resume, or choose another place."
            )

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse to finish a store where another one is finished."""
        if self.finished():
            raise StoreExistsError(
                f"'{self.storage.location}' holds a finished store. Choose another place."
            )

    def require_room(self, n_bytes: int) -> None:
        """Trust the storage to have room."""

    def put_in_place(self) -> None:
        """Give a sealed store its name: it has it already."""

    def remove_replaced(self) -> None:
        """Remove the store that the one there replaced: nothing is replaced here."""


class LocalDestination(Destination):
    """A path: the store is written to `PATH.partial`, and renamed when it is finished."""

    def __init__(self, path: str | Path):
        self.path = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() follows links: replacing one would hit its target
        self.folder = partial_folder(self.path)
        super().__init__(LocalStorage(self.folder))

    def begun(self) -> bool:
        """Whether `PATH.partial` exists."""
        return os.path.lexists(self.folder)

    def finished(self) -> bool:
        """Whether something has the name that only a finished store gets."""
        return self.path.exists()

    def require_new(self, *, overwrite: bool) -> None:
        """Refuse a path that is taken or inside a store, unless a store there may be replaced."""
        require_outside_stores(self.path)
        if not overwrite:
            require_free(self.path)
        _require_replaceable(self.path)
        if self.begun() and not overwrite:
            raise StoreExistsError(
                f"'{self.folder}' exists already: a build was interrupted, or is running. Continue "
                "with --resume, or begin anew with --overwrite."
            )

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse a path that is taken, unless the store was begun to replace it."""
        if overwrite:
            _mark(self.storage, self.storage.read(record_name(0)))
        elif not self.storage.exists(OVERWRITE_MARK):
            require_free(self.path)

    def require_room(self, n_bytes: int) -> None:
        """Ask the file system."""
        require_room(self.path, n_bytes)

    def put_in_place(self) -> None:
        """Rename the folder; replace the store that has its name, if that was asked for."""
        replaced = _replaced_by(self.folder)
        if self.storage.exists(OVERWRITE_MARK):
            _require_replaceable(self.path)
            if os.path.lexists(self.path):
                _remove_store(replaced)
                self.path.rename(replaced)
                sync_path(self.path.parent)
            self.storage.remove(OVERWRITE_MARK)
        self.folder.rename(self.path)
        sync_path(self.path.parent)
        _remove_store(replaced)

    def remove_replaced(self) -> None:
        """Remove what the finished store there replaced, if an interruption left it."""
        if (self.path / record_name(0)).is_file():
            _remove_store(_replaced_by(self.path))


def destination_of(path: str | Path | Storage) -> Destination:
    """Where a store of that path, or in that storage, is written."""
    if isinstance(path, str | Path) and bucket_address(path) is None:
        return LocalDestination(path)
    return Destination(storage_at(path) if isinstance(path, str | Path) else path)


def begin(storage: Storage, contents: EncodedContents, *, overwrite: bool) -> None:
    """Write everything that comes before the first shard; record 0 makes it count.

    The mark for overwriting is the first that is there, and stays. Where others may begin the same
    store, everything is written create-only, and what is there must be equal.
    """
    if storage.is_shared:
        if overwrite:
            discard(storage)
        for name, raw in {**contents.files, record_name(0): contents.first_record}.items():
            if storage.put_if_absent(name, [raw]) is None and storage.read(name) != raw:
                raise StoreExistsError(
                    f"'{storage.where(name)}' is of another store, which was begun there, expected "
                    "room for a store. Choose another place, or begin anew with --overwrite."
                )
        return
    names = storage.list()
    if not storage.exists(record_name(0)):  # without it nothing else counts
        of_stores = {path.split("/")[0] for path in contents.files}
        for name in (name.rstrip("/") for name in names):
            if name not in of_stores and not name.endswith(TEMPORARY):
                raise FormatError(
                    f"'{storage.location}' holds '{name}', expected the beginning of a store. "
                    "Choose another path."
                )
    if overwrite or storage.exists(OVERWRITE_MARK):
        _mark(storage, contents.first_record)
    storage.remove(record_name(0))
    for name in [*(name for name in names if name != f"{COMMITS}/"), *storage.list(COMMITS)]:
        if name != OVERWRITE_MARK:
            storage.remove(name)
    storage.write_small(contents.files)
    storage.write(record_name(0), [contents.first_record])


def is_begun(storage: Storage) -> bool:
    """Whether a store can be continued there: it has the first record that it was begun with."""
    if not storage.exists(record_name(0)):
        return False
    mark = storage.read(OVERWRITE_MARK) if storage.exists(OVERWRITE_MARK) else b""
    return mark in (b"", _digest(storage.read(record_name(0))))


def begun_root(storage: Storage) -> Root | None:
    """The group's document of the store that can be continued there; None if there is none."""
    if not is_begun(storage):
        return None
    where = storage.where(ROOT)
    return parse_root(decode(storage.read(ROOT, at_most=DOCUMENT_LIMIT), where), where)


def unsealed(layout: Layout) -> Layout:
    """Take back a seal that an interruption left, so that finishing can begin again."""
    if not layout.sealed:
        return layout
    root = replace(layout.root, complete=False, certificate=None)
    layout.storage.write(ROOT, [encode(root_document(root))])
    layout.storage.remove(record_name(root.n_shards + 1))
    return read_layout(layout.storage)


def remove_uncommitted(layout: Layout) -> None:
    """Remove what an interrupted commit left behind."""
    n_shards = len(layout.checksums)
    committed = {
        array.name: {shard_name(array, shard) for shard in range(n_shards)}
        for array in layout.arrays.values()
    }
    committed[COMMITS] = {record_name(number) for number in range(n_shards + 1)}
    for folder, names in committed.items():
        for name in layout.storage.list(folder):
            if name not in names and (name.startswith(f"{folder}/c.") or name.endswith(TEMPORARY)):
                layout.storage.remove(name)
    layout.storage.remove(f"{ROOT}{TEMPORARY}")


def remove_temporaries(layout: Layout) -> None:
    """Remove what writers that were killed have left in a store that is whole."""
    for folder in (*layout.arrays, COMMITS):
        for name in layout.storage.list(folder):
            if name.endswith(TEMPORARY):
                layout.storage.remove(name)


def discard(path: str | Path | Storage) -> None:
    """Remove a store that was begun and shall not be finished."""
    storage = destination_of(path).storage
    storage.remove(record_name(0))
    for name in storage.list():
        storage.remove(name)
    if isinstance(storage, LocalStorage):
        remove(storage.folder)


def committed_bytes(path: str | Path) -> int:
    """Bytes of the shards that an interrupted build or sweep of `path` has on disk.

    A damaged one counts as nothing here; resuming it names the damage.
    """
    storage = LocalStorage(partial_folder(Path(path)))
    if not storage.exists(record_name(0)):
        return 0
    try:
        layout = read_layout(storage)
    except FormatError:
        return 0
    per_shard = sum(shard_bytes(array, layout.root.shard_rows) for array in layout.arrays.values())
    return per_shard * len(layout.checksums)


def require_room(path: str | Path, n_bytes: int) -> None:
    """Refuse to write a store of so many bytes where they do not fit.

    What an interrupted store of that path holds is continued or replaced, so it counts as free.
    Quotas, and what others write meanwhile, are not seen: a full disk is then an error when it
    happens, and what was committed is kept. A bucket always has room.
    """
    if bucket_address(path) is not None:
        return
    missing = n_bytes - committed_bytes(path)
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < missing:
        raise ActcacheError(
            f"the file system of '{folder}' has {_in_words(free)} free, expected "
            f"{_in_words(missing)}, which are still to be written to '{path}'. Make room there, "
            "or choose another place with -o."
        )


def _in_words(n_bytes: int) -> str:
    size, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.4g} {units[0]}"


def require_free(path: Path) -> None:
    """Refuse a path where something lies already."""
    if os.path.lexists(path):
        raise StoreExistsError(
            f"'{path}' exists already. Choose another path, or replace it with --overwrite."
        )


def require_outside_stores(path: Path, *, flag: str = "-o") -> None:
    """Refuse a path inside a store, finished or not; `flag` is the one that gave it.

    Raises:
        StoreExistsError: names the store.
    """
    for folder in Path(os.path.realpath(path)).parents:
        if (folder / record_name(0)).is_file() and (folder / ROOT).is_file():
            raise StoreExistsError(
                f"'{path}' is inside the store '{folder}', expected a path outside of stores. "
                f"Choose another path with {flag}."
            )


def _mark(storage: Storage, first_record: bytes) -> None:
    storage.write(OVERWRITE_MARK, [_digest(first_record)])


def _digest(first_record: bytes) -> bytes:
    return hashlib.sha256(first_record).hexdigest().encode()


def _replaced_by(folder: Path) -> Path:
    """Where the store in `folder` puts the one that it replaces: a name that nobody else has."""
    path = folder.with_name(folder.name.removesuffix(PARTIAL))
    digest = _digest((folder / record_name(0)).read_bytes()).decode()
    return path.with_name(f"{path.name}.{digest[:16]}.replaced")


def _is_replaceable(path: Path) -> bool:
    """Whether a path holds a store or nothing, not somebody's data."""
    if (path / record_name(0)).exists() or not os.path.lexists(path):
        return True
    # Empty folders are what is left of a store whose removal was interrupted.
    return path.is_dir() and all(file.is_dir() for file in path.rglob("*"))


def _require_replaceable(path: Path) -> None:
    if not _is_replaceable(path):
        raise StoreExistsError(
            f"'{path}' exists and is no store, so it will not be replaced. Choose another path."
        )


def _remove_store(path: Path) -> None:
    """Remove a store, or the link to one; last the record by which it is known as one."""
    record = path / record_name(0)
    if not _is_replaceable(path):
        return
    with suppress(FileNotFoundError):  # another process may be removing it as well
        if record.exists() and not path.is_symlink():
            for child in path.iterdir():
                if child.name != COMMITS:
                    remove(child)
            for child in (path / COMMITS).iterdir():
                if child != record:
                    remove(child)
    remove(path)
