"""Storage in memory: the general path, without maps, renames or files.

The smallest storage that a store can be written to, resumed in, sealed in and read from. Tests hold
the fast path of local files equal to it.
"""

import hashlib
from collections.abc import Callable
from functools import partial

from actcache.errors import ActcacheError, refuse
from actcache.store.storage.protocol import Parts, Storage


class MemoryStorage(Storage):
    """Objects as bytes in a dictionary, for one process."""

    def __init__(self, name: str = "memory"):
        self.objects: dict[str, bytes] = {}
        """Every object by its name."""
        self._name = name
        self._siblings: dict[str, MemoryStorage] = {}
        self._locked = False

    @property
    def location(self) -> str:
        """Its name."""
        return self._name

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return name in self.objects

    def sibling(self, suffix: str) -> "MemoryStorage":
        """The one of that suffix, always the same."""
        return self._siblings.setdefault(suffix, MemoryStorage(self._name + suffix))

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return len(self.read(name))

    def etag(self, name: str) -> str:
        """The sha256 of its bytes."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def list(self, folder: str = "") -> list[str]:
        """Objects and folders directly in a folder."""
        prefix = f"{folder}/" if folder else ""
        names = (name[len(prefix) :] for name in self.objects if name.startswith(prefix))
        parts = (name.partition("/") for name in names)
        return list(dict.fromkeys(f"{prefix}{first}{slash}" for first, slash, _ in parts))

    def read(self, name: str, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
        """All of an object."""
        if name not in self.objects:
            refuse(self.where(name), "nothing", "a file")
        raw = self.objects[name]
        if n_bytes is not None and len(raw) != n_bytes:
            refuse(self.where(name), f"{len(raw)} bytes", f"{n_bytes}")
        if at_most is not None and len(raw) > at_most:
            refuse(self.where(name), f"{len(raw)} bytes", f"{at_most} at most")
        return raw

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of an object."""
        raw = self.read(name)
        if stop > len(raw):
            refuse(self.where(name), f"{len(raw)} bytes", f"{stop} or more")
        return raw[start:stop]

    def write(self, name: str, parts: Parts) -> None:
        """Replace an object once all of its parts are there."""
        self.objects[name] = b"".join(bytes(part) for part in parts)

    def put_if_absent(self, name: str, parts: Parts) -> str | None:
        """Write an object unless the name is taken."""
        if name in self.objects:
            return None
        self.write(name, parts)
        return self.etag(name)

    def remove(self, name: str) -> None:
        """Remove an object, or all of a folder; all there is, if the name is empty."""
        folder = f"{name.rstrip('/')}/" if name else ""
        for removed in [n for n in self.objects if n == name or n.startswith(folder)]:
            del self.objects[removed]

    def lock(self) -> Callable[[], None]:
        """Become the only writer in this process."""
        if self._locked:
            raise ActcacheError(
                f"'{self._name}' is being written already, expected one writer. Wait for it."
            )
        self._locked = True
        return partial(setattr, self, "_locked", False)
