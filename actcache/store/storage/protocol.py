"""The storage of a store: named objects, each of which is written whole or not at all.

A store is read and written through `Storage` alone, so it can be in a folder, in memory or in a
bucket. Methods with a body here say what every storage can do; an implementation overrides them
where it has a faster way. Names are relative, with slashes: `resid_post/prompt/c.0.0.0`.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from actcache.errors import refuse

Range = tuple[str, int, int]
"""Some bytes of an object: its name, the first byte, and the byte behind the last."""

Parts = Iterable[bytes | np.ndarray]
"""Buffers of an object, one after the other; arrays must be contiguous."""


class LargeObject(NamedTuple):
    """An object that `Storage.write_large` is to write."""

    name: str
    n_bytes: int
    parts: Parts


@runtime_checkable
class Storage(Protocol):
    """Objects of one store by name. What is read is checked, never trusted.

    Reading raises `DamageError` where an object is missing, is no plain object or has another size;
    writing raises `OSError`.
    """

    @property
    def location(self) -> str:
        """Where the objects are, for people: a path or an address."""

    def where(self, name: str) -> str:
        """Where one object is, for messages."""
        return f"{self.location}/{name}"

    @property
    def is_shared(self) -> bool:
        """Whether others may write at any time, so that safety must rest on `put_if_absent`."""
        return False

    @property
    def is_mapped(self) -> bool:
        """Whether `map` gives memory, so that reading a part of an object costs no round trip."""
        return False

    def sibling(self, suffix: str) -> "Storage":
        """Another storage beside this one, whose name ends with `suffix`."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def size(self, name: str) -> int:
        """Bytes of an object."""

    def list(self, folder: str = "") -> list[str]:
        """Full names of the entries of a folder; names of folders end with a slash."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object below a folder, however deep, by full name."""
        sizes: dict[str, int] = {}
        for name in self.list(folder):
            sizes |= self.sizes(name[:-1]) if name.endswith("/") else {name: self.size(name)}
        return sizes

    def etag(self, name: str) -> str:
        """What tells these bytes of an object from others that it had, or will have."""

    def etags(self, folder: str = "") -> dict[str, str]:
        """The etag of every object below a folder, however deep, by full name."""
        return {name: self.etag(name) for name in self.sizes(folder)}

    def read(self, name: str, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
        """All of an object; its size must be `n_bytes`, or `at_most` so many."""

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of an object."""

    def read_many(self, names: Sequence[str], *, n_bytes: int | None = None) -> Iterator[bytes]:
        """All of several objects, in order, each of `n_bytes`; raises at one that is damaged."""
        return (self.read(name, n_bytes=n_bytes) for name in names)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Some bytes of several objects, in order."""
        return (self.read_range(*part) for part in ranges)

    def map(self, name: str, n_bytes: int, *, private: bool = False) -> mmap.mmap | None:
        """An object of that size as memory, without reading it; None where that is not possible.

        A private map may be written: the object stays as it is.
        """
        return None

    def write(self, name: str, parts: Parts) -> None:
        """Write an object atomically and durably; replace what has that name."""

    def write_small(self, objects: Mapping[str, bytes]) -> None:
        """Write objects that count only later: all are durable when this returns."""
        for name, raw in objects.items():
            self.write(name, [raw])

    def write_large(self, objects: Iterable[LargeObject]) -> None:
        """Write objects as `write` does; their parts are taken in order, one at a time."""
        for large in objects:
            self.write(large.name, large.parts)

    def put_if_absent(self, name: str, parts: Parts) -> str | None:
        """Write an object unless the name is taken; return its etag, or None if it was taken.

        Safe among racing writers.
        """

    def remove(self, name: str) -> None:
        """Remove an object or a folder with all that is in it, durably, if it is there.

        An empty name stands for everything.
        """

    def lock(self) -> Callable[[], None]:
        """Become the only writer, at once or never; returns what releases the lock.

        Raises:
            ActcacheError: another writer has it.
        """


def require_size(storage: Storage, name: str, n_bytes: int) -> None:
    """Refuse an object that is missing, or of another size."""
    if (size := storage.size(name)) != n_bytes:
        refuse(storage.where(name), f"{size} bytes", f"{n_bytes}")
