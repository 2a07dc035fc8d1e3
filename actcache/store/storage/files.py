"""Reading files that are not trusted: no links, no pipes, no more bytes than expected.

Each function raises `FormatError` where it finds anything else.
"""

import os
import stat
from pathlib import Path

from actcache.errors import refuse

_NAMES = ("O_RDONLY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
_FLAGS = sum(getattr(os, name, 0) for name in _NAMES)  # no system has them all


def open_file(path: Path, n_bytes: int | None = None) -> int:
    """Open a regular file for reading, not through a link; the file descriptor."""
    try:
        # O_NONBLOCK: opening a named pipe would wait for its writer for ever.
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        refuse(str(path), "nothing", "a file")
    except OSError:
        if not path.is_symlink():
            raise
        refuse(str(path), "a link", "a file")
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        refuse(str(path), "something else", "a file")
    if n_bytes is not None and status.st_size != n_bytes:
        os.close(file)
        refuse(str(path), f"{status.st_size} bytes", f"{n_bytes}")
    return file


def read_file(path: Path, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
    """The bytes of a regular file of a known, or of a bounded, size."""
    file = open_file(path, n_bytes)
    with os.fdopen(file, "rb") as opened:
        size = os.fstat(file).st_size
        if at_most is not None and size > at_most:
            refuse(str(path), f"{size} bytes", f"{at_most} at most")
        return opened.read(size)


def file_size(path: Path) -> int:
    """Bytes of a regular file, without opening it."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        refuse(str(path), "nothing", "a file")
    if not stat.S_ISREG(status.st_mode):
        refuse(str(path), "something else", "a file")
    return status.st_size


def require_folder(root: Path, name: str) -> Path:
    """A folder inside `root`, each step to which is a real folder and no link."""
    folder = root
    for part in name.split("/"):
        folder = folder / part
        try:
            status = folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            refuse(str(folder), "nothing", "a folder")
        if not stat.S_ISDIR(status.st_mode):
            refuse(str(folder), "something else", "a folder")
    return folder
