"""Storage in a folder: files that are synced and renamed, and mapped into memory to be read."""

import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from actcache.errors import ActcacheError, refuse
from actcache.store.storage.atomic import (
    LargeFile,
    make_folder,
    remove,
    sync_folder,
    write_durably,
    write_if_absent,
    write_large_files,
)
from actcache.store.storage.files import file_size, open_file, read_file, require_folder
from actcache.store.storage.protocol import LargeObject, Parts, Storage


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

    def size(self, name: str) -> int:
        """Bytes of a file, without opening it."""
        return file_size(self._checked_path(name))

    def list(self, folder: str = "") -> list[str]:
        """The entries of a folder; a link is not followed."""
        prefix = f"{folder}/" if folder else ""
        with suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            return [
                f"{prefix}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}"
                for entry in entries
            ]
        return []

    def read(self, name: str, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
        """All of a file."""
        return read_file(self._checked_path(name), n_bytes=n_bytes, at_most=at_most)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        with os.fdopen(open_file(self._checked_path(name)), "rb") as file:
            file.seek(start)
            raw = file.read(stop - start)
        if len(raw) != stop - start:
            refuse(self.where(name), f"{start + len(raw)} bytes", f"{stop} or more")
        return raw

    def map(self, name: str, n_bytes: int, *, private: bool = False) -> mmap.mmap:
        """A file as memory."""
        file = open_file(self._checked_path(name), n_bytes)
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
        folders = {self.folder}
        for name, raw in objects.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            while path != self.folder:
                path = path.parent
                folders.add(path)
        for folder in folders:
            sync_folder(folder)

    def write_large(self, objects: Iterable[LargeObject]) -> None:
        """Write files as `write` does, syncing each while the next is written."""
        write_large_files(
            LargeFile(self._writable_path(name), n_bytes, parts) for name, n_bytes, parts in objects
        )

    def put_if_absent(self, name: str, parts: Parts) -> bool:
        """Write a temporary file, sync it and link it to its name."""
        return write_if_absent(self._writable_path(name), parts)

    def remove(self, name: str) -> None:
        """Remove a file, a link or a folder."""
        path = self.folder / name
        remove(path)
        with suppress(FileNotFoundError):
            sync_folder(path.parent)

    def lock(self) -> Callable[[], None]:
        """Lock the folder for this process; the lock ends with the process, however that ends."""
        import fcntl  # not on Windows, where stores can be read

        make_folder(self.folder)
        lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ActcacheError(
                f"'{self.folder}' is being written by another process, expected one writer. Wait "
                "for it, or choose another path."
            ) from None
        except OSError:
            os.close(lock)
            raise
        return partial(os.close, lock)

    def _checked_path(self, name: str) -> Path:
        """The path of a file that is to be read; no folder on the way is a link."""
        folder = name.rpartition("/")[0]
        if folder and folder not in self._checked:
            require_folder(self.folder, folder)
            self._checked.add(folder)
        return self.folder / name

    def _writable_path(self, name: str) -> Path:
        path = self.folder / name
        make_folder(path.parent)
        return path
