"""Turns an HDF5 file into a store: an exported one into the store it was, any other as it is.

An export is compared with the digest of its store. A file without our attributes gives residuals
and columns, and a provenance in which model, tokens and processing are unknown; analyses that need
no model run on it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from actcache.conventions import SPLITS
from actcache.data.samples import TEXT_COLUMNS, Sample, rows_digest
from actcache.data.splits import assign_splits
from actcache.errors import MismatchError
from actcache.exchange.hdf5 import MARK
from actcache.exchange.plain_hdf5 import PlainFile, is_text
from actcache.store.columns import parse_left_out
from actcache.store.copies.fill import Fill
from actcache.store.schema import LEFT_OUT, Dtype, Kind, Ragged, RowArray, shard_rows
from actcache.store.store import Store
from actcache.store.writing.contents import ColumnValues, StoreContents

_STORED_AS = {"float32": ("float32",), "float16": ("float16",), "bfloat16": ("float32", "uint16")}
_JSON = {"arrays": dict, "columns": list, "shards": dict, "config": dict, "provenance": dict}


def import_hdf5(path: str | Path, fill: Fill) -> Store:
    """Turn an HDF5 file into the store that `fill` writes; memory holds one shard."""
    with PlainFile(path) as file:
        is_export = file.has_attribute(MARK)
        contents, certificate, digest = (
            _exported(file) if is_export else (_foreign(file), None, None)
        )

        def read(array: RowArray, rows: slice) -> Shaped[np.ndarray, "_ layer width"]:
            values = file.numbers(array.name, rows)
            if array.dtype != "bfloat16" or values.dtype == np.uint16:
                return np.asarray(values, array.stored)
            bits = np.asarray(values, np.float32).view(np.uint32)
            if (bits & 0xFFFF).any():
                file.refuse(array.name, "wider than bfloat16, as it is marked", "unchanged")
            return (bits >> 16).astype(np.uint16)

        return fill(contents, read=read, certificate=certificate, digest=digest)


def _exported(file: PlainFile) -> tuple[StoreContents, Any, str | None]:
    """What a file that actcache exported holds, its certificate, and its store's digest."""
    kind, digest = file.attribute("kind"), file.attribute("digest")
    if kind == "results":
        raise MismatchError(
            f"'{file.path}' holds results, expected a store. Read it with h5py, or import what "
            "actcache export wrote of a store."
        )
    try:
        about = {name: json.loads(file.attribute(name) or "") for name in (*_JSON, "certificate")}
    except (ValueError, RecursionError):
        about = {}
    as_exported = all(isinstance(about.get(name), type_) for name, type_ in _JSON.items())
    shards = about["shards"] if as_exported else {}
    rows, reason = shards.get("rows"), shards.get("reason")
    if (
        not as_exported
        or not about["arrays"]
        or kind not in ("residuals", "sweep")
        or digest is None
        or type(rows) is not int
        or type(reason) is not str
    ):
        file.refuse("the attributes", "of another kind", "those that actcache export wrote")
    arrays = [_row_array(file, name, array) for name, array in about["arrays"].items()]
    n = file.dataset(arrays[0].name).shape[0]
    file.require_rows(arrays[0].name, n)
    if not 0 < rows <= n:
        file.refuse("shards", f"of {rows} rows", f"1 to {n}")
    _require_small_shards(file, arrays, rows)
    contents = StoreContents(
        kind=cast("Kind", kind),
        n=n,
        arrays=arrays,
        columns=_exported_columns(file, [str(name) for name in about["columns"]]),
        config=about["config"],
        provenance=about["provenance"],
        left_out=_left_out(file) if LEFT_OUT not in about["columns"] else (),
        shard_rows=rows,
        shard_reason=reason,
    )
    return contents, about["certificate"], digest


def _require_small_shards(file: PlainFile, arrays: Sequence[RowArray], rows: int) -> None:
    """Refuse shards, of which memory holds one of every array, that the file does not back."""
    n_bytes = rows * sum(array.row_bytes for array in arrays)
    if n_bytes > file.memory:
        file.refuse("shards", f"of {n_bytes} bytes", f"{file.memory} at most, of such a file")


def _row_array(file: PlainFile, name: str, about: Any) -> RowArray:
    dataset = file.dataset(name)
    dtype, dimensions = (
        (about.get(key) if isinstance(about, dict) else None)
        for key in ("dtype", "dimension_names")
    )
    if (
        dataset.dtype.name not in _STORED_AS.get(str(dtype), ())
        or len(dataset.shape) != 3
        or not isinstance(dimensions, list)
    ):
        file.refuse(name, f"{dataset.dtype} {list(dataset.shape)}", "the row array of the store")
    _, n_layers, width = dataset.shape
    return RowArray(name, n_layers, width, cast("Dtype", dtype), cast("Any", tuple(dimensions)))


