"""A store as a data set for torch's `DataLoader`, in any number of worker processes.

Each process maps the files for itself: a worker is sent the path and the selection, never a
residual. The only module of the store that imports torch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from actcache.errors import MismatchError
from actcache.store.array import Residuals
from actcache.store.storage.address import bucket_address
from actcache.store.store import Store, open_store

NO_CLASS = -100
"""The target of a row that has no class: the one that torch's losses skip (`ignore_index`)."""


class ResidualDataset(Dataset[Any]):
    """The residuals of one position, row by row: a map-style data set.

    A `DataLoader` fetches a batch at once (`__getitems__`), which is much faster than row by row.
    To spare its collation too, let it hand over whole batches of row numbers:
    `DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 256, False))`.

    Args:
        path: the store, a folder or `s3://…`; workers that read a bucket must be spawned
            (`DataLoader(…, multiprocessing_context="spawn")`).
        position: prompt, fork, positive, negative, ….
        site: resid_post, embed, ….
        layers: numbers of the layers to return, in this order, negative ones from the end; a single
            one drops the dimension; by default all.
        select: a bool mask `[n]`, or row numbers in the order of the data set; by default all rows.
        target: a column that is returned with each row. Words (`label`, `letter`, `behavior`)
            become codes, int64: the place in `classes`, or -100 where the row has none.
        as_stored: return the dtype of the store (bfloat16 as torch has it) instead of float32.
        partial: open an interrupted store, as `open_store` does.
        check: compare each block with its checksum when a process first reads it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        position: str,
        site: str = "resid_post",
        layers: int | Sequence[int] | None = None,
        select: Bool[np.ndarray, " n"] | Int[np.ndarray, " _"] | Sequence[int] | None = None,
        target: str | None = None,
        as_stored: bool = False,
        partial: bool = False,
        check: bool = False,
    ):
        # A worker may run in another folder.
        self._path = bucket_address(path) or Path(path).absolute()
        self._name = f"{site}/{position}"
        self._target = target
        self._stored = as_stored
        self._partial = partial
        self._check = check
        self._opened: tuple[int, Residuals, Tensor | None] | None = None
        store = open_store(self._path, partial=partial)
        self._digest = store.digest if store.complete else None
        self._places = _places(layers, store, store.array(self._name))
        self._rows = _numbers(select, store.n)
        self.classes: tuple[str, ...] = ()
        """The words that the codes of `target` stand for, sorted; of all rows of the store, so that
        two selections share their codes. Empty where the target is a number, or there is none."""
        if target is not None and store[target].dtype.kind in "UO":
            self.classes = tuple(word for word in np.unique(store[target]).tolist() if word)

    @property
    def rows(self) -> Int64[np.ndarray, " _"]:
        """The row number in the store of each row of the data set."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """One row, or a batch of those that a slice, a mask, a list or an array names.

        Returns:
            `[layer, d_model]`, without the layers' dimension where a single one is read; batches
            have one more in front. With a `target` a pair of that and the target.
        """
        resid, targets = self._open()
        rows = np.asarray(self._rows[_as_index(index)])
        # Numbers, not a range: a view would take the whole shard along to another process.
        tensor: Tensor = resid.tensor(np.atleast_1d(rows), layers=self._places)
        if isinstance(self._places, int | np.integer):
            tensor = tensor[:, 0]
        if rows.ndim == 0:
            tensor = tensor[0]
        if not self._stored:
            tensor = tensor.to(torch.float32)
        return tensor if targets is None else (tensor, targets[torch.from_numpy(rows)])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows of a batch, read at once; a `DataLoader` asks for this and stacks them."""
        batch = self[list(indices)]
        if isinstance(batch, tuple):
            return list(zip(*batch, strict=True))
        return list(batch)

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they open the store for themselves.
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"ResidualDataset({str(self._path)!r}, {self._name!r}, {len(self)} rows)"

    def _open(self) -> tuple[Residuals, Tensor | None]:
        """Residuals and targets, opened by this process; a forked process opens them again."""
        if self._opened is None or self._opened[0] != os.getpid():
            store = open_store(self._path, partial=self._partial, check=self._check)
            if self._digest not in (None, store.digest):
                raise MismatchError(
                    f"'{self._path}' is not the store that the data set was made of, expected it "
                    "unchanged: it was replaced meanwhile. Make the data set again."
                )
            targets = None if self._target is None else _targets(store[self._target], self.classes)
            self._opened = (os.getpid(), store.array(self._name), targets)
        return self._opened[1:]


def _places(
    layers: int | Sequence[int] | None, store: Store, resid: Residuals
) -> int | list[int] | slice:
    """Places of the layers with these numbers in the array; a store may hold only some."""
    if layers is None:
        return slice(None)
    size = resid.shape[1]
    numbers = store.layers.tolist() if store.layers.size == size else list(range(size))
    places = {number: place for place, number in enumerate(numbers)}
    places |= {place - size: place for place in range(size)}
    absent = [layer for layer in np.atleast_1d(layers).tolist() if layer not in places]
    if absent:
        raise IndexError(f"{absent[0]} is not among the layers {numbers} of '{resid.name}'")
    if isinstance(layers, int | np.integer):
        return places[int(layers)]
    return [places[int(layer)] for layer in layers]


def _targets(values: np.ndarray, classes: Sequence[str]) -> Tensor:
    if values.dtype.kind not in "UO":
        return torch.tensor(values)  # a copy: columns are read-only
    codes = {word: code for code, word in enumerate(classes)}
    return torch.tensor([codes.get(word, NO_CLASS) for word in values.tolist()], dtype=torch.int64)


def _numbers(
    select: Bool[np.ndarray, " _"] | Int[np.ndarray, " _"] | Sequence[int] | None, n: int
) -> Int64[np.ndarray, " _"]:
    """Row numbers from 0 on."""
    if select is None:
        return np.arange(n)
    selected = np.asarray(select)
    if selected.dtype == np.bool_:
        if selected.shape != (n,):
            raise MismatchError(
                f"the mask has shape {list(selected.shape)}, expected [{n}], one for each row of "
                "the store. Make it from the store's columns."
            )
        return np.flatnonzero(selected)
    return np.arange(n)[selected.astype(np.int64)]


def _as_index(index: Any) -> Any:
    if isinstance(index, Tensor):
        return index.numpy()
    if isinstance(index, list | tuple):
        return np.asarray(index, np.int64) if not index else np.asarray(index)
    return index
