"""Which file is written of what: a store, or the results of an analysis, in which format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actcache.errors import ActcacheError, MismatchError
from actcache.exchange.archive import write_archive
from actcache.exchange.directions import write_directions, write_gguf
from actcache.exchange.hdf5 import write_hdf5
from actcache.exchange.items import of_results, of_store
from actcache.exchange.npz import write_npz, write_safetensors
from actcache.store.store import open_store

FORMATS = ("hdf5", "npz", "safetensors", "gguf", "archive")
"""What can be written."""

VALUES = ("float32", "bits")
"""How bfloat16 is written to formats that have none: as float32, which is exact, or as uint16."""


def export(
    source: str | Path,
    path: str | Path,
    *,
    to: str,
    values: str = "float32",
    directions: Sequence[str] | None = None,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> dict[str, Any]:
    """Write a store, or a results folder, as a file of another format.

    Args:
        source: a finished store, or a folder that analyze left.
        path: the file, or of an archive the folder. It gets its name when it is whole.
        to: one of `FORMATS`.
        values: one of `VALUES`; of a store in HDF5 or npz.
        directions: of results in safetensors or GGUF, which ones; by default all.
        overwrite: replace a file that lies at `path`.
        on_rows: told how many rows were written, each time; of an archive alone.

    Returns:
        What was written, for people: `path`, `format`, and names or rows.

    Raises:
        StoreExistsError: something lies at `path`.
        MismatchError: the format does not go with the source.
    """
    for what, given, known in (("format", to, FORMATS), ("--as", values, VALUES)):
        if given not in known:
            raise ActcacheError(f"{what} is '{given}', expected {', '.join(known)}.")
    source, path = Path(source), Path(path)
    facts: dict[str, Any] = {"path": str(path), "format": to}
    if source.is_dir() and not (source / "zarr.json").exists() and _has_results(source):
        return facts | _results(source, path, to=to, directions=directions, overwrite=overwrite)
    if to == "gguf" or directions is not None:
        raise MismatchError(
            f"'{source}' is no folder of results, and a control vector is made of directions; "
            "expected what actcache analyze left. Pass its OUT."
        )
    with open_store(source, check=True) as store:
        if to == "archive":
            write_archive(store, path, on_rows=on_rows)
        elif to == "safetensors":
            write_safetensors(path, of_store(store, bits=True), overwrite=overwrite)
        else:
            write = write_hdf5 if to == "hdf5" else write_npz
            write(path, of_store(store, bits=values == "bits"), overwrite=overwrite)
        return facts | {"rows": store.n, "arrays": store.arrays, "digest": store.digest}


def _has_results(folder: Path) -> bool:
    names = ("directions.safetensors", "steerability.npz", "sweep.zarr", "summary.json")
    return any((folder / name).exists() for name in names)


def _results(
    source: Path, path: Path, *, to: str, directions: Sequence[str] | None, overwrite: bool
) -> dict[str, Any]:
    if to == "safetensors":
        return {"names": write_directions(source, path, names=directions, overwrite=overwrite)}
    if to == "gguf":
        return {"names": write_gguf(source, path, names=directions, overwrite=overwrite)}
    if to == "archive" or directions is not None:
        raise MismatchError(
            f"'{source}' holds results, which are written whole to hdf5 and npz, or by direction "
            f"to safetensors and gguf; asked for is {to}"
            f"{' with --directions' if directions is not None else ''}. Choose another format."
        )
    found = of_results(source)
    (write_hdf5 if to == "hdf5" else write_npz)(path, found, overwrite=overwrite)
    return {"names": [item.name for item in found.items]}
