"""The folder of a Ray that is started for one command; and those that killed commands left."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

PREFIX = "actcache-ray-"
"""How the names of these folders begin."""

OWNER = "owner"
"""A file that the owner has locked while it lives. Nobody removes a folder without one."""

_LONGEST_FOLDER = 40  # the path of a socket in it may have 107 bytes


@contextmanager
def ray_folder(base: Path | None = None) -> Iterator[Path]:
    """Make a folder for Ray's files, and remove it at the exit; before, those of dead owners.

    Args:
        base: folder in which it is; if None the one for temporary files.
    """
    base = Path(tempfile.gettempdir()) if base is None else base
    if len(str(base)) > _LONGEST_FOLDER - len(PREFIX) - 8:
        base = Path("/tmp")
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # its owner lives, or it is another user's, or it has no owner
            unlock = _lock(folder)
            try:
                shutil.rmtree(folder)
            finally:
                unlock()
    folder, unlock = _new_folder(base)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock()


def _new_folder(base: Path) -> tuple[Path, Callable[[], None]]:
    """Make a folder and lock it; returns also what releases the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        (folder / OWNER).touch(mode=0o600)
        try:
            unlock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # taken for one of a dead owner
            continue
        except OSError:  # a file system without locks
            (folder / OWNER).unlink()
            return folder, lambda: None
        if (folder / OWNER).exists():
            return folder, unlock
        unlock()


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a folder for this process, at once or never; returns what releases the lock."""
    import fcntl  # not on Windows

    path = folder / OWNER
    if path.stat().st_uid != os.geteuid():  # root may open it all the same
        raise PermissionError(path)
    # Closed in the programs that this process starts: the lock ends with the process.
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    return partial(os.close, file)
