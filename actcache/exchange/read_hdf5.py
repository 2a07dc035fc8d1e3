"""A store out of an HDF5 file: one that was exported comes back as it was, any other as imported.

What `hdf5` wrote is held against the digest of the store that it came from. A file without our
attributes gives residuals and columns, and a provenance that says that nothing is known of model,
tokens and processing; analyses that need no model run on it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from actcache.data.samples import SPLITS, TEXT_COLUMNS, Sample, rows_digest
from actcache.data.splits import assign_splits
from actcache.errors import MismatchError
from actcache.exchange.hdf5 import MARK
from actcache.exchange.items import parse_json
from actcache.exchange.safe_hdf5 import SafeFile, is_text
from actcache.store.contents import ColumnValues, StoreContents
from actcache.store.copies.fill import fill_store
from actcache.store.schema import Dtype, Kind, Ragged, RowArray
from actcache.store.store import Store

LARGEST_SHARD = 1 << 30
"""Bytes of a shard of a file that says how many rows it has, at most."""


def import_hdf5(
    path: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Turn an HDF5 file into a store; memory holds one shard.

    Args:
        path: the file. Without our attributes: datasets `<site>/<position>`
            `[n, layer, d_model]` of float32 or float16, such as `resid_post/prompt`; beside them
            columns of `n` texts or numbers (`id`, `behavior`, `label`, `split`, `prompt`, …).
        out: where the store will be.
        resume: go on with an interrupted import of the same file.
        overwrite: replace a store that lies at `out`.
        on_rows: told how many rows were committed, each time.

    Raises:
        FormatError: the file is none, or not of plain arrays that it holds itself.
        MismatchError: it was changed since it was exported, or its arrays do not fit together.
        StoreExistsError: something lies at `out`.
    """
    with SafeFile(path) as file:
        certificate: Any = None
        digest: str | None = None
        if file.has_attribute(MARK):
            contents, certificate, digest = _exported(file)
        else:
            contents = _foreign(file)

        def read(array: RowArray, rows: slice) -> Shaped[np.ndarray, "_ layer width"]:
            values = file.numbers(array.name, rows)
            if array.dtype != "bfloat16" or values.dtype == np.uint16:
                return np.asarray(values, array.stored)
            bits = np.asarray(values, np.float32).view(np.uint32)
            if (bits & 0xFFFF).any():
                file.refuse(array.name, "wider than bfloat16, which it says it was", "unchanged")
            return (bits >> 16).astype(np.uint16)

        return fill_store(
            out,
            contents,
            read=read,
            certificate=certificate,
            digest=digest,
            resume=resume,
            overwrite=overwrite,
            on_rows=on_rows,
        )


def _exported(file: SafeFile) -> tuple[StoreContents, Any, str | None]:
    """What a file of ours holds, its certificate, and the digest of its store."""
    if file.text("kind") == "results":
        raise MismatchError(
            f"'{file.path}' holds results, expected a store. Read it with h5py, or import what "
            "actcache export wrote of a store."
        )
    said: dict[str, Any] = {}
    for name in ("arrays", "columns", "shards", "config", "provenance", "certificate"):
        said[name] = parse_json(file.text(name) or "", f"attribute '{name}' of '{file.path}'")
    kind, digest = file.text("kind"), file.text("digest")
    arrays, columns, shards = said["arrays"], said["columns"], said["shards"]
    if (
        kind not in ("residuals", "sweep")
        or not isinstance(arrays, dict)
        or not arrays
        or not all(isinstance(each, dict) for each in (*arrays.values(), shards))
        or not isinstance(columns, list)
        or not all(isinstance(said[name], dict) for name in ("config", "provenance"))
        or type(rows := shards.get("rows")) is not int
        or type(reason := shards.get("reason")) is not str
    ):
        file.refuse("the attributes", "of another kind", "those that actcache export wrote")
    found = [_row_array(file, name, about) for name, about in arrays.items()]
    n = file.dataset(found[0].name).shape[0]
    largest = max(array.row_bytes for array in found)
    if not 0 < rows <= n or (rows > 1 and rows * largest > LARGEST_SHARD):
        file.refuse(
            "shards", f"of {rows} rows of {largest} bytes", f"{LARGEST_SHARD} bytes at most"
        )
    contents = StoreContents(
        kind=cast("Kind", kind),
        n=n,
        arrays=found,
        columns=_columns(file, [str(name) for name in columns]),
        config=said["config"],
        provenance=said["provenance"],
        shard_rows=rows,
        shard_reason=reason,
    )
    return contents, said["certificate"], digest


def _row_array(file: SafeFile, name: str, about: Mapping[str, Any]) -> RowArray:
    dataset = file.dataset(name)
    dtype, dims = about.get("dtype"), about.get("dimension_names")
    kept = {"float32": ("float32",), "float16": ("float16",), "bfloat16": ("float32", "uint16")}
    if (
        type(dtype) is not str
        or dataset.dtype.name not in kept.get(dtype, ())
        or len(dataset.shape) != 3
        or type(dims) is not list
        or [type(each) for each in dims] != [str] * 3
    ):
        file.refuse(name, f"{dataset.dtype} {list(dataset.shape)}", "the row array that was there")
    _, n_layers, width = dataset.shape
    return RowArray(name, n_layers, width, cast("Dtype", dtype), cast("Any", tuple(dims)))


