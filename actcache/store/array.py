"""One row array of a store, read as NumPy arrays: a layer, some rows, or all of it in batches.

What lies in one shard and needs no conversion is a read-only view of the file.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.shard_maps import Chosen, Piece, ShardMaps

Rows = int | np.integer | slice | Sequence[int] | np.ndarray
"""A selection of rows: one number, a slice, a bool mask, or numbers in any order."""

Layers = int | np.integer | slice | Sequence[int] | np.ndarray
"""A selection of layers, likewise."""

CONVERTED_BYTES = 16 << 20
"""Bytes of a batch of bfloat16 that is given as float32, at most. The allocator uses memory of this
size again for the next batch; larger pieces go back to the system, and each page would be new."""

SHARDS_AHEAD = 2
"""Shards that `batches` reads before they are asked for, where nothing can be mapped."""

_ALL = slice(None)


class Residuals:
    """A row array `[n, layer, d_model]` on disk. Only what is selected is read.

    bfloat16 is read as float32, exactly; `bits` reads it as it is stored. Other dtypes are read
    as they are. Arrays may be read-only views of the file, and their memory order is not promised:
    it is layer by layer wherever that saves a copy.
    """

    def __init__(
        self,
        maps: ShardMaps,
        array: RowArray,
        *,
        n: int,
        batch_rows: int,
        layer_numbers: Int64[np.ndarray, " layer"] | None = None,
    ):
        self.name = array.name
        """Name in the store."""
        self.dimension_names = array.dimension_names
        """What the dimensions are called."""
        self._maps = maps
        self._array = array
        self._n = n
        self._shard_rows = maps.shard_rows
        self._batch_rows = batch_rows
        self._layer_numbers = layer_numbers
        self._raw = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers, width."""
        return self._n, self._array.n_layers, self._array.width

    @property
    def dtype(self) -> str:
        """What the values are: float32, float16, bfloat16; of `bits` uint16."""
        return "uint16" if self._raw else self._array.dtype

    @property
    def bits(self) -> "Residuals":
        """A bfloat16 array as raw bits, uint16: `torch.from_numpy(…).view(torch.bfloat16)`."""
        if self._array.dtype != "bfloat16":
            raise MismatchError(
                f"'{self.name}' is {self.dtype}, expected bfloat16. Read it without .bits."
            )
        bits = copy.copy(self)
        bits._raw, bits._batch_rows = True, self._shard_rows
        return bits

    @property
    def stored(self) -> "Residuals":
        """The same array in the dtype that is on disk: `bits` of bfloat16, else itself."""
        return self.bits if self._array.dtype == "bfloat16" else self

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"Residuals({self.name!r}, shape={self.shape}, dtype={self.dtype!r})"

    def layer(self, layer: int, rows: Rows | None = None) -> Shaped[np.ndarray, "_ d_model"]:
        """One layer of all rows, or of some.

        Args:
            layer: its number, as `Store.layers` has it if the store has only some; negative ones
                count from the end.
            rows: a slice, a bool mask `[n]` or row numbers; by default all.

        Returns:
            `[n, d_model]`; a view of the file where it lies in one shard and is not bfloat16.
        """
        chosen = slice(0, self._n) if rows is None else self._rows(rows)
        if self._layer_numbers is not None and layer >= 0:
            places = np.flatnonzero(self._layer_numbers == layer)
            if not places.size:
                numbers = ", ".join(map(str, self._layer_numbers))
                raise IndexError(f"{layer} is beyond the layers of '{self.name}': {numbers}")
            layer = int(places[0])
        return self._read(chosen, self._layers(layer))[:, 0]

    def __getitem__(
        self, key: Rows | EllipsisType | tuple[Rows | EllipsisType, Layers]
    ) -> Shaped[np.ndarray, "..."]:
        """Rows, or rows and layers, each chosen on its own (as NumPy's `ix_`): `[row, layer, …]`.

        A single number drops its dimension.
        """
        rows, layers = key if isinstance(key, tuple) else (key, slice(None))
        values = self._read(self._rows(rows), self._layers(layers))
        if isinstance(layers, int | np.integer):
            values = values[:, 0]
        return values[0] if isinstance(rows, int | np.integer) else values

    def tensor(self, rows: Rows | EllipsisType = ..., *, layers: Layers = slice(None)) -> Any:
        """The same choice as a torch tensor on the CPU, in the dtype that is kept.

        Of a range of rows in one shard nothing is copied: the tensor is the file, mapped for it
        alone. Changing it changes neither the file nor what is read later.

        Returns:
            `[row, layer, d_model]`, also in bfloat16; single numbers keep their dimensions.
        """
        import torch

        row_numbers, layer_numbers = self._rows(rows), self._layers(layers)
        values = self._private(row_numbers, layer_numbers)
        if values is None:
            values = self.stored._read(row_numbers, layer_numbers)
        if not values.flags.writeable:  # torch has no read-only tensors
            values = values.copy()
        tensor = torch.from_numpy(values)
        return tensor.view(torch.bfloat16) if self._array.dtype == "bfloat16" else tensor

    def batches(
        self,
        rows: int | None = None,
        *,
        select: Bool[np.ndarray, " n"] | None = None,
        layers: Layers | None = None,
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Shaped[np.ndarray, "b layer d_model"]]]:
        """All rows in order, batch by batch; arrays of one store are cut alike.

        Args:
            rows: rows of a batch at most; by default those of a shard, or fewer where bfloat16
                becomes float32. A batch never spans two shards, so that it can be a view of the
                file.
            select: only these rows; a batch then has those among its rows, and none is empty.
            layers: only these layers; a single one keeps its dimension.

        Yields:
            Row numbers `[b]` and residuals `[b, layer, d_model]`.
        """
        if rows is not None and rows < 1:
            raise MismatchError(f"batches of {rows} rows were asked for, expected 1 or more.")
        if select is not None and select.shape != (self._n,):
            raise MismatchError(
                f"the mask has shape {list(select.shape)}, expected [{self._n}], one for each row "
                f"of '{self.name}'."
            )
        chosen = self._layers(slice(None) if layers is None else layers)
        shards = self._batches_of_shards(rows or self._batch_rows, select)
        if not self._maps.is_mapped:
            yield from self._read_ahead(shards, chosen)
            return
        for batches in shards:
            for batch in batches:
                yield _numbers(batch), self._read(batch, chosen)

    def _batches_of_shards(
        self, size: int, select: Bool[np.ndarray, " n"] | None
    ) -> Iterator[list[Chosen]]:
        """The rows of each batch, shard by shard; no shard without a batch."""
        for shard in range(0, self._n, self._shard_rows):
            end = min(shard + self._shard_rows, self._n)
            batches: list[Chosen] = []
            for start in range(shard, end, size):
                stop = min(start + size, end)
                if select is None or select[start:stop].all():
                    batches.append(slice(start, stop))
                elif (selected := start + np.flatnonzero(select[start:stop])).size:
                    batches.append(selected)
            if batches:
                yield batches

    def _read_ahead(
        self, shards: Iterator[list[Chosen]], layers: Chosen
    ) -> Iterator[tuple[Int64[np.ndarray, " b"], Shaped[np.ndarray, "b layer d_model"]]]:
        """Batches of shards that are read while those before them are used."""
        reading: deque[tuple[list[np.ndarray], Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(SHARDS_AHEAD) as pool:
            try:
                while True:
                    while len(reading) <= SHARDS_AHEAD and (batches := next(shards, None)):
                        numbers = list(map(_numbers, batches))
                        rows = _joined(numbers)
                        reading.append((numbers, pool.submit(self.stored._read, rows, layers)))
                    if not reading:
                        return
                    numbers, values = reading[0][0], reading[0][1].result()
                    stop = 0
                    for batch in numbers:
                        start, stop = stop, stop + batch.size
                        yield batch, self._converted(values[start:stop])
                    del values, reading[0]
            finally:
                for _, future in reading:  # nobody asks for them any more
                    future.cancel()

    def _converted(self, stored: Shaped[np.ndarray, "_ _ _"]) -> Shaped[np.ndarray, "_ _ _"]:
        """Values as they are given: the bits of bfloat16 as float32, unless bits were asked for."""
        if self._array.dtype != "bfloat16" or self._raw:
            return stored
        bits = stored.swapaxes(0, 1)  # layer by layer, as they lie in memory
        widened: np.ndarray = np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
        return widened.swapaxes(0, 1)

    def _read(self, rows: Chosen, layers: Chosen) -> Shaped[np.ndarray, "_ _ _"]:
        """`[row, layer, width]`: a view where rows lie in one mapped shard, else a copy."""
        convert = self._array.dtype == "bfloat16" and not self._raw
        mapped = self._maps.is_mapped
        if mapped and not convert and (place := self._one_shard(rows)) is not None:
            return self._maps.take(self._array, place[0], layers, place[1]).swapaxes(0, 1)
        n_rows = rows.stop - rows.start if isinstance(rows, slice) else rows.size
        n_layers = np.arange(self._array.n_layers)[layers].size
        dtype = np.float32 if convert else self._array.stored
        values = np.empty((n_layers, n_rows, self._array.width), dtype)  # layer by layer as on disk
        if mapped:
            take = partial(self._maps.take, self._array)
            parts = self._by_shard(rows)
            pieces = ((_ALL, to, take(shard, layers, inside)) for shard, inside, to in parts)
            self._fill(values, pieces)
        else:
            self._maps.read(
                self._array, layers, list(self._by_shard(rows)), partial(self._fill, values)
            )
        return values.swapaxes(0, 1)

    def _fill(self, values: Shaped[np.ndarray, "_ _ _"], pieces: Iterator[Piece]) -> None:
        """Copy stored blocks to their places in `[layer, row, width]`, as float32 if it is that."""
        convert = values.dtype != self._array.stored
        for place, to, blocks in pieces:
            if not convert:
                values[place, to] = blocks
            elif isinstance(to, slice):  # the bits are the upper half of a float32's
                bits = values.view(np.uint32)[place, to]
                bits[...] = blocks
                bits <<= 16
            else:
                values.view(np.uint32)[place, to] = np.left_shift(blocks, 16, dtype=np.uint32)

    def _private(self, rows: Chosen, layers: Chosen) -> Shaped[np.ndarray, "_ _ _"] | None:
        """A range of rows of one shard as memory of its own; None where that cannot be mapped."""
        if not self._maps.is_mapped or (place := self._one_shard(rows)) is None:
            return None
        shard, inside = place
        blocks = self._maps.map_shard(self._array, shard, private=True)
        self._maps.require_intact(self._array, shard, layers)
        return blocks[:, inside][layers].swapaxes(0, 1)

    def _one_shard(self, rows: Chosen) -> tuple[int, slice] | None:
        """The shard that holds a whole range of rows, and where in it; None if there is none."""
        if isinstance(rows, slice) and rows.start < rows.stop:
            shard, start = divmod(rows.start, self._shard_rows)
            stop = start + rows.stop - rows.start
            return (shard, slice(start, stop)) if stop <= self._shard_rows else None
        return None

    def _by_shard(self, rows: Chosen) -> Iterator[tuple[int, Chosen, Chosen]]:
        """For each shard: its number, rows within it, and where they go."""
        size = self._shard_rows
        if isinstance(rows, slice):
            for shard in range(rows.start // size, -(-rows.stop // size)):
                start = max(rows.start, shard * size)
                stop = min(rows.stop, (shard + 1) * size)
                inside = slice(start - shard * size, stop - shard * size)
                yield shard, inside, slice(start - rows.start, stop - rows.start)
            return
        shards = rows // size
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        for shard, to in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
            is_range = to[-1] - to[0] == to.size - 1  # as in sorted rows; copies faster
            yield shard, rows[to] - shard * size, slice(to[0], to[-1] + 1) if is_range else to

    def _rows(self, rows: Rows | EllipsisType) -> Chosen:
        return _choose(slice(None) if rows is ... else rows, self._n, f"rows of '{self.name}'")

    def _layers(self, layers: Layers) -> Chosen:
        return _choose(layers, self._array.n_layers, f"layers of '{self.name}'")


def _choose(asked: Rows, size: int, what: str) -> Chosen:
    """Which of `size` things are asked for: a slice of step 1, or numbers from 0 on."""
    if isinstance(asked, slice):
        start, stop, step = asked.indices(size)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    if isinstance(asked, int | np.integer):
        if not -size <= asked < size:
            raise IndexError(f"{asked} is beyond the {size} {what}")
        return slice(int(asked) % size, int(asked) % size + 1)
    numbers = np.asarray(asked)
    if numbers.dtype == np.bool_ and numbers.shape == (size,):
        return np.flatnonzero(numbers)
    if numbers.size == 0 and numbers.ndim == 1:
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise IndexError(
            f"{numbers.dtype} {list(numbers.shape)} cannot choose among the {size} {what}; "
            "expected a number, a slice, a bool mask or a list of numbers"
        )
    numbers = numbers.astype(np.int64)
    if numbers.min() < -size or numbers.max() >= size:
        raise IndexError(f"{numbers.min()} to {numbers.max()} is beyond the {size} {what}")
    return np.where(numbers < 0, numbers + size, numbers)


def _numbers(rows: Chosen) -> Int64[np.ndarray, " _"]:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def _joined(numbers: Sequence[Int64[np.ndarray, " _"]]) -> Chosen:
    """All rows of some batches: a range, where they follow each other."""
    first, last = int(numbers[0][0]), int(numbers[-1][-1])
    if last - first + 1 == sum(part.size for part in numbers):
        return slice(first, last + 1)
    return np.concatenate(numbers)


def lazy_array(residuals: Residuals) -> Any:
    """Wrap a row array for an xarray variable: read where a value is needed, and only that."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    def read(key: tuple[Any, Any, Any]) -> np.ndarray:
        rows, layers, width = key
        return residuals[rows, layers][..., width]

    class LazyArray(BackendArray):
        shape = residuals.shape
        dtype = np.dtype("float32" if residuals.dtype == "bfloat16" else residuals.dtype)

        def __getitem__(self, key: Any) -> Any:
            support = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, support, read)

    return indexing.LazilyIndexedArray(LazyArray())
