"""Other formats for the same residuals on disk, each written as its users would.

All are uncompressed and hold bfloat16 as its bits, since most cannot hold it otherwise. None checks
what it reads and none syncs by itself: `synced` syncs all files once at the end, the least that a
result needs to survive a power cut.
"""

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reader:
    """Four reads of an open file or folder; rows are sorted."""

    layer: Callable[[int], np.ndarray]
    """One layer of all rows."""

    stream: Callable[[], Iterator[np.ndarray]]
    """All layers of all rows, in pieces."""

    rows: Callable[[Sequence[int]], np.ndarray]
    """All layers of some rows."""

    rows_of_layer: Callable[[Sequence[int], int], np.ndarray]
    """One layer of some rows."""


@dataclass(frozen=True)
class Format:
    """One format for `[n, layer, d_model]`."""

    write: Callable[[Path, Sequence[np.ndarray]], None]
    """Writes blocks `[rows, layer, d_model]` into an empty folder; all but the last of one length."""

    open: Callable[[Path], Reader]


def synced(folder: Path) -> None:
    """Wait until everything is on disk."""
    subprocess.run(["sync", "-f", folder], check=True)


def _zarr_write(folder: Path, blocks: Sequence[np.ndarray]) -> None:
    import zarr

    rows, n_layers, width = blocks[0].shape
    n = sum(map(len, blocks))
    array: Any = zarr.create_array(
        folder / "a.zarr",
        shape=(n, n_layers, width),
        dtype=blocks[0].dtype,
        chunks=(rows, 1, width),
        shards=(rows, n_layers, width),
        compressors=None,
    )
    for start, block in _placed(blocks):
        array[start : start + len(block)] = block


def _zarr_open(folder: Path) -> Reader:
    import zarr

    array: Any = zarr.open_array(folder / "a.zarr", mode="r")
    step = array.shards[0]
    return Reader(
        lambda layer: array[:, layer],
        lambda: (array[at : at + step] for at in range(0, array.shape[0], step)),
        lambda rows: array.oindex[list(rows)],
        lambda rows, layer: array.oindex[list(rows), layer],
    )


def _h5py_write(folder: Path, blocks: Sequence[np.ndarray]) -> None:
    import h5py

    rows, n_layers, width = blocks[0].shape
    shape = (sum(map(len, blocks)), n_layers, width)
    with h5py.File(folder / "a.h5", "w") as file:
        chunks = (min(rows, 256), 1, width)
        array = file.create_dataset("a", shape, blocks[0].dtype, chunks=chunks)
        for start, block in _placed(blocks):
            array[start : start + len(block)] = block


def _h5py_open(folder: Path) -> Reader:
    import h5py

    array: Any = h5py.File(folder / "a.h5", "r")["a"]
    step = array.chunks[0]
    return Reader(
        lambda layer: array[:, layer],
        lambda: (array[at : at + step] for at in range(0, array.shape[0], step)),
        lambda rows: array[list(rows)],
        lambda rows, layer: array[list(rows), layer],
    )


def _safetensors_write(folder: Path, blocks: Sequence[np.ndarray]) -> None:
    from safetensors.numpy import save_file

    for i, block in enumerate(blocks):
        save_file({"resid": np.ascontiguousarray(block)}, folder / f"{i:06}.safetensors")


def _safetensors_open(folder: Path) -> Reader:
    from safetensors import safe_open

    files: list[Any] = [safe_open(path, "np") for path in sorted(folder.glob("*.safetensors"))]
    parts = [file.get_slice("resid") for file in files]
    step = parts[0].get_shape()[0]

    def rows(numbers: Sequence[int]) -> np.ndarray:
        return np.concatenate([parts[i // step][i % step : i % step + 1] for i in numbers])

    def rows_of_layer(numbers: Sequence[int], layer: int) -> np.ndarray:
        return np.concatenate([parts[i // step][i % step : i % step + 1, layer] for i in numbers])

    return Reader(
        lambda layer: np.concatenate([part[:, layer] for part in parts]),
        lambda: (part[:] for part in parts),
        rows,
        rows_of_layer,
    )


def _prompt_path(folder: Path, row: int) -> Path:
    return folder / f"{hashlib.sha256(str(row).encode()).hexdigest()}.safetensors"


def _per_prompt_write(folder: Path, blocks: Sequence[np.ndarray]) -> None:
    from safetensors.numpy import save_file

    for start, block in _placed(blocks):
        for i, resid in enumerate(block):
            layers = {f"layer_{layer}": values.copy() for layer, values in enumerate(resid)}
            save_file(layers, _prompt_path(folder, start + i))


def _per_prompt_open(folder: Path) -> Reader:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    n = sum(1 for _ in folder.iterdir())

    def row(number: int) -> np.ndarray:
        layers = load_file(_prompt_path(folder, number))
        return np.stack([layers[f"layer_{i}"] for i in range(len(layers))])

    def of_layer(number: int, layer: int) -> np.ndarray:
        with safe_open(_prompt_path(folder, number), "np") as file:
            values: np.ndarray = file.get_tensor(f"layer_{layer}")
        return values

    return Reader(
        lambda layer: np.stack([of_layer(i, layer) for i in range(n)]),
        lambda: map(row, range(n)),
        lambda rows: np.stack([row(i) for i in rows]),
        lambda rows, layer: np.stack([of_layer(i, layer) for i in rows]),
    )


def _placed(blocks: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


FORMATS = {
    "zarr-python": Format(_zarr_write, _zarr_open),
    "h5py": Format(_h5py_write, _h5py_open),
    "safetensors": Format(_safetensors_write, _safetensors_open),
    "a file a prompt": Format(_per_prompt_write, _per_prompt_open),
}
"""zarr-python: shards and chunks as in our stores. h5py: chunks of one layer. safetensors: a file
for each shard's rows. A file a prompt: the layout of lmprobe 0.10, a safetensors file named by a
hash, with a tensor for each layer; emulated, without its manifest and without torch."""