def _columns(file: SafeFile, names: list[str]) -> dict[str, ColumnValues]:
    """The columns of a file of ours; of ragged ones both halves are among the names."""
    found: dict[str, ColumnValues] = {}
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        dataset = file.dataset(name)
        if is_text(dataset):
            found[name] = file.texts(name)
            continue
        values = file.numbers(name)
        ragged = file.mark(name, "ragged")
        if ragged is not None:
            halves.setdefault(ragged, {})[name] = values
        else:
            found[name] = values != 0 if file.mark(name, "dtype") == "bool" else values
    for name, parts in halves.items():
        if parts.keys() != {name, f"{name}_offsets"}:
            file.refuse(name, "one half of a ragged column", "both")
        found[name] = Ragged(parts[name], parts[f"{name}_offsets"])
    return {name: found[name] for name in dict.fromkeys(names) if name in found}


def _foreign(file: SafeFile) -> StoreContents:
    """What a file holds that says nothing of itself."""
    arrays: dict[str, RowArray] = {}
    columns: dict[str, ColumnValues] = {}
    rows: dict[str, int] = {}
    others: list[str] = []
    for name in file.names():
        dataset = file.dataset(name)
        if "/" in name and len(dataset.shape) == 3:
            if dataset.dtype.name not in ("float32", "float16"):
                file.refuse(name, f"of {dataset.dtype.name}", "of float32 or float16")
            rows[name] = dataset.shape[0]
            arrays[name] = RowArray(
                name, dataset.shape[1], dataset.shape[2], cast("Dtype", dataset.dtype.name)
            )
        else:
            others.append(name)
    n = next(iter(rows.values()), 0)
    if not n or len(set(rows.values())) > 1:
        raise MismatchError(
            f"'{file.path}' has {rows or 'no row array'}, expected datasets <site>/<position> of "
            "one number of rows, [n, layer, d_model], such as resid_post/prompt. Write them so."
        )
    depth = max(array.n_layers for array in arrays.values())
    for name in list(others):
        dataset = file.dataset(name)
        of_layers = name == "layer" and dataset.shape == (depth,) and dataset.dtype.kind in "iu"
        if of_layers or ("/" not in name and dataset.shape == (n,)):
            columns[name] = file.texts(name) if is_text(dataset) else file.numbers(name)
            others.remove(name)
    columns |= _made_up(columns, n, behavior=file.path.stem)
    digest = rows_digest(zip(*(columns[name] for name in ("id", "split", "digest")), strict=True))
    layers = np.asarray(columns.get("layer", np.arange(depth)))
    first = next(iter(arrays.values()))
    model = {
        "name": "not known (imported)",
        "family": None,
        "n_layers": int(layers.max()) + 1,
        "d_model": first.width,
        "dtype": first.dtype,
        "weights_sha256": None,
    }
    made = {"file": file.path.name, "bytes": file.n_bytes, "not_read": sorted(others)}
    return StoreContents(
        kind="residuals",
        n=n,
        arrays=list(arrays.values()),
        columns=columns,
        config={"imported": True},
        provenance={"imported": made, "model": model, "data_sha256": digest, "left_out": []},
    )


def _made_up(columns: Mapping[str, ColumnValues], n: int, *, behavior: str) -> dict[str, list[str]]:
    """The columns of `TEXT_COLUMNS`, as text; what a file lacks is empty, or plain."""
    plain = {"id": [f"row-{row}" for row in range(n)], "behavior": [behavior] * n}
    plain["variant"] = ["base"] * n
    found = {
        name: [_as_text(value) for value in columns[name]]
        if name in columns
        else plain.get(name, [""] * n)
        for name in TEXT_COLUMNS
    }
    unknown = set(found["split"]) - {*SPLITS, ""}
    if unknown:
        raise MismatchError(
            f"the column 'split' holds {sorted(unknown)[0]!r}, expected {', '.join(SPLITS)}. Write "
            "these, or leave the column out."
        )
    samples = [
        Sample(
            id=found["id"][i],
            behavior=found["behavior"][i],
            variant=found["variant"][i],
            prompt=found["prompt"][i] or found["id"][i],
            positive=found["positive"][i] or None,
            negative=found["negative"][i] or None,
            label=found["label"][i] or None,
            letter=found["letter"][i],
            split=found["split"][i],
            system=found["system"][i] or None,
        )
        for i in range(n)
    ]
    found["split"] = assign_splits(samples)
    found["digest"] = [sample.digest for sample in samples]
    return found


def _as_text(value: Any) -> str:
    """A label that a program kept as a number, in the shortest way."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
