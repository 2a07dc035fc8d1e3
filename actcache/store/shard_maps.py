"""Shards as arrays: mapped into memory, none of them copied, few of them open at a time.

A map holds a file descriptor, so the least recently used are let go. Maps outlive a fork.
"""

import mmap
import os
from typing import Any

import google_crc32c
import numpy as np

from actcache.errors import refuse
from actcache.store.encoding import shard_bytes
from actcache.store.layout import Layout, shard_path
from actcache.store.schema import RowArray
from actcache.store.storage.files import open_file

OPEN_MAPS = 128
"""Maps of a store that stay open; each costs a file descriptor."""


class ShardMaps:
    """The maps of one store's shards."""

    def __init__(self, layout: Layout, *, check: bool):
        self._layout = layout
        self._unchecked: dict[tuple[str, int], set[int]] | None = {} if check else None
        # Not a cache decorator: that refers back to this object, and files would stay open until
        # the garbage collector comes by.
        self._mapped: dict[tuple[str, int], np.ndarray] = {}

    def shard(self, array: RowArray, shard: int) -> np.ndarray:
        """A shard's blocks `[layer, row, width]`, read-only, in the stored dtype.

        Raises:
            FormatError: the file is missing or of another size.
        """
        key = (array.name, shard)
        mapped = self._mapped.pop(key, None)
        if mapped is None:
            mapped = self._map(array, shard)
        self._mapped[key] = mapped  # the one that was used last stands last
        for oldest in list(self._mapped)[:-OPEN_MAPS]:
            self._mapped.pop(oldest, None)  # another thread may have
        return mapped

    def require_right(self, array: RowArray, shard: int, layers: slice | np.ndarray) -> None:
        """Compare blocks with their checksums, each once in the life of the store object.

        Does nothing unless the store was opened to be checked.

        Raises:
            FormatError: a block is not as it was written.
        """
        if self._unchecked is None:
            return
        key = (array.name, shard)
        left = self._unchecked.setdefault(key, set(range(array.n_layers)))
        for layer in np.arange(array.n_layers)[layers].tolist():
            if layer in left:
                if not self.is_right(array, shard, layer):
                    path = shard_path(self._layout.folder, array, shard)
                    refuse(str(path), f"other bytes at layer {layer}", "those of its checksum")
                left.discard(layer)

    def is_right(self, array: RowArray, shard: int, layer: int) -> bool:
        """Whether a block has the checksum that the log has."""
        found: int = google_crc32c.value(self.shard(array, shard)[layer])
        return found == int(self._layout.checksums[shard][array.name][layer])

    @property
    def shard_rows(self) -> int:
        """Rows of a shard."""
        return self._layout.root.shard_rows

    def clear(self) -> None:
        """Let go of all maps; arrays that came from them stay valid."""
        self._mapped.clear()

    def private_shard(self, array: RowArray, shard: int) -> np.ndarray:
        """A shard's blocks in a map of their own, which may be written: the file stays as it is."""
        return self._map(array, shard, access=mmap.ACCESS_COPY)

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they map for themselves.
        return {**self.__dict__, "_mapped": {}}

    def _map(self, array: RowArray, shard: int, access: int = mmap.ACCESS_READ) -> np.ndarray:
        rows = self._layout.root.shard_rows
        size = shard_bytes(array, rows)
        file = open_file(shard_path(self._layout.folder, array, shard), size)
        try:
            mapped = mmap.mmap(file, size, access=access)
        finally:
            os.close(file)
        dtype = np.dtype(array.stored).newbyteorder("<")
        count = array.n_layers * rows * array.width
        blocks = np.frombuffer(mapped, dtype, count)
        return blocks.reshape(array.n_layers, rows, array.width)
