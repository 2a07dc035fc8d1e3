"""Writes HDF5 that any program reads: plain numbers and UTF-8 text, with named dimensions.

Row arrays are contiguous `[n, layer, d_model]` (MATLAB and Fortran show the dimensions reversed), a
group for each site, with columns beside them. Text has variable length, which h5py, MATLAB, rhdf5
and hdf5r read as strings. A ragged column `x` is the values `x` and `x_offsets` `[n + 1]`, from 0.
Booleans are uint8. `layer` holds the layers' numbers and is their dimension scale, as `id` is the
rows'. Config, provenance and certificate are attributes of the file, as JSON.
"""

from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import MismatchError
from actcache.exchange.arrays import TEXT, ExportedArray, ExportedData
from actcache.store.storage.atomic import atomic_path

MARK = "actcache_export"
"""The attribute of a file that was written here: the number of this layout."""

LAYOUT = 1

_SLICE = 4096  # strings that are handed to HDF5 at a time


def write_hdf5(path: Path, data: ExportedData, *, overwrite: bool = False) -> None:
    """Write a file; memory holds one piece of one array."""
    import h5py

    with atomic_path(path, overwrite=overwrite) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[MARK] = LAYOUT
        for name, text in data.metadata.items():
            file.attrs[name] = text  # of variable length: it lies outside the 64 kB of a header
        for array in data.arrays:
            _write(file, array)
        _name_dimensions(file, data.arrays)


def _write(file: Any, array: ExportedArray) -> None:
    import h5py

    dtype = h5py.string_dtype("utf-8") if array.dtype == TEXT else array.dtype
    dataset = file.create_dataset(array.name, shape=array.shape, dtype=dtype)
    dataset.attrs.update(array.attributes)
    start = 0
    for piece in array.pieces():
        if not array.shape:
            dataset[()] = piece[()]
        elif array.dtype == TEXT:
            _write_text(dataset, piece, array.name)
        elif piece.size:
            dataset[start : start + len(piece)] = piece
            start += len(piece)


def _write_text(dataset: Any, values: np.ndarray, name: str) -> None:
    for start in range(0, len(values), _SLICE):
        texts = values[start : start + _SLICE].astype(object)
        for row, text in enumerate(texts):
            if "\0" in text:
                raise MismatchError(
                    f"'{name}' has a NUL character in row {start + row}, which ends a text in "
                    "HDF5; expected none. Export --to npz, or leave that row out with actcache "
                    "subset."
                )
        dataset[start : start + len(texts)] = texts


def _name_dimensions(file: Any, arrays: list[ExportedArray]) -> None:
    """Label dimensions, and attach the scales: arrays that are called as their one dimension."""
    scales = {}
    for array in arrays:
        last = array.name.rpartition("/")[2]
        if len(array.shape) == 1 and array.dimensions[0] in (last, {"id": "n"}.get(last, last)):
            scales[array.dimensions[0]] = array
            file[array.name].make_scale(array.dimensions[0])
    for array in arrays:
        for axis, dimension in enumerate(array.dimensions):
            if dimension is None:
                continue
            dimensions, scale = file[array.name].dims, scales.get(dimension)
            dimensions[axis].label = dimension
            if scale is not None and scale is not array and scale.shape[0] == array.shape[axis]:
                dimensions[axis].attach_scale(file[scale.name])
