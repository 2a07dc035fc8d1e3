"""Blocks of shards as arrays: mapped into memory where the storage can, else read by range.

A map copies nothing and outlives a fork, but holds a file descriptor, so the least recently used
are released. What is read by range is asked for all at once, since each range is a round trip.
"""

import errno
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Int64, Shaped

from actcache.errors import refuse
from actcache.store.encoding import block_bytes, shard_bytes
from actcache.store.layout import Layout, read_in_place, shard_name
from actcache.store.schema import RowArray
from actcache.store.storage.block_cache import BlockCache
from actcache.store.storage.protocol import Buffer, Range

OPEN_MAPS = 128
"""Maps of a store that stay open; each costs a file descriptor."""

RANGE_BYTES = 4 << 20
"""Whole blocks that lie one after the other are read as one range of so many bytes at most."""

WORTH_A_BLOCK = 0.25
"""With a cache the whole block is read where at least this part of its rows is asked for."""

Chosen = slice | Int64[np.ndarray, " _"]
"""Rows or layers: a range of step 1, or numbers from 0 on."""

Part = tuple[int, Chosen, Chosen]
"""The number of a shard, rows in it, and where they go."""

Piece = tuple[slice, Chosen, Shaped[np.ndarray, "layer row width"]]
"""Values that were read: which of the chosen layers they are, where their rows go, and they."""


class _Block(NamedTuple):
    """Rows of one block that are to be read."""

    part: int
    shard: int
    layer: int
    place: int
    """Which of the chosen layers it is."""

    first: int
    stop: int