def _exported_columns(file: PlainFile, names: list[str]) -> dict[str, ColumnValues]:
    """Columns of an export; a ragged one is marked on its values and on its offsets."""
    columns: dict[str, ColumnValues] = {}
    for name in names:
        ragged = file.attribute("ragged", of=name)
        if ragged is None:
            values = _values(file, name)
            is_bool = file.attribute("dtype", of=name) == "bool"
            columns[name] = np.asarray(values) != 0 if is_bool else values
        elif ragged == name:
            columns[name] = Ragged(file.numbers(name), file.numbers(f"{name}_offsets"))
    return columns


def _left_out(file: PlainFile) -> list[dict[str, Any]]:
    """Rows that were left out of the store, if any were."""
    if LEFT_OUT not in file.names():
        return []
    return parse_left_out(np.asarray(_values(file, LEFT_OUT)), f"{file.path}/{LEFT_OUT}")


def _values(file: PlainFile, name: str) -> list[str] | np.ndarray:
    return file.texts(name) if is_text(file.dataset(name)) else file.numbers(name)


def _foreign(file: PlainFile) -> StoreContents:
    """What a file that actcache did not export holds."""
    datasets = {name: file.dataset(name) for name in file.names()}
    arrays = []
    for name, dataset in datasets.items():
        if "/" in name and len(dataset.shape) == 3:
            dtype = dataset.dtype.name
            if dtype not in ("float32", "float16"):
                file.refuse(name, f"of {dtype}", "of float32 or float16")
            _, n_layers, width = dataset.shape
            arrays.append(RowArray(name, n_layers, width, dtype))
    n_rows = {array.name: datasets[array.name].shape[0] for array in arrays}
    n = next(iter(n_rows.values()), 0)
    if not n or len(set(n_rows.values())) > 1:
        raise MismatchError(
            f"'{file.path}' has {n_rows or 'no row array'}, expected datasets <site>/<position> "
            "of equally many rows, [n, layer, d_model], such as resid_post/prompt. Write such "
            "datasets."
        )
    file.require_rows(arrays[0].name, n)
    _require_small_shards(file, arrays, shard_rows(arrays, n)[0])
    depth = max(array.n_layers for array in arrays)
    columns: dict[str, ColumnValues] = {
        name: _values(file, name)
        for name, dataset in datasets.items()
        if (dataset.shape == (n,) and "/" not in name)
        or (name == "layer" and dataset.shape == (depth,) and dataset.dtype.kind in "iu")
    }
    not_read = sorted(datasets.keys() - columns.keys() - n_rows.keys())
    columns |= _sample_columns(columns, n, behavior=file.path.stem)
    layers = np.asarray(columns.get("layer", np.arange(depth)))
    return StoreContents(
        kind="residuals",
        n=n,
        arrays=arrays,
        columns=columns,
        config={"imported": True},
        provenance={
            "imported": {"file": file.path.name, "bytes": file.n_bytes, "not_read": not_read},
            "model": {
                "name": "not known (imported)",
                "family": None,
                "n_layers": int(layers.max()) + 1,
                "d_model": arrays[0].width,
                "dtype": arrays[0].dtype,
                "weights_sha256": None,
            },
            "data_sha256": rows_digest(
                zip(*(columns[name] for name in ("id", "split", "digest")), strict=True)
            ),
        },
    )


def _sample_columns(
    columns: Mapping[str, ColumnValues], n: int, *, behavior: str
) -> dict[str, list[str]]:
    """The columns of samples as text; what the file lacks is empty, or has a default."""
    defaults = {
        "id": [f"row-{row}" for row in range(n)],
        "behavior": [behavior] * n,
        "variant": ["base"] * n,
    }
    texts = {
        name: [_as_text(value) for value in columns[name]]
        if name in columns
        else defaults.get(name, [""] * n)
        for name in TEXT_COLUMNS
    }
    unknown = set(texts["split"]) - {*SPLITS, ""}
    if unknown:
        raise MismatchError(
            f"the column 'split' holds {min(unknown)!r}, expected {', '.join(SPLITS)}. Write "
            "these, or leave the column out."
        )
    samples = [
        Sample(
            id=texts["id"][row],
            behavior=texts["behavior"][row],
            variant=texts["variant"][row],
            prompt=texts["prompt"][row] or texts["id"][row],
            positive=texts["positive"][row] or None,
            negative=texts["negative"][row] or None,
            label=texts["label"][row] or None,
            letter=texts["letter"][row],
            split=texts["split"][row],
            system=texts["system"][row] or None,
        )
        for row in range(n)
    ]
    texts["split"] = assign_splits(samples)
    texts["digest"] = [sample.digest for sample in samples]
    return texts


def _as_text(value: Any) -> str:
    """A label that a program stored as a number, in its shortest form."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
