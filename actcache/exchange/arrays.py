"""What is exported, whatever the format: named arrays in pieces of at most a shard, and metadata.

It is made from a store, or from the results folder of an analysis.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actcache.errors import MismatchError, StoreNotFoundError
from actcache.store.schema import LEFT_OUT, Ragged, coordinates
from actcache.store.store import Store, open_store

TEXT = "text"
"""The dtype of an array of strings; others have NumPy's name."""


@dataclass(frozen=True, kw_only=True)
class ExportedArray:
    """One array."""

    name: str
    """Its name; parts between slashes are groups in formats that have them."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of what the pieces are, or `TEXT`."""

    dimensions: tuple[str | None, ...]
    """Names of the dimensions."""

    pieces: Callable[[], Iterable[np.ndarray]] = field(repr=False)
    """Yields the values in order, cut along the first dimension."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    """`dtype`: what the values mean, if they are stored as another; `ragged`: the ragged column
    whose values or offsets they are."""


@dataclass(frozen=True, kw_only=True)
class ExportedData:
    """All that goes into a file."""

    arrays: list[ExportedArray]
    metadata: Mapping[str, str]
    """Text about the whole, as JSON if it has parts."""


def data_of_store(
    store: Store, *, bits: bool = False, on_rows: Callable[[int], None] = lambda _n: None
) -> ExportedData:
    """Describe a store's row arrays and columns.

    bfloat16 becomes float32, exactly, and the attribute `dtype` names it; with `bits` it stays the
    uint16 that is stored. `on_rows` receives the rows of each piece of a row array.
    """
    arrays = [_row_array(store, name, bits=bits, on_rows=on_rows) for name in store.arrays]
    dimensions = coordinates(store.row_arrays)
    columns = []
    for name, values in store.columns.with_ragged().items():
        if isinstance(values, Ragged):
            marked = {"ragged": name}
            columns.append(_in_memory(name, values.flat, attributes=marked))
            columns.append(_in_memory(f"{name}_offsets", values.offsets, attributes=marked))
        else:
            dimension = name if name in dimensions else "n"
            columns.append(_in_memory(name, np.asarray(values), dimension))
    names = [column.name for column in columns]
    if store.columns.left_out:
        texts = [json.dumps(row, ensure_ascii=False) for row in store.columns.left_out]
        columns.append(_in_memory(LEFT_OUT, np.array(texts, object), LEFT_OUT))
    about_arrays = {
        array.name: {"dtype": array.dtype, "dimension_names": array.dimension_names}
        for array in store.row_arrays
    }
    shards = {"rows": store.shard_rows, "reason": store.shard_reason}
    metadata = {
        "kind": store.kind,
        "digest": store.digest,
        "shards": json.dumps(shards),
        "arrays": json.dumps(about_arrays),
        "columns": json.dumps(names),
        "config": json.dumps(store.config, ensure_ascii=False),
        "provenance": json.dumps(store.provenance, ensure_ascii=False),
        "certificate": json.dumps(store.certificate, ensure_ascii=False),
    }
    if store.kind == "residuals" and "layer" not in store.columns:
        # The coordinates that other programs look for; no column of the store.
        columns.append(_in_memory("layer", store.layers, "layer"))
    return ExportedData(arrays=[*arrays, *columns], metadata=metadata)


def data_of_results(folder: Path) -> ExportedData:
    """Describe directions, steerability and the sweep's propensities of a results folder."""
    from safetensors.numpy import load_file

    arrays: list[ExportedArray] = []
    if (folder / "directions.safetensors").is_file():
        for name, values in load_file(folder / "directions.safetensors").items():
            arrays.append(_in_memory(f"directions/{name}", values, "layer", "d_model"))
    if (folder / "steerability.npz").is_file():
        with np.load(folder / "steerability.npz", allow_pickle=False) as file:
            for name in file.files:
                dimensions = ("n", "layer") if name.endswith("slope") else ()
                arrays.append(_in_memory(f"steerability/{name}", file[name], *dimensions))
    metadata = {"kind": "results"}
    place: str | Path | None = folder / "sweep.zarr" if (folder / "sweep.zarr").is_dir() else None
    if (folder / "summary.json").is_file():
        metadata["summary"] = (folder / "summary.json").read_text(encoding="utf-8")
        place = json.loads(metadata["summary"]).get("sweep_store", place)
    if place is not None:
        try:
            sweep = open_store(place, check=True)
        except StoreNotFoundError:
            raise StoreNotFoundError(
                f"no sweep at '{place}', where the results in '{folder}' say that it is. If it was "
                f"moved, name its new place: actcache analyze STORE -o {folder} --sweep-store PLACE"
            ) from None
        arrays += [_row_array(sweep, name) for name in sweep.arrays]
        arrays += [_in_memory(f"sweep/{x}", sweep[x], x) for x in ("layer", "multiplier")]
        arrays.append(_in_memory("sweep/id", sweep["id"], "n"))
    if not arrays:
        raise MismatchError(
            f"'{folder}' holds neither directions.safetensors nor steerability.npz nor sweep.zarr, "
            "expected a store, or a folder that actcache analyze left. Pass one of them."
        )
    return ExportedData(arrays=arrays, metadata=metadata)


def _row_array(
    store: Store,
    name: str,
    *,
    bits: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> ExportedArray:
    residuals = store.array(name)
    is_bfloat16 = residuals.dtype == "bfloat16"
    source = residuals.bits if bits and is_bfloat16 else residuals

    def pieces() -> Iterator[np.ndarray]:
        for _, values in source.batches():
            yield values
            store.close()  # what was read once need not stay mapped
            on_rows(len(values))

    return ExportedArray(
        name=residuals.name,
        shape=residuals.shape,
        dtype=("uint16" if bits else "float32") if is_bfloat16 else residuals.dtype,
        dimensions=residuals.dimension_names,
        pieces=pieces,
        attributes={"dtype": "bfloat16"} if is_bfloat16 else {},
    )


def _in_memory(
    name: str,
    values: np.ndarray,
    *dimensions: str,
    attributes: Mapping[str, str] | None = None,
) -> ExportedArray:
    """An array as it is. Booleans become numbers, which every program has."""
    marks = dict(attributes or {})
    if values.dtype == np.bool_:
        values, marks["dtype"] = values.astype(np.uint8), "bool"
    names = [*dimensions, *[None] * values.ndim]
    return ExportedArray(
        name=name,
        shape=values.shape,
        dtype=TEXT if values.dtype.kind in "UO" else values.dtype.name,
        dimensions=tuple(names[: values.ndim]),
        pieces=lambda: [values],
        attributes=marks,
    )