class ShardMaps:
    """The shards of one store."""

    def __init__(self, layout: Layout, *, check: bool, cache: BlockCache | None = None):
        self._layout = layout
        self.shard_rows = layout.root.shard_rows
        """Rows of a shard."""
        self.is_mapped = layout.storage.is_mapped
        """Whether blocks are mapped, not read by range."""
        self._cache = cache
        self._unchecked: dict[tuple[str, int], set[int]] | None = {} if check else None
        # Not a cache decorator: that refers back to this object, and files would stay open until
        # the garbage collector comes by.
        self._mapped: dict[tuple[str, int], np.ndarray] = {}

    def take(
        self, array: RowArray, shard: int, layers: Chosen, rows: Chosen
    ) -> Shaped[np.ndarray, "layer row width"]:
        """Some rows of some layers of a shard that is mapped, in the stored dtype.

        A read-only view of the file where both are ranges. Blocks are checked first if the store
        was opened to be checked.
        """
        self.require_intact(array, shard, layers)
        mapped = self._shard(array, shard)
        if isinstance(rows, slice):
            return mapped[:, rows][layers]
        if isinstance(layers, slice):  # faster than brackets where whole vectors are picked
            taken: np.ndarray = np.take(mapped[layers], rows, axis=1)
        else:
            taken = mapped[np.ix_(layers, rows)]
        return taken

    def read(
        self,
        array: RowArray,
        layers: Chosen,
        parts: Sequence[Part],
        use: Callable[[Iterator[Piece]], None],
    ) -> None:
        """Read some rows of several shards by range, in the stored dtype and in any order.

        Args:
            array: the row array.
            layers: which layers, of every part.
            parts: rows of shards.
            use: takes all pieces, as they arrive; called again if the store is found elsewhere.

        Raises:
            MismatchError: the store was replaced, moved or removed meanwhile.
        """
        if parts:
            read_in_place(self._layout, lambda: use(self._pieces(array, layers, parts)))

    def map_shard(
        self, array: RowArray, shard: int, *, private: bool = False
    ) -> Shaped[np.ndarray, "layer row width"]:
        """Map all blocks of a shard. A private map may be written: the file stays as it is."""
        name, n_bytes = shard_name(array, shard), shard_bytes(array, self.shard_rows)
        mapped = read_in_place(
            self._layout, lambda: self._layout.storage.map(name, n_bytes, private=private)
        )
        assert mapped is not None  # `is_mapped` says so
        shape = (array.n_layers, self.shard_rows, array.width)
        return np.frombuffer(mapped, _little(array), math.prod(shape)).reshape(shape)

    def require_intact(self, array: RowArray, shard: int, layers: Chosen) -> None:
        """Compare mapped blocks with their checksums, each once in the life of the store object.

        Does nothing unless the store was opened to be checked.
        """
        if self._unchecked is None:
            return
        for layer in np.arange(array.n_layers)[layers].tolist():
            if self._is_unchecked(array, shard, layer):
                intact = self._is_intact(array, shard, layer, self._shard(array, shard)[layer])
                self._note_checked(array, shard, layer, intact=intact)

    def inspect(self, array: RowArray, shard: int) -> tuple[list[bool], bytes]:
        """Read a shard: whether each block has its checksum, and the index behind the blocks."""
        storage, name = self._layout.storage, shard_name(array, shard)
        size, end = block_bytes(array, self.shard_rows), shard_bytes(array, self.shard_rows)
        index = (name, array.n_layers * size, end)
        if self.is_mapped:
            sums = [google_crc32c.value(block) for block in self._shard(array, shard)]
            raw = read_in_place(self._layout, lambda: storage.read_range(*index))
        else:
            whole = [_Block(0, shard, k, k, 0, self.shard_rows) for k in range(array.n_layers)]
            ranges = [self._range(array, run) for run in self._runs(array, whole)]

            def read() -> tuple[list[int], bytes]:
                raws = storage.read_ranges([*ranges, index])
                blocks = [
                    google_crc32c.value(block)
                    for raw in islice(raws, len(ranges))
                    for block in np.frombuffer(raw, np.uint8).reshape(-1, size)
                ]
                return blocks, bytes(next(raws))

            sums, raw = read_in_place(self._layout, read)
        expected = self._layout.checksums[shard][array.name].tolist()
        return [crc == logged for crc, logged in zip(sums, expected, strict=True)], raw

    def clear(self) -> None:
        """Release all maps; arrays that came from them stay valid."""
        self._mapped.clear()

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they map for themselves.
        return {**self.__dict__, "_mapped": {}}

    def _shard(self, array: RowArray, shard: int) -> Shaped[np.ndarray, "layer row width"]:
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
        self._mapped[key] = blocks  # the most recently used stands last
        for oldest in list(self._mapped)[:-OPEN_MAPS]:
            self._mapped.pop(oldest, None)  # another thread may have
        return blocks

    def _pieces(self, array: RowArray, layers: Chosen, parts: Sequence[Part]) -> Iterator[Piece]:
        """Read by range: first what is cached, then all that is missing, as it arrives."""
        missing = []
        for block in self._blocks(array, layers, parts):
            if (cached := self._cached(array, block)) is None:
                missing.append(block)
            else:
                whole = block._replace(first=0, stop=self.shard_rows)
                yield self._piece(array, [whole], cached, parts)
        runs = list(self._runs(array, missing))
        raws = self._layout.storage.read_ranges([self._range(array, run) for run in runs])
        for run, raw in zip(runs, raws, strict=True):
            self._settle(array, run, raw)
            yield self._piece(array, run, raw, parts)

    def _blocks(self, array: RowArray, layers: Chosen, parts: Sequence[Part]) -> Iterator[_Block]:
        """What must be read of each block: all of one that is to be checked, or worth a cache."""
        numbers = np.arange(array.n_layers)[layers].tolist()
        for part, (shard, rows, _) in enumerate(parts):
            if isinstance(rows, slice):
                first, stop = rows.start, rows.stop
            else:
                first, stop = int(rows.min()), int(rows.max()) + 1
            least = WORTH_A_BLOCK * len(self._layout.root.rows_of(shard))
            worth = self._cache is not None and stop - first >= least
            for place, layer in enumerate(numbers):
                if worth or self._is_unchecked(array, shard, layer):
                    yield _Block(part, shard, layer, place, 0, self.shard_rows)
                else:
                    yield _Block(part, shard, layer, place, first, stop)

    def _runs(self, array: RowArray, blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
        """Join whole blocks that lie one after the other in a shard into ranges."""
        longest = max(RANGE_BYTES // block_bytes(array, self.shard_rows), 1)
        run: list[_Block] = []
        for block in blocks:
            if run and (
                len(run) == longest
                or block.stop - block.first < self.shard_rows
                or block != run[-1]._replace(layer=run[-1].layer + 1, place=run[-1].place + 1)
            ):
                yield run
                run = []
            run.append(block)
        if run:
            yield run

    def _range(self, array: RowArray, run: Sequence[_Block]) -> Range:
        """Where the blocks of a run are."""
        size, row_bytes = block_bytes(array, self.shard_rows), block_bytes(array, 1)
        start = run[0].layer * size + run[0].first * row_bytes
        stop = run[-1].layer * size + run[-1].stop * row_bytes
        return shard_name(array, run[0].shard), start, stop

    def _piece(
        self, array: RowArray, run: Sequence[_Block], raw: Buffer, parts: Sequence[Part]
    ) -> Piece:
        """The rows that were asked for, of blocks that were read."""
        part, _, _, place, first, stop = run[0]
        values = np.frombuffer(raw, _little(array)).reshape(len(run), stop - first, array.width)
        _, rows, to = parts[part]
        if isinstance(rows, slice):
            values = values[:, rows.start - first : rows.stop - first]
        else:
            values = np.take(values, rows - first, axis=1)
        return slice(place, place + len(run)), to, values

    def _settle(self, array: RowArray, run: Sequence[_Block], raw: Buffer) -> None:
        """Check and cache whole blocks that were just read; only what is intact is cached."""
        if run[0].stop - run[0].first < self.shard_rows:
            return
        blocks = np.frombuffer(raw, np.uint8).reshape(len(run), -1)
        for block, values in zip(run, blocks, strict=True):
            unchecked = self._is_unchecked(array, block.shard, block.layer)
            if not unchecked and self._cache is None:
                continue
            intact = self._is_intact(array, block.shard, block.layer, values)
            if unchecked:
                self._note_checked(array, block.shard, block.layer, intact=intact)
            if self._cache is not None and intact:
                self._cache.write(self._key(array, block), values)

    def _cached(self, array: RowArray, block: _Block) -> bytes | None:
        """All of a block from the cache, compared with its checksum; None if it is not there."""
        if self._cache is None:
            return None
        key = self._key(array, block)
        raw = self._cache.read(key, block_bytes(array, self.shard_rows))
        if raw is None:
            return None
        if not self._is_intact(array, block.shard, block.layer, raw):
            self._cache.remove(key)  # it was damaged there: read it anew
            return None
        if self._is_unchecked(array, block.shard, block.layer):
            self._note_checked(array, block.shard, block.layer, intact=True)
        return raw

    def _key(self, array: RowArray, block: _Block) -> tuple[str, ...]:
        """What a block is cached under: its address, and the record that chains to its bytes."""
        layout, name = self._layout, shard_name(array, block.shard)
        return layout.storage.where(name), layout.last_record, str(block.layer)

    def _is_unchecked(self, array: RowArray, shard: int, layer: int) -> bool:
        """Whether a block must be checked before it is used."""
        if self._unchecked is None:
            return False
        layers = self._unchecked.setdefault((array.name, shard), set(range(array.n_layers)))
        return layer in layers

    def _note_checked(self, array: RowArray, shard: int, layer: int, *, intact: bool) -> None:
        """Note that a block was checked; refuse it if it has another checksum."""
        if not intact:
            rows = self._layout.root.rows_of(shard)
            refuse(
                self._layout.storage.where(shard_name(array, shard)),
                f"other bytes at layer {layer} of rows {rows.start} to {rows.stop - 1}",
                "those of its checksum",
            )
        assert self._unchecked is not None
        self._unchecked[array.name, shard].discard(layer)

    def _is_intact(
        self, array: RowArray, shard: int, layer: int, values: Buffer | np.ndarray
    ) -> bool:
        """Whether these are the bytes of a block that the log vouches for."""
        checksum: int = google_crc32c.value(values)
        return checksum == int(self._layout.checksums[shard][array.name][layer])


def _little(array: RowArray) -> np.dtype:
    return np.dtype(array.stored).newbyteorder("<")
