"""One store out of several of the same model, rendering and positions.

Refuses what would mix numbers that cannot be compared, naming the field and both values; rows and
splits stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from actcache.data.samples import Sample
from actcache.data.splits import n_leaked
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, first_difference
from actcache.store.contents import ColumnValues
from actcache.store.copies.copy import (
    Source,
    join_columns,
    open_source,
    reader,
    require_another,
    with_data_digest,
)
from actcache.store.copies.fill import Contents, array_of, columns_of, coordinates, fill_store
from actcache.store.schema import Ragged
from actcache.store.store import Store

MAY_DIFFER = (
    *("model", "revision", "device", "device_map", "trust_remote_code", "batch_tokens"),
    *("seed", "preset", "skip_bad_rows", "variants", "positions", "sites", "dtype", "store_dtype"),
)
"""Settings of two builds that say nothing of what a residual is; the model is held against its
digest, positions and dtypes against what is there."""

OF_ROWS = ("left_out", "data_sha256")
"""Fields of the provenance that are about the rows, and are made anew."""

_SHOWN = 100  # characters of a value that a message shows


@dataclass(frozen=True)
class Merged:
    """What a merge gave."""

    store: Store
    """The new store, open for reading."""

    n_leaked: int
    """Test rows that have a prompt of their behavior's train rows of another store."""


def merge(
    sources: Sequence[str | Path],
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Merged:
    """Write the rows of several stores, one store after the other, as one store.

    Args:
        sources: two or more finished stores of residuals.
        path: where the new one will be; until it is complete it is `PATH.partial`.
        resume: go on with an interrupted one.
        overwrite: replace a store that lies at `path`.
        on_rows: told how many rows were committed, each time.

    Raises:
        MismatchError: the stores are not of one model, rendering, positions or columns, or two rows
            have one id.
        StoreExistsError: something lies at `path`.
        FormatError: a block that would be copied is damaged.
    """
    stores = [open_source(source) for source in sources]
    if len(stores) < 2:
        raise MismatchError(
            f"{len(stores)} store was to be merged, expected two or more. Pass another."
        )
    require_another(path, stores)
    for before, after in pairwise(stores):
        _require_like(before, after)
    _require_own_ids(stores)
    chosen = [Source(store, np.arange(store.n)) for store in stores]
    first = stores[0]
    arrays = [array_of(first.array(name)) for name in first.arrays]
    columns = join_columns(chosen, arrays)
    store = fill_store(
        path,
        Contents(
            kind="residuals",
            n=sum(store.n for store in stores),
            arrays=arrays,
            columns=columns,
            config=first.config,
            provenance=with_data_digest(_joined_provenance(stores), columns),
            certificate=_joined_certificate([store.certificate for store in stores]),
        ),
        read=reader(chosen),
        resume=resume,
        overwrite=overwrite,
        on_rows=on_rows,
    )
    return Merged(store, _n_leaked(store) - sum(map(_n_leaked, stores)))


def _require_like(before: Store, after: Store) -> None:
    """Two stores hold the same kind of numbers of the same model, and know the same of each row."""
    for old, new in zip(_likeness(before), _likeness(after), strict=True):
        difference = first_difference(old, new)
        if difference is not None:
            field, left, right = difference
            raise MismatchError(
                f"'{before.path}' and '{after.path}' differ in '{field}': {_short(left)} and "
                f"{_short(right)}; expected stores of one model, rendering and positions. Build "
                "one of them again, or take what both have with actcache subset."
            )


def _likeness(store: Store) -> tuple[dict[str, Any], ...]:
    provenance, config = store.provenance, store.config
    model, tokenizer = provenance.get("model", {}), provenance.get("tokenizer", {})
    arrays = [array_of(store.array(name)) for name in store.arrays]
    dimensions = coordinates(arrays)
    return (
        {"model": {name: model.get(name) for name in IDENTITY}},
        {"tokenizer": {name: tokenizer.get(name) for name in ("sha256", "template")}},
        {"mode": provenance.get("mode")},
        {"config": {name: each for name, each in config.items() if name not in MAY_DIFFER}},
        {"positions": store.positions, "sites": store.sites},
        {
            "arrays": {
                array.name: {"layers": array.n_layers, "width": array.width, "dtype": array.dtype}
                for array in arrays
            }
        },
        {"layers": store.layers.tolist()},
        {
            "columns": {
                name: np.asarray(values).tolist() if name in dimensions else _kind(values)
                for name, values in columns_of(store).items()
            }
        },
    )


def _kind(values: ColumnValues) -> str:
    """What a column holds, whatever its rows are."""
    if isinstance(values, Ragged):
        return f"ragged {values.flat.dtype}"
    kept = np.asarray(values)
    kind = "text" if kept.dtype.kind in "UO" else str(kept.dtype)
    return kind if kept.ndim == 1 else f"{kind} [n, {kept.shape[1]}]"


def _require_own_ids(stores: Sequence[Store]) -> None:
    seen: dict[str, Store] = {}
    for store in stores:
        if "id" not in store.columns:
            continue
        for each in map(str, store["id"]):
            if each in seen:
                raise MismatchError(
                    f"the id '{each}' is in '{seen[each].path}' and in '{store.path}', expected "
                    "each row once. Leave it out of one with: actcache subset."
                )
            seen[each] = store


def _joined_provenance(stores: Sequence[Store]) -> dict[str, Any]:
    """What all stores share stands on top; what is one store's own, under `merged`."""
    first = stores[0].provenance
    shared = {
        name: value
        for name, value in first.items()
        if name in (*OF_ROWS, "model") or all(s.provenance.get(name) == value for s in stores)
    }
    if "left_out" in first:
        shared["left_out"] = [row for s in stores for row in s.provenance.get("left_out", [])]
    own = []
    for store in stores:
        names = [n for n in store.provenance if n not in OF_ROWS and n not in shared]
        entry: dict[str, Any] = {"digest": store.digest, "n": store.n}
        entry |= {name: store.provenance[name] for name in names}
        if store.provenance.get("model") != first.get("model"):
            entry["model"] = store.provenance["model"]
        settings = {n: v for n, v in store.config.items() if v != stores[0].config.get(n)}
        own.append(entry | ({"config": settings} if settings else {}))
    return {**shared, "merged": own}


def _joined_certificate(certificates: Sequence[Any]) -> Any:
    """The largest of all errors, and the rows that they were measured on."""
    fields = ("rows", "largest_relative_error", "sites")
    known: list[Mapping[str, Any]] = [
        each
        for each in certificates
        if isinstance(each, dict) and all(name in each for name in fields)
    ]
    if len(known) < len(certificates):
        return None
    errors = np.array([each["largest_relative_error"] for each in known])
    return {
        **known[0],
        "rows": [row for each in known for row in each["rows"]],
        "largest_relative_error": errors.max(0).tolist(),
        "sites": {site: max(each["sites"][site] for each in known) for site in known[0]["sites"]},
        "self_check": max(
            (each.get("self_check") or {} for each in known),
            key=lambda check: check.get("largest_relative_error", 0.0),
        ),
    }


def _n_leaked(store: Store) -> int:
    """Test rows whose prompt is one of train's, where splits are known."""
    if not {"id", "behavior", "prompt", "split"} <= set(store.columns):
        return 0
    rows = zip(*(store[name].tolist() for name in ("id", "behavior", "prompt")), strict=True)
    samples = [
        Sample(id=str(i), behavior=str(behavior), prompt=str(prompt), positive=None, negative=None,
               label=None, letter="")
        for i, behavior, prompt in rows
    ]  # fmt: skip
    return n_leaked(samples, store["split"].tolist(), exact=False)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
