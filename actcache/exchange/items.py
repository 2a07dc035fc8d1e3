"""What is exported: named arrays that come in pieces, and text about them.

One view of a store, or of the results that an analysis left, for every format. Knows neither the
format nor how much fits into memory: a piece is at most a shard.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import MismatchError
from actcache.store.copies.fill import array_of, columns_of
from actcache.store.schema import Ragged
from actcache.store.store import Residuals, Store, open_store

TEXT = "text"
"""The dtype of an item of strings; others have NumPy's name."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One array."""

    name: str
    """Its name; parts between slashes are groups, where a format has them."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of what the pieces are, or `TEXT`."""

    dimensions: tuple[str | None, ...]
    """What the dimensions are called."""

    pieces: Callable[[], Iterable[np.ndarray]] = field(repr=False)
    """Gives the values in order, cut along the first dimension."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    """`dtype`: what the values mean, where that is not what they are; `ragged`: of which column
    they are a half."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """All that goes into a file."""

    items: list[Item]
    about: Mapping[str, str]
    """Text that belongs to the whole, JSON where it has parts."""


def of_store(store: Store, *, bits: bool = False) -> Export:
    """A store's row arrays and columns.

    bfloat16 becomes float32, exactly; the attribute `dtype` says what it was.

    Args:
        store: any; open it with `check=True` so that damage is found.
        bits: give bfloat16 as it is kept, uint16.
    """
    arrays = [_row_array(store, name, bits=bits) for name in store.arrays]
    columns = []
    for name, values in columns_of(store).items():
        if not isinstance(values, Ragged):
            columns.append(_plain(name, np.asarray(values), _first_dimension(store, name)))
            continue
        for half, flat in ((name, values.flat), (f"{name}_offsets", values.offsets)):
            columns.append(_plain(half, flat, None, attributes={"ragged": name}))
    about = {
        "kind": store.kind,
        "digest": store.digest,
        "shards": json.dumps({"rows": store.shard_rows, "reason": store.shard_reason}),
        "arrays": json.dumps(
            {
                name: {
                    "dtype": store.array(name).dtype,
                    "dimension_names": store.array(name).dimension_names,
                }
                for name in store.arrays
            }
        ),
        "columns": json.dumps([item.name for item in columns]),
        "config": json.dumps(store.config, ensure_ascii=False),
        "provenance": json.dumps(store.provenance, ensure_ascii=False),
        "certificate": json.dumps(store.certificate, ensure_ascii=False),
    }
    if store.kind == "residuals" and "layer" not in store.columns:
        # The coordinates that other programs look for; no column of the store.
        columns.append(_plain("layer", store.layers, "layer"))
    return Export(items=[*arrays, *columns], about=about)


def of_results(folder: str | Path) -> Export:
    """What an analysis left: directions, steerability, and the sweep's propensities.

    Raises:
        MismatchError: the folder holds none of these.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    items: list[Item] = []
    if (folder / "directions.safetensors").is_file():
        for name, values in load_file(folder / "directions.safetensors").items():
            items.append(_whole(f"directions/{name}", values, ("layer", "d_model")))
    if (folder / "steerability.npz").is_file():
        with np.load(folder / "steerability.npz", allow_pickle=False) as kept:
            for name in kept.files:
                values = kept[name]
                dims: tuple[str | None, ...] = (None,) * values.ndim
                if name.endswith("slope"):
                    dims = ("n", "layer")
                items.append(_whole(f"steerability/{name}", values, dims))
    if (folder / "sweep.zarr").is_dir():
        swept = open_store(folder / "sweep.zarr", check=True)
        items += [_row_array(swept, name, bits=False) for name in swept.arrays]
        items += [_whole(f"sweep/{name}", swept[name], (name,)) for name in ("layer", "multiplier")]
        items.append(_whole("sweep/id", swept["id"], ("n",)))
    if not items:
        raise MismatchError(
            f"'{folder}' holds neither directions.safetensors nor steerability.npz nor sweep.zarr, "
            "expected a store, or a folder that actcache analyze left. Pass one of them."
        )
    about = {"kind": "results"}
    if (folder / "summary.json").is_file():
        about["summary"] = (folder / "summary.json").read_text(encoding="utf-8")
    return Export(items=items, about=about)


def _row_array(store: Store, name: str, *, bits: bool) -> Item:
    residuals = store.array(name)
    array = array_of(residuals)
    of_bits = bits and array.dtype == "bfloat16"
    dtype = "uint16" if of_bits else "float32" if array.dtype == "bfloat16" else array.dtype
    source = residuals.bits if of_bits else residuals
    return Item(
        name=array.name,
        shape=residuals.shape,
        dtype=dtype,
        dimensions=array.dimension_names,
        pieces=lambda: _pieces(store, source),
        attributes={"dtype": "bfloat16"} if array.dtype == "bfloat16" else {},
    )


def _pieces(store: Store, residuals: Residuals) -> Iterator[np.ndarray]:
    for _, values in residuals.batches():
        yield values
        store.close()  # what was read once need not stay mapped


def _first_dimension(store: Store, name: str) -> str:
    """What the first dimension of a column is called."""
    names = {dim for each in store.arrays for dim in store.array(each).dimension_names[1:]}
    return name if name in names else "n"


def _plain(
    name: str,
    values: np.ndarray,
    dimension: str | None,
    *,
    attributes: Mapping[str, str] | None = None,
) -> Item:
    dimensions = (dimension, None)[: values.ndim]
    return _whole(name, values, dimensions, attributes=attributes)


def _whole(
    name: str,
    values: np.ndarray,
    dimensions: tuple[str | None, ...],
    *,
    attributes: Mapping[str, str] | None = None,
) -> Item:
    """An array that is in memory as it is. Booleans become numbers, which every program has."""
    found = dict(attributes or {})
    if values.dtype == np.bool_:
        values, found = values.astype(np.uint8), {**found, "dtype": "bool"}
    return Item(
        name=name,
        shape=values.shape,
        dtype=TEXT if values.dtype.kind in "UO" else values.dtype.name,
        dimensions=dimensions,
        pieces=lambda: [values],
        attributes=found,
    )


def parse_json(text: str, what: str) -> Any:
    """JSON that came from a file.

    Raises:
        MismatchError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MismatchError(
            f"{what} is no JSON, expected what actcache export wrote. Export it again."
        ) from None
