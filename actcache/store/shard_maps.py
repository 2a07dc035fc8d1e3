"""Blocks of shards as arrays: mapped into memory where the storage can, else read by range.

A map copies nothing and outlives a fork, but holds a file descriptor, so the least recently used
are released.
"""

import errno
import math
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int64, Shaped

from actcache.errors import refuse
from actcache.store.encoding import block_bytes, shard_bytes
from actcache.store.layout import Layout, read_in_place, shard_name
from actcache.store.schema import RowArray

OPEN_MAPS = 128
"""Maps of a store that stay open; each costs a file descriptor."""

Chosen = slice | Int64[np.ndarray, " _"]
"""Rows or layers: a range of step 1, or numbers from 0 on."""


class ShardMaps:
    """The shards of one store."""

    def __init__(self, layout: Layout, *, check: bool):
        self._layout = layout
        self.shard_rows = layout.root.shard_rows
        """Rows of a shard."""
        self._unchecked: dict[tuple[str, int], set[int]] | None = {} if check else None
        # Not a cache decorator: that refers back to this object, and files would stay open until
        # the garbage collector comes by.
        self._mapped: dict[tuple[str, int], np.ndarray] = {}

    def take(
        self, array: RowArray, shard: int, layers: Chosen, rows: Chosen
    ) -> Shaped[np.ndarray, "layer row width"]:
        """Some rows of some layers of a shard, in the stored dtype.

        A read-only view of the file where it is mapped and both are ranges. Blocks are checked
        first if the store was opened to be checked.
        """
        self.require_intact(array, shard, layers)
        mapped = self._shard(array, shard)
        if mapped is None:
            return self._read(array, shard, layers, rows)
        if isinstance(rows, slice):
            return mapped[:, rows][layers]
        if isinstance(layers, slice):  # faster than brackets where whole vectors are picked
            taken: np.ndarray = np.take(mapped[layers], rows, axis=1)
        else:
            taken = mapped[np.ix_(layers, rows)]
        return taken

    def map_shard(
        self, array: RowArray, shard: int, *, private: bool = False
    ) -> Shaped[np.ndarray, "layer row width"] | None:
        """Map all blocks of a shard; None where the storage cannot be mapped.

        A private map may be written: the file stays as it is.
        """
        name, n_bytes = shard_name(array, shard), shard_bytes(array, self.shard_rows)
        mapped = read_in_place(
            self._layout, lambda: self._layout.storage.map(name, n_bytes, private=private)
        )
        if mapped is None:
            return None
        shape = (array.n_layers, self.shard_rows, array.width)
        return np.frombuffer(mapped, _little(array), math.prod(shape)).reshape(shape)

    def require_intact(self, array: RowArray, shard: int, layers: Chosen) -> None:
        """Compare blocks with their checksums, each once in the life of the store object.

        Does nothing unless the store was opened to be checked.
        """
        if self._unchecked is None:
            return
        key = (array.name, shard)
        unchecked = self._unchecked.setdefault(key, set(range(array.n_layers)))
        for layer in np.arange(array.n_layers)[layers].tolist():
            if layer in unchecked:
                if not self.is_intact(array, shard, layer):
                    rows = self._layout.root.rows_of(shard)
                    refuse(
                        self._layout.storage.where(shard_name(array, shard)),
                        f"other bytes at layer {layer} of rows {rows.start} to {rows.stop - 1}",
                        "those of its checksum",
                    )
                unchecked.discard(layer)

    def is_intact(self, array: RowArray, shard: int, layer: int) -> bool:
        """Whether a block has the checksum that the log has."""
        mapped = self._shard(array, shard)
        if mapped is not None:
            block = mapped[layer]
        else:
            block = self._read(array, shard, slice(layer, layer + 1), slice(0, self.shard_rows))
        checksum: int = google_crc32c.value(block)
        return checksum == int(self._layout.checksums[shard][array.name][layer])

    def clear(self) -> None:
        """Release all maps; arrays that came from them stay valid."""
        self._mapped.clear()

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they map for themselves.
        return {**self.__dict__, "_mapped": {}}

    def _shard(self, array: RowArray, shard: int) -> Shaped[np.ndarray, "layer row width"] | None:
        """The map of a shard, which stays open for the next time."""
        key = (array.name, shard)
        blocks = self._mapped.pop(key, None)
        if blocks is None:
            try:
                blocks = self.map_shard(array, shard)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._mapped:
                    raise
                self._mapped.clear()  # this process may open fewer files
                blocks = self.map_shard(array, shard)
        if blocks is None:
            return None
        self._mapped[key] = blocks  # the most recently used stands last
        for oldest in list(self._mapped)[:-OPEN_MAPS]:
            self._mapped.pop(oldest, None)  # another thread may have
        return blocks

    def _read(
        self, array: RowArray, shard: int, layers: Chosen, rows: Chosen
    ) -> Shaped[np.ndarray, "layer row width"]:
        """Read by range: the rows of a layer are contiguous, and so are whole layers."""
        return read_in_place(self._layout, lambda: self._read_ranges(array, shard, layers, rows))

    def _read_ranges(
        self, array: RowArray, shard: int, layers: Chosen, rows: Chosen
    ) -> Shaped[np.ndarray, "layer row width"]:
        name, size = shard_name(array, shard), block_bytes(array, self.shard_rows)
        row_bytes = block_bytes(array, 1)
        if isinstance(rows, slice):
            first, last = rows.start, rows.stop
        else:
            first, last = int(rows.min()), int(rows.max()) + 1
            rows = rows - first
        read = self._layout.storage.read_range
        numbers = np.arange(array.n_layers)[layers].tolist()
        if isinstance(layers, slice) and numbers and (first, last) == (0, self.shard_rows):
            raw = read(name, numbers[0] * size, (numbers[-1] + 1) * size)
        else:
            raw = b"".join(
                read(name, layer * size + first * row_bytes, layer * size + last * row_bytes)
                for layer in numbers
            )
        blocks = np.frombuffer(raw, _little(array)).reshape(len(numbers), last - first, array.width)
        return blocks if isinstance(rows, slice) else np.take(blocks, rows, axis=1)


def _little(array: RowArray) -> np.dtype:
    return np.dtype(array.stored).newbyteorder("<")
