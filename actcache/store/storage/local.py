"""Storage in a folder: files that are synced and renamed, and mapped into memory to be read.

What is read is not trusted: no link is followed, no pipe opened, no more read than a file holds.
"""

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from actcache.errors import ActcacheError, refuse
from actcache.store.storage.atomic import (
    lock_folder,
    make_folder,
    remove,
    sync_path,
    write_durably,
    write_if_absent,
    write_large_files,
    write_synced,
)
from actcache.store.storage.protocol import LargeObject, Parts, Storage

# O_NONBLOCK: opening a named pipe would wait for its writer for ever.
_FLAGS = ("O_RDONLY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
_READ = sum(getattr(os, name, 0) for name in _FLAGS)  # no system has them all


UNBACKED_BYTES = 64 << 20
"""Bytes of holes that a file may have to be read whole. A hole takes no room on disk and reads as
zeros; some file systems make one of real zeros."""


class LocalStorage(Storage):
    """The files below one folder. Nothing is read through a link."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._checked: set[str] = set()  # folders that are no links

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.folder)

    def where(self, name: str) -> str:
        """The file."""
        return str(self.folder / name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).exists()

    @property
    def is_mapped(self) -> bool:
        """It maps files."""
        return True

    def sibling(self, suffix: str) -> "LocalStorage":
        """The folder beside this one; it need not exist."""
        return LocalStorage(self.folder.with_name(self.folder.name + suffix))

    def size(self, name: str) -> int:
        """Bytes of a file, without opening it."""
        return self._status(name).st_size

    def etag(self, name: str) -> str:
        """Size and time of the last change: a file is written once, and never in place."""
        return _etag(self._status(name))

    def list(self, folder: str = "") -> list[str]:
        """The entries of a folder; a link is not followed."""
        prefix = f"{folder}/" if folder else ""
        with suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            return [
                f"{prefix}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}"
                for entry in entries
            ]
        return []

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of the regular files below a folder; no link is followed."""
        sizes: dict[str, int] = {}
        unvisited = [folder]
        while unvisited:
            parent = unvisited.pop()
            prefix = f"{parent}/" if parent else ""
            with suppress(OSError), os.scandir(f"{self.folder}/{parent}") as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        unvisited.append(f"{prefix}{entry.name}")
                    elif entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):  # it is being renamed
                            sizes[f"{prefix}{entry.name}"] = entry.stat(
                                follow_symlinks=False
                            ).st_size
        return sizes

    def read(self, name: str, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
        """All of a file."""
        with os.fdopen(self._open(name, n_bytes), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if at_most is not None and size > at_most:
                refuse(self.where(name), f"{size} bytes", f"{at_most} at most")
            require_backed(self.folder / name, file.fileno())
            return file.read(size)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        with os.fdopen(self._open(name), "rb") as file:
            file.seek(start)
            raw = file.read(stop - start)
        if len(raw) != stop - start:
            refuse(self.where(name), f"{start + len(raw)} bytes", f"{stop} or more")
        return raw

    def map(self, name: str, n_bytes: int, *, private: bool = False) -> mmap.mmap:
        """A file as memory."""
        file = self._open(name, n_bytes)
        try:
            return mmap.mmap(
                file, n_bytes, access=mmap.ACCESS_COPY if private else mmap.ACCESS_READ
            )
        finally:
            os.close(file)

    def write(self, name: str, parts: Parts) -> None:
        """Write a temporary file, sync it and rename it."""
        write_durably(self._writable_path(name), parts)

    def write_small(self, objects: Mapping[str, bytes]) -> None:
        """Write files in place and sync each folder once; a crash may leave a part of them."""
        folders: set[str] = set()
        for name, raw in objects.items():
            parent = name.rpartition("/")[0]
            if parent not in folders:
                (self.folder / parent).mkdir(parents=True, exist_ok=True)
                steps = parent.split("/")
                folders |= {"", *("/".join(steps[: i + 1]) for i in range(len(steps)))}
            write_synced(f"{self.folder}/{name}", [raw])
        for folder in folders:
            sync_path(f"{self.folder}/{folder}")

    def write_large(self, objects: Iterable[LargeObject]) -> None:
        """Write files as `write` does, syncing each while the next is written."""
        write_large_files(self.folder, objects)

    def put_if_absent(self, name: str, parts: Parts) -> str | None:
        """Write a temporary file, sync it and link it to its name."""
        status = write_if_absent(self._writable_path(name), parts)
        return None if status is None else _etag(status)

    def remove(self, name: str) -> None:
        """Remove a file, a link or a folder."""
        path = self.folder / name
        remove(path)
        with suppress(FileNotFoundError):
            sync_path(path.parent)

    def lock(self) -> Callable[[], None]:
        """Lock the folder for this process; the lock ends with the process, however that ends."""
        make_folder(self.folder)
        try:
            return lock_folder(self.folder)
        except BlockingIOError:
            raise ActcacheError(
                f"'{self.folder}' is being written by another process, expected one writer. Wait "
                "for it, or choose another path."
            ) from None

    def _open(self, name: str, n_bytes: int | None = None) -> int:
        """Open a regular file, of that size, for reading; the file descriptor."""
        self._require_real_folder(name)
        path = f"{self.folder}/{name}"
        try:
            file = os.open(path, _READ)
        except FileNotFoundError:
            refuse(path, "nothing", "a file")
        except OSError:
            if not Path(path).is_symlink():
                raise
            refuse(path, "a link", "a file")
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            refuse(path, "something else", "a file")
        if n_bytes is not None and status.st_size != n_bytes:
            os.close(file)
            refuse(path, f"{status.st_size} bytes", f"{n_bytes}")
        return file

    def _status(self, name: str) -> os.stat_result:
        self._require_real_folder(name)
        try:
            status = (self.folder / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            refuse(self.where(name), "nothing", "a file")
        if not stat.S_ISREG(status.st_mode):
            refuse(self.where(name), "something else", "a file")
        return status

    def _require_real_folder(self, name: str) -> None:
        """Refuse a file unless each step to it inside `self.folder` is a folder and no link."""
        parent = name.rpartition("/")[0]
        if not parent or parent in self._checked:
            return
        folder = str(self.folder)
        for part in parent.split("/"):
            folder = f"{folder}/{part}"
            try:
                status = os.lstat(folder)
            except (FileNotFoundError, NotADirectoryError):
                refuse(folder, "nothing", "a folder")
            if not stat.S_ISDIR(status.st_mode):
                refuse(folder, "something else", "a folder")
        self._checked.add(parent)

    def _writable_path(self, name: str) -> Path:
        path = self.folder / name
        make_folder(path.parent)
        return path


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def require_backed(path: Path, file: int | None = None) -> None:
    """Refuse a file that declares more bytes than it has on disk, before it is read whole.

    `file` is its descriptor, where it is open.
    """
    opened = os.open(path, _READ) if file is None else file
    try:
        size = os.fstat(opened).st_size
        if size > UNBACKED_BYTES:
            backed = _backed_bytes(opened, size)
            if size - backed > UNBACKED_BYTES:
                refuse(str(path), f"{size} bytes, of which {backed} are on disk", "a whole file")
    finally:
        if file is None:
            os.close(opened)


def _backed_bytes(file: int, size: int) -> int:
    """Bytes of a file that are not in holes; all, where the system does not know holes."""
    if not hasattr(os, "SEEK_HOLE"):
        return size
    backed = end = 0
    try:
        while end < size:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            backed += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO: there is no data behind the last hole
            backed = size
    os.lseek(file, 0, os.SEEK_SET)
    return backed
