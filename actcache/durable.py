"""Files that survive a power cut, and files that are read without trusting what lies there.

Written aside, synced, renamed, and the folder synced: after a crash a file is whole or absent. Read
without following links, and never more than was expected. Knows nothing of what is in the files.
"""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from actcache.documents import refuse

ASIDE = ".tmp"
"""Ends the name of a file that is still being written."""


def write_durably(path: Path, parts: Iterable[bytes | np.ndarray]) -> None:
    """Write a file so that it is there entirely, or not at all, whatever happens.

    Args:
        path: in a folder that exists.
        parts: buffers, one after the other; arrays must be contiguous.

    Raises:
        OSError: the disk is full, or will not have it; nothing is left behind.
    """
    aside = path.with_name(path.name + ASIDE)
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _safe_flags(), 0o666)
    try:
        try:
            for part in parts:
                if not len(part):
                    continue
                rest = memoryview(part.data if isinstance(part, np.ndarray) else part).cast("B")
                while rest:  # a write may take only a part: 2 GB at most on Linux
                    rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably; one that is there already is left as it is."""
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def open_file(path: Path, n_bytes: int | None = None) -> int:
    """Open a regular file for reading, not through a link.

    Args:
        path: the file; its folder has been looked at by `require_folder`.
        n_bytes: the size that it must have.

    Returns:
        The file descriptor.

    Raises:
        FormatError: it is missing, something else than a file, or of another size.
    """
    try:
        # Not to block: a named pipe would wait for its writer for ever.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _safe_flags())
    except FileNotFoundError:
        refuse(str(path), "nothing", "a file")
    except OSError:
        if not path.is_symlink():
            raise
        refuse(str(path), "a link", "a file")
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        refuse(str(path), "something else", "a file")
    if n_bytes is not None and found.st_size != n_bytes:
        os.close(file)
        refuse(str(path), f"{found.st_size} bytes", f"{n_bytes}")
    return file


def read_file(path: Path, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
    """The bytes of a regular file of a known, or of a bounded, size.

    Raises:
        FormatError: as `open_file`, or it is larger than allowed.
    """
    file = open_file(path, n_bytes)
    with os.fdopen(file, "rb") as opened:
        size = os.fstat(file).st_size
        if at_most is not None and size > at_most:
            refuse(str(path), f"{size} bytes", f"{at_most} at most")
        return opened.read(size)


def require_file(path: Path, n_bytes: int) -> None:
    """Look at a file without opening it: regular, and of this size.

    Raises:
        FormatError: it is not.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        refuse(str(path), "nothing", "a file")
    if not stat.S_ISREG(found.st_mode):
        refuse(str(path), "something else", "a file")
    if found.st_size != n_bytes:
        refuse(str(path), f"{found.st_size} bytes", f"{n_bytes}")


def require_folder(root: Path, name: str) -> Path:
    """A folder inside `root`, each step to which is a real folder and no link.

    Raises:
        FormatError: it is not.
    """
    folder = root
    for part in name.split("/"):
        folder = folder / part
        try:
            found = folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            refuse(str(folder), "nothing", "a folder")
        if not stat.S_ISDIR(found.st_mode):
            refuse(str(folder), "something else", "a folder")
    return folder


def _safe_flags() -> int:
    return os.O_CLOEXEC | os.O_NOFOLLOW
