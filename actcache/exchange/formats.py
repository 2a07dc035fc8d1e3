"""Which format goes with what: stores and results are exported, and stores are imported again."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actcache.errors import ActcacheError, MismatchError, StoreNotFoundError
from actcache.exchange.archive import is_archive, read_archive, write_archive
from actcache.exchange.arrays import data_of_results, data_of_store
from actcache.exchange.directions import write_directions, write_gguf
from actcache.exchange.hdf5 import write_hdf5
from actcache.exchange.hdf5_import import import_hdf5
from actcache.exchange.npz import write_npz, write_safetensors
from actcache.exchange.steering import (
    write_easysteer,
    write_steering_gguf,
    write_steering_safetensors,
)
from actcache.progress import SILENT, Progress
from actcache.steering.steering import AnySteering, Steering
from actcache.store.copies.fill import fill_store
from actcache.store.storage.address import require_folder
from actcache.store.store import Store, open_store
from actcache.store.writing.partial import require_outside_stores

FORMATS = ("hdf5", "npz", "safetensors", "gguf", "easysteer", "archive")
"""What can be written."""

VALUES = ("float32", "bits")
"""How bfloat16 is written to formats without it: as float32, which is exact, or as uint16."""

_SUFFIXES = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".zarr": "archive",
}
_RESULTS = ("directions.safetensors", "steerability.npz", "sweep.zarr", "summary.json")
_WRITERS = {"hdf5": write_hdf5, "npz": write_npz, "safetensors": write_safetensors}
_STEERING_WRITERS = {
    "safetensors": write_steering_safetensors,
    "gguf": write_steering_gguf,
    "easysteer": write_easysteer,
}


def export(
    source: Store | AnySteering | str | Path,
    path: str | Path,
    *,
    to: str | None = None,
    values: str = "float32",
    directions: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a store, a results folder or a steering as a file of another format.

    Args:
        source: a finished store, open or by its path, a folder that analyze left, or a steering or
            its file.
        path: the file, or for an archive and for EasySteer the folder. It gets its name once it is
            complete.
        to: one of `FORMATS`; by default the suffix of `path` decides (.h5, .hdf5, .npz,
            .safetensors, .gguf, .zarr).
        values: one of `VALUES`, for a store in HDF5 or npz.
        directions: for results in safetensors or GGUF: behaviors, or names such as
            `narcissism/difference_of_means`; by default all.
        overwrite: replace a file that exists at `path`.
        progress: shows the rows of a store's arrays.

    Returns:
        What was written, for people: path, format, rows and arrays or names, and bytes on disk.

    Raises:
        StoreExistsError: something exists at `path`.
        MismatchError: the format does not go with the source; of a steering names the field that
            the format cannot say.
        FormatError: a steering file is damaged, or something else.
    """
    require_folder(path, "an export")
    path = Path(path)
    to = _SUFFIXES.get(path.suffix, f"not clear from '{path.name}'") if to is None else to
    for setting, value, known in (("the format", to, FORMATS), ("--as", values, VALUES)):
        if value not in known:
            raise ActcacheError(
                f"{setting} is {value}, expected {', '.join(known)}. Pass one of them."
            )
    if (named := _SUFFIXES.get(path.suffix, to)) != to:
        raise ActcacheError(
            f"the file is to be '{path.name}', which is a name for {named}, but the format is "
            f"{to}. Give it another suffix, or export to {named}."
        )
    require_outside_stores(path.absolute())
    if not isinstance(source, Store | AnySteering) and Path(source).is_file():
        source = Steering.load(source)
    if isinstance(source, AnySteering):
        written = _export_steering(source, path, to, directions, overwrite=overwrite)
    elif _is_results(folder := Path(source.path if isinstance(source, Store) else source)):
        written = _export_results(folder, path, to, directions, overwrite=overwrite)
    elif to in ("gguf", "easysteer") or directions is not None:
        place = source.path if isinstance(source, Store) else source
        raise MismatchError(
            f"'{place}' is not a results folder, and only results hold directions; expected what "
            "actcache analyze left. Pass its OUT, or a steering file."
        )
    else:
        with (
            open_store(folder, check=True) as store,  # so that damage is found
            progress.steps("export", store.n * len(store.arrays)) as on_rows,
        ):
            if to == "archive":
                write_archive(store, path, on_rows=on_rows)
            else:
                bits = to == "safetensors" or values == "bits"
                data = data_of_store(store, bits=bits, on_rows=on_rows)
                _WRITERS[to](path, data, overwrite=overwrite)
            written = {"rows": store.n, "arrays": store.arrays, "digest": store.digest}
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    n_bytes = sum(file.stat().st_size for file in files)
    return {"path": str(path), "format": to, **written, "bytes on disk": n_bytes}


def _is_results(folder: Path) -> bool:
    return not (folder / "zarr.json").exists() and any(
        (folder / name).exists() for name in _RESULTS
    )


def _export_steering(
    steering: AnySteering,
    path: Path,
    to: str,
    directions: Sequence[str] | None,
    *,
    overwrite: bool,
) -> dict[str, Any]:
    if to not in _STEERING_WRITERS or directions is not None:
        raise MismatchError(
            f"a steering is written whole to {', '.join(_STEERING_WRITERS)}; requested is {to}"
            f"{' with --directions' if directions is not None else ''}. Choose another format."
        )
    names = _STEERING_WRITERS[to](steering, path, overwrite=overwrite)
    return {"names": names, "digest": steering.digest}


def _export_results(
    folder: Path, path: Path, to: str, directions: Sequence[str] | None, *, overwrite: bool
) -> dict[str, Any]:
    if to in ("safetensors", "gguf"):
        write = write_directions if to == "safetensors" else write_gguf
        return {"names": write(folder, path, names=directions, overwrite=overwrite)}
    if to in ("archive", "easysteer") or directions is not None:
        raise MismatchError(
            f"'{folder}' holds results, which are written whole to hdf5 and npz, or by direction "
            f"to safetensors and gguf; requested is {to}"
            f"{' with --directions' if directions is not None else ''}. Choose another format."
        )
    data = data_of_results(folder)
    _WRITERS[to](path, data, overwrite=overwrite)
    return {"names": [array.name for array in data.arrays]}


def import_store(
    path: str | Path,
    to: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Store:
    """Turn an HDF5 file or an archive into a store; memory holds one shard.

    What `export` wrote becomes the store that it was, bit for bit. Any other HDF5 file needs
    datasets `<site>/<position>` `[n, layer, d_model]` of float32 or float16, such as
    `resid_post/prompt`, and may have columns of `n` texts or numbers (`id`, `behavior`, `label`,
    `split`, `prompt`, …).

    Args:
        path: the file, or the archive's folder.
        to: where the store will be.
        resume: continue an interrupted import of the same file.
        overwrite: replace a store that exists at `to`.
        progress: shows the rows.

    Raises:
        FormatError: the file is neither, is damaged, or is not of plain arrays that it holds.
        MismatchError: it was changed since it was exported, or its arrays do not fit together.
        StoreExistsError: something exists at `to`.
    """
    if not Path(path).exists():
        raise StoreNotFoundError(
            f"there is no file '{path}', expected an HDF5 file or an archive. Check the path."
        )
    read = read_archive if is_archive(path) else import_hdf5
    with progress.steps("import", None) as on_rows:
        fill = partial(fill_store, to, resume=resume, overwrite=overwrite, on_rows=on_rows)
        return read(path, fill)
