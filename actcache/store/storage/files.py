"""Reads files without trusting what lies there: no links, no pipes, no more bytes than expected.

Knows nothing of what is in the files.
"""

import os
import stat
from pathlib import Path

from actcache.errors import refuse

_NAMES = ("O_RDONLY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
_FLAGS = sum(getattr(os, name, 0) for name in _NAMES)  # no system has them all


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
        file = os.open(path, _FLAGS)
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
