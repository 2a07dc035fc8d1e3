"""Merging: one store out of several of the same model, rendering and positions.

Refuses what would mix numbers that cannot be compared, naming the field and both values. Rows and
splits stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from actcache.data.messages import parse_history
from actcache.data.samples import HISTORY, Sample
from actcache.data.splits import n_leaked
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, first_difference
from actcache.store.copies.copy import (
    Source,
    is_row_column,
    join_columns,
    open_source,
    reader,
    require_another,
    with_data_digest,
    without_left_out,
)
from actcache.store.copies.fill import fill_store
from actcache.store.schema import LEFT_OUT, Ragged, coordinates
from actcache.store.store import Store
from actcache.store.writing.contents import ColumnValues, StoreContents

MAY_DIFFER = (
    *("model", "revision", "device", "device_map", "trust_remote_code", "batch_tokens"),
    *("seed", "preset", "skip_bad_rows", "variants", "positions", "sites", "dtype", "store_dtype"),
)
"""Settings of a build that do not decide what a residual is. The model is compared by its digest,
positions and dtypes as the stores have them."""

OF_ROWS = (LEFT_OUT, "data_sha256")
"""Fields of the provenance that are about the rows, and are computed again."""

_SHOWN = 100  # characters of a value that a message shows


@dataclass(frozen=True)
class Merged:
    """The result of a merge."""

    store: Store
    """The new store, open for reading."""

    n_leaked: int
    """Test rows that have a prompt of their behavior's train rows of another store."""


