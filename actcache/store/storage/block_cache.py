"""Blocks that were read from a bucket, as files on this machine: a bounded cache.

`ACTCACHE_CACHE` names its folder, `ACTCACHE_CACHE_GB` its bound. Who reads a block compares it with
the checksum in the store's log, so a damaged file is never used. Processes may share a folder:
files get their name when they are whole, and the least recently used are removed.
"""

import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from actcache.errors import ActcacheError
from actcache.store.storage.atomic import TEMPORARY, make_folder, write_if_absent

FOLDER, GIGABYTES = "ACTCACHE_CACHE", "ACTCACHE_CACHE_GB"
DEFAULT_GIGABYTES = 20.0

_SHARE = 16
"""One process writes this part of the bound between two looks at what all of them have written."""

_OURS = re.compile(rf"[0-9a-f]{{64}}\.block(\.[0-9a-f]+{re.escape(TEMPORARY)})?")
_ABANDONED = 3600.0  # seconds after which nobody is writing a temporary file any more

log = logging.getLogger(__name__)


class BlockCache:
    """Blocks by a key of several texts.

    Args:
        folder: where they are; only files with the names of blocks are ever removed there.
        n_bytes: bound of all files together.

    Raises:
        ActcacheError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, *, n_bytes: int):
        self.folder = Path(folder).absolute()
        self.n_bytes = n_bytes
        self._room = 0
        self._full = False
        try:
            make_folder(self.folder)
        except OSError as error:
            raise _unusable(self.folder, str(error.strerror)) from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise _unusable(self.folder, "it may not be written")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "BlockCache | None":
        """The cache that the environment names; None where it names none.

        Raises:
            ActcacheError: a value cannot be used.
        """
        folder = environment.get(FOLDER)
        if not folder:
            return None
        text = environment.get(GIGABYTES) or str(DEFAULT_GIGABYTES)
        try:
            gigabytes = float(text)
        except ValueError:
            gigabytes = math.nan
        if not 0 < gigabytes < math.inf:
            raise ActcacheError(
                f"{GIGABYTES} is '{text}', expected a number of gigabytes above 0. For example "
                f"{DEFAULT_GIGABYTES:g}."
            )
        return cls(folder, n_bytes=int(gigabytes * 1e9))

    def read(self, key: tuple[str, ...], n_bytes: int) -> bytes | None:
        """A block of that size; None if it is not there."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                raw = file.read(n_bytes + 1)
            os.utime(path)  # it is the most recently used
        except OSError:
            return None
        if len(raw) != n_bytes:
            self.remove(key)
            return None
        return raw

    def write(self, key: tuple[str, ...], block: np.ndarray) -> None:
        """Keep a block, unless it is there already or would not fit.

        A disk that is full, or refuses, ends this process's caching and not its reading.
        """
        if self._full or block.nbytes > self.n_bytes:
            return
        path = self._path(key)
        try:
            if self._room < block.nbytes:
                self._room = self._make_room(block.nbytes)
            make_folder(path.parent)
            if write_if_absent(path, [block], durable=False):
                self._room -= block.nbytes
        except OSError as error:
            self._full = True
            log.warning("blocks are no longer cached in '%s': %s", self.folder, error)

    def remove(self, key: tuple[str, ...]) -> None:
        """Remove a block, if it is there."""
        with suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: tuple[str, ...]) -> Path:
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.block"

    def _make_room(self, n_bytes: int) -> int:
        """Remove the least recently used; how much may be written before this is done again."""
        share = max(n_bytes, self.n_bytes // _SHARE)
        total, files = 0, []
        for path, status in self._files():
            if path.name.endswith(TEMPORARY) and status.st_mtime < time.time() - _ABANDONED:
                path.unlink(missing_ok=True)
                continue
            total += status.st_size
            files.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(files):
            if total <= self.n_bytes - share:
                break
            path.unlink(missing_ok=True)
            total -= size
        return share

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file of the cache, temporary ones too; nothing else that is in the folder."""
        for parent in self.folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(parent) as entries:
                for entry in entries:
                    if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):  # another process removed it
                            yield Path(entry.path), entry.stat(follow_symlinks=False)


def _unusable(folder: Path, why: str) -> ActcacheError:
    return ActcacheError(
        f"{FOLDER} is '{folder}', which cannot be used: {why}. Name a folder that you may write "
        f"to, or unset {FOLDER}."
    )
