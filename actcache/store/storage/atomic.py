"""Atomic, durable files: written under a temporary name, synced, renamed, and the folder synced.

Everything that the project writes is written here. After a crash a file is whole or absent.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import ActcacheError, StoreExistsError
from actcache.store.storage.protocol import LargeObject, Parts

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written."""

WORTH_AN_EARLY_SYNC = 4 << 20
"""Bytes of a file that are synced while more of it is written; a smaller file is synced once."""


@contextmanager
def atomic_path(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path; what is written there gets its name when the block ends.

    The temporary path has the name of the final one, in a folder beside it, since some writers look
    at it; each writer has its own. If the block raises, the temporary is removed and what was there
    before stays.

    Args:
        path: name of the file or folder; the folders above it are made.
        overwrite: replace a file of that name; a folder is never replaced.

    Raises:
        StoreExistsError: the name is taken.
        ActcacheError: the file system refused.
    """
    _require_free(path, overwrite=overwrite)
    with os_errors_explained(f"'{path}' cannot be written"):
        parent = path.absolute().parent
        make_folder(parent)
        with _folder_aside(path) as folder:
            temporary = folder / path.name
            yield temporary
            _sync_all(temporary)
            _give_name(temporary, path, overwrite=overwrite)
            sync_path(parent)


def _require_free(path: Path, *, overwrite: bool) -> None:
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise StoreExistsError(
            f"'{path}' exists already. Choose another path"
            + ("." if path.is_dir() else ", or replace it with --overwrite.")
        )


@contextmanager
def _folder_aside(path: Path) -> Iterator[Path]:
    """Make a folder for one writer of `path`, and remove it; and those of writers that died.

    A writer holds a lock on its folder, which ends with the process.
    """
    prefix = f".{path.name}."
    aside = re.compile(f"{re.escape(prefix)}[0-9a-f]{{8}}{re.escape(TEMPORARY)}")
    for dead in path.absolute().parent.iterdir():
        if aside.fullmatch(dead.name) and dead.is_dir() and not dead.is_symlink():
            with suppress(OSError):  # it is being written, or somebody else removes it
                unlock = lock_folder(dead)
                try:
                    remove(dead)
                finally:
                    unlock()
    while True:
        folder = path.with_name(f"{prefix}{secrets.token_hex(4)}{TEMPORARY}")
        folder.mkdir()
        with suppress(BlockingIOError, FileNotFoundError):  # taken for one of a dead writer
            unlock = lock_folder(folder)
            if folder.is_dir():
                break
    try:
        yield folder
    finally:
        remove(folder)
        unlock()


def _give_name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename what is whole; without `overwrite` nothing that got the name meanwhile is replaced."""
    if overwrite or temporary.is_dir():  # a folder replaces none but an empty one
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                _require_free(path, overwrite=overwrite)
            raise
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        _require_free(path, overwrite=False)
        raise
    except OSError:  # a file system without links
        _require_free(path, overwrite=False)
        temporary.replace(path)


def lock_folder(folder: Path) -> Callable[[], None]:
    """Lock a folder for this process, at once or never; returns what releases the lock.

    Raises:
        BlockingIOError: another process, or another part of this one, has it.
    """
    import fcntl  # not on Windows, where stores can be read

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return partial(os.close, lock)


def write_durably(path: Path, parts: Parts) -> None:
    """Write a file in a folder that exists; after an error nothing is left of it."""
    temporary = _temporary_path(path)
    try:
        write_synced(temporary, parts)
        temporary.replace(path)
        sync_path(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_if_absent(path: Path, parts: Parts, *, durable: bool = True) -> os.stat_result | None:
    """Write a file unless the name is taken; its status, or None if it was taken.

    One that is not `durable` is not synced: a power cut may leave it with other bytes.
    """
    # Several writers may race for one name, so each has a temporary name of its own.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        write_synced(temporary, parts, durable=durable)
        status = temporary.stat()
        os.link(temporary, path)
    except FileExistsError:
        return None
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_path(path.parent)
    return status


def write_synced(path: Path | str, parts: Parts, *, durable: bool = True) -> None:
    """Write a file in place and sync it; its name is durable once its folder is synced."""
    file = _open_new(path)
    try:
        for part in parts:
            _write(file, part)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


def write_large_files(folder: Path, files: Iterable[LargeObject]) -> None:
    """Write files as `write_durably` does, syncing each while the next is written.

    A disk is slow to sync and fast to accept more, so the sync of a file begins when half of it is
    written. The space of a file is reserved first, so that a full disk is noticed before any work.
    After an error, files that were finished by then stay.
    """
    begun: list[Path] = []
    syncs: list[Future[None]] = []
    with ThreadPoolExecutor(1) as syncer:  # in order: half a file, the rest of it, the next file
        try:
            for large in files:
                path = folder / large.name
                make_folder(path.parent)
                begun.append(path)
                _write_large(path, large, syncer, syncs)
            for sync in syncs:
                sync.result()
        except BaseException:
            for sync in syncs:
                sync.exception()  # wait for it
            for path in begun:
                _temporary_path(path).unlink(missing_ok=True)
            raise


def _write_large(
    path: Path, large: LargeObject, syncer: ThreadPoolExecutor, syncs: list[Future[None]]
) -> None:
    file = _open_new(_temporary_path(path))
    half = max(large.n_bytes // 2, WORTH_AN_EARLY_SYNC)
    written = 0
    try:
        _reserve(file, large.n_bytes)
        for part in large.parts:
            before, written = written, written + _write(file, part)
            if before < half <= written < large.n_bytes:
                syncs.append(syncer.submit(getattr(os, "fdatasync", os.fsync), file))
        assert written == large.n_bytes
    except BaseException:
        syncs.append(syncer.submit(os.close, file))
        raise
    syncs.append(syncer.submit(_settle, file, path))


@contextmanager
def os_errors_explained(what: str, *, committed: str = "") -> Iterator[None]:
    """Say in one line what the system refused."""
    try:
        yield
    except ActcacheError:
        raise  # some of them are OSErrors
    except OSError as error:
        remedy = "Choose a folder with room, that you may write to."
        if committed:
            remedy = f"{committed} rows are kept: make room, then continue with --resume."
        raise ActcacheError(f"{what}: {error.strerror or error}. {remedy}") from error


def sync_path(path: Path | str) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably; one that is there already is left as it is."""
    if folder.is_dir():
        return
    if os.path.lexists(folder) and not folder.is_dir():  # another process may just have made it
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_path(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder, if it is there."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, onerror=_raise_unless_gone)
        else:
            path.unlink()


def _raise_unless_gone(_call: object, _path: object, error: Any) -> None:
    """Another process may be removing the same folder."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _sync_all(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    if path.is_dir():
        for child in path.iterdir():
            _sync_all(child)
    sync_path(path)


def _temporary_path(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY)


def _open_new(path: Path | str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def _write(file: int, part: bytes | np.ndarray) -> int:
    """Write all of a buffer; its size."""
    if not len(part):
        return 0
    rest = memoryview(part.data if isinstance(part, np.ndarray) else part).cast("B")
    size = len(rest)
    while rest:  # a write may take only a part: 2 GB at most on Linux
        rest = rest[os.write(file, rest) :]
    return size


def _settle(file: int, path: Path) -> None:
    """Sync and close what was written under a temporary name, and give it its name."""
    try:
        os.fsync(file)
    finally:
        os.close(file)
    _temporary_path(path).replace(path)
    sync_path(path.parent)


def _reserve(file: int, n_bytes: int) -> None:
    """Reserve the space of a file, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