def merge(
    sources: Sequence[str | Path],
    path: str | Path,
    *,
    shard_rows: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Merged:
    """Write the rows of several stores, one store after the other, as one store.

    `sources` are two or more finished stores of residuals; the other arguments are as in `subset`.
    Columns that rows brought themselves may be in some of them only.

    Raises:
        MismatchError: the stores are not of one model, rendering, positions or columns, or two rows
            have the same id.
        StoreExistsError: the path is taken.
        FormatError: a block that would be copied is damaged.
    """
    stores = [open_source(source) for source in sources]
    if len(stores) < 2:
        raise MismatchError(
            f"{len(stores)} store was to be merged, expected two or more. Pass another."
        )
    require_another(path, stores)
    for before, after in pairwise(stores):
        _require_alike(before, after)
    _require_different_ids(stores)
    parts = [Source(store, np.arange(store.n)) for store in stores]
    first = stores[0]
    columns = join_columns(parts, first.row_arrays)
    store = fill_store(
        path,
        StoreContents(
            kind="residuals",
            n=sum(store.n for store in stores),
            arrays=first.row_arrays,
            columns=columns,
            config=first.config,
            provenance=with_data_digest(_joined_provenance(stores), columns),
            left_out=[row for store in stores for row in store.left_out],
            shard_rows=shard_rows,
        ),
        read=reader(parts),
        certificate=_joined_certificate([store.certificate for store in stores]),
        resume=resume,
        overwrite=overwrite,
        on_rows=on_rows,
    )
    return Merged(store, _n_leaked(store) - sum(map(_n_leaked, stores)))


def _require_alike(before: Store, after: Store) -> None:
    """Refuse stores that differ in model, kind of numbers, or columns."""
    difference = first_difference(_comparable(before), _comparable(after))
    if difference is not None:
        field, left, right = difference
        raise MismatchError(
            f"'{before.path}' and '{after.path}' differ in '{field}': {_short(left)} and "
            f"{_short(right)}; expected stores of one model, rendering and positions. Build one of "
            "them again, or take what both have with actcache subset."
        )


def _comparable(store: Store) -> dict[str, Any]:
    provenance, config = store.provenance, store.config
    model, tokenizer = provenance.get("model", {}), provenance.get("tokenizer", {})
    dimensions = coordinates(store.row_arrays)
    return {
        "model": {name: model.get(name) for name in IDENTITY},
        "tokenizer": {name: tokenizer.get(name) for name in ("sha256", "template")},
        "mode": provenance.get("mode"),
        "config": {name: value for name, value in config.items() if name not in MAY_DIFFER},
        "positions": store.positions,
        "sites": store.sites,
        "arrays": {
            array.name: {"layers": array.n_layers, "width": array.width, "dtype": array.dtype}
            for array in store.row_arrays
        },
        "layers": store.layers.tolist(),
        "columns": {
            name: np.asarray(values).tolist() if name in dimensions else _kind(values)
            for name, values in store.columns.with_ragged().items()
            if name in dimensions or not is_row_column(store, name)
        },
    }


def _kind(values: ColumnValues) -> str:
    """The type of a column, whatever its rows are."""
    if isinstance(values, Ragged):
        return f"ragged {values.flat.dtype}"
    array = np.asarray(values)
    kind = "text" if array.dtype.kind in "UO" else str(array.dtype)
    return kind if array.ndim == 1 else f"{kind} [n, {array.shape[1]}]"


def _require_different_ids(stores: Sequence[Store]) -> None:
    seen: dict[str, Store] = {}
    for store in stores:
        if "id" not in store.columns:
            continue
        for row_id in map(str, store["id"]):
            if row_id in seen:
                raise MismatchError(
                    f"the id '{row_id}' is in '{seen[row_id].path}' and in '{store.path}', "
                    "expected each row once. Leave it out of one with: actcache subset."
                )
            seen[row_id] = store


def _joined_provenance(stores: Sequence[Store]) -> dict[str, Any]:
    """Shared fields at the top; those that differ, store by store under `merged`."""
    first = without_left_out(stores[0].provenance)
    shared = {
        name: value
        for name, value in first.items()
        if name in (*OF_ROWS, "model") or all(s.provenance.get(name) == value for s in stores)
    }
    merged = []
    for store in stores:
        names = [n for n in store.provenance if n not in OF_ROWS and n not in shared]
        entry: dict[str, Any] = {"digest": store.digest, "n": store.n}
        entry |= {name: store.provenance[name] for name in names}
        if store.provenance.get("model") != first.get("model"):
            entry["model"] = store.provenance["model"]
        settings = {n: v for n, v in store.config.items() if v != stores[0].config.get(n)}
        merged.append(entry | ({"config": settings} if settings else {}))
    return {**shared, "merged": merged}


def _joined_certificate(certificates: Sequence[Any]) -> Any:
    """The largest of all errors, and the rows that they were measured on."""
    fields = ("rows", "largest_relative_error", "sites")
    known: list[Mapping[str, Any]] = [
        certificate
        for certificate in certificates
        if isinstance(certificate, dict) and all(name in certificate for name in fields)
    ]
    if len(known) < len(certificates):
        return None
    errors = np.array([certificate["largest_relative_error"] for certificate in known])
    return {
        **known[0],
        "rows": [row for certificate in known for row in certificate["rows"]],
        "largest_relative_error": errors.max(0).tolist(),
        "sites": {site: max(c["sites"][site] for c in known) for site in known[0]["sites"]},
        "self_check": max(
            (certificate.get("self_check") or {} for certificate in known),
            key=lambda check: check.get("largest_relative_error", 0.0),
        ),
    }


def _n_leaked(store: Store) -> int:
    """Test rows whose prompt is one of train's, where splits are known."""
    if not {"id", "behavior", "prompt", "split"} <= set(store.columns):
        return 0
    turns = store[HISTORY].tolist() if HISTORY in store.columns else [""] * store.n
    texts = (store[name].tolist() for name in ("id", "behavior", "prompt"))
    samples = [
        Sample(id=str(i), behavior=str(behavior), prompt=str(prompt), positive=None, negative=None,
               label=None, letter="", history=parse_history(earlier))
        for i, behavior, prompt, earlier in zip(*texts, turns, strict=True)
    ]  # fmt: skip
    return n_leaked(samples, store["split"].tolist(), exact=False)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
