"""Writes HDF5 that any program reads: plain numbers and UTF-8 text, dimensions by name.

Row arrays are contiguous `[n, layer, d_model]` (MATLAB and Fortran show the dimensions reversed), a
group for each site; columns lie beside them. Text has variable length, which h5py, MATLAB, rhdf5
and hdf5r read as strings. A ragged column `x` is the values `x` and `x_offsets` `[n + 1]`, from 0.
Booleans are uint8. `layer` holds the layers' numbers and is their dimension scale, as `id` is the
rows'. Config, provenance and certificate are attributes of the file, as JSON.
"""

from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import MismatchError
from actcache.exchange.items import TEXT, Export, Item
from actcache.store.storage.atomic import atomic_path

MARK = "actcache_export"
"""The attribute of a file that was written here: the number of this layout."""

LAYOUT = 1

_SLICE = 4096  # strings that are handed to HDF5 at a time


def write_hdf5(path: str | Path, export: Export, *, overwrite: bool = False) -> None:
    """Write a file; memory holds one piece of one array.

    Args:
        path: what it will be called; until it is whole it has another name.
        export: what it is to hold.
        overwrite: replace a file that lies there.

    Raises:
        StoreExistsError: something lies there.
        MismatchError: a text cannot be kept.
    """
    import h5py

    with atomic_path(Path(path), overwrite=overwrite) as aside, h5py.File(aside, "w") as file:
        file.attrs[MARK] = LAYOUT
        for name, text in export.about.items():
            file.attrs[name] = text  # of variable length: it lies outside the 64 kB of a header
        for item in export.items:
            _write(file, item)
        _name_dimensions(file, export.items)


def _write(file: Any, item: Item) -> None:
    import h5py

    dtype = h5py.string_dtype("utf-8") if item.dtype == TEXT else item.dtype
    dataset = file.create_dataset(item.name, shape=item.shape, dtype=dtype)
    for name, text in item.attributes.items():
        dataset.attrs[name] = text
    start = 0
    for piece in item.pieces():
        if not item.shape:
            dataset[()] = piece[()]
        elif item.dtype == TEXT:
            _write_text(dataset, piece, item.name)
        elif piece.size:
            dataset[start : start + len(piece)] = piece
            start += len(piece)


def _write_text(dataset: Any, values: np.ndarray, name: str) -> None:
    for start in range(0, len(values), _SLICE):
        some = values[start : start + _SLICE].astype(object)
        for row, text in enumerate(some):
            if "\0" in text:
                raise MismatchError(
                    f"'{name}' has a NUL character in row {start + row}, which ends a text in "
                    "HDF5; expected none. Export --to npz, or leave that row out with actcache "
                    "subset."
                )
        dataset[start : start + len(some)] = some


def _name_dimensions(file: Any, items: list[Item]) -> None:
    scales = {}
    for item in items:
        last = item.name.rpartition("/")[2]
        if len(item.shape) == 1 and (
            item.dimensions[0] == last or (last, item.dimensions[0]) == ("id", "n")
        ):
            file[item.name].make_scale(str(item.dimensions[0]))
            scales[str(item.dimensions[0])] = item
    for item in items:
        dataset = file[item.name]
        for axis, dimension in enumerate(item.dimensions):
            if dimension is None:
                continue
            dataset.dims[axis].label = dimension
            scale = scales.get(dimension)
            if scale is not None and scale is not item and scale.shape[0] == item.shape[axis]:
                dataset.dims[axis].attach_scale(file[scale.name])
