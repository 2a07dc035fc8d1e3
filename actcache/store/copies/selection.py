"""Selecting a part of a store: rows by their columns, layers by number, arrays by name.

A value that the store lacks is an error, never ignored. Reads columns only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import Store

_SHOWN = 8  # values of a column that a message names


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of a store to keep; by default all. A row must meet every condition."""

    behaviors: Sequence[str] | None = None
    variants: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None

    ids: Sequence[str] | None = None
    """Ids of rows; the rows keep the store's order."""

    rows: Int[np.ndarray, " _"] | None = None
    """Numbers of rows, likewise."""

    layers: Sequence[int] | Int[np.ndarray, " _"] | None = None
    """Layers by number. `embed` has none and is always kept."""

    positions: Sequence[str] | None = None
    sites: Sequence[str] | None = None

    def recorded(self, rows: Int64[np.ndarray, " _"]) -> dict[str, Any]:
        """As JSON: the conditions, and a digest of the row numbers that met them."""
        named = ("behaviors", "variants", "labels", "splits", "positions", "sites")
        conditions = {name: getattr(self, name) for name in named}
        conditions["layers"] = None if self.layers is None else np.asarray(self.layers).tolist()
        return {
            **{name: list(value) for name, value in conditions.items() if value is not None},
            "n": int(rows.size),
            "rows_sha256": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        }


def select_rows(store: Store, selection: Selection) -> Int64[np.ndarray, " _"]:
    """Numbers of the rows that meet every condition, in the store's order."""
    selected = np.ones(store.n, np.bool_)
    counts: list[str] = []

    def narrow(what: str, fits: np.ndarray) -> None:
        counts.append(f"{int(fits.sum())} of {what}")
        np.logical_and(selected, fits, out=selected)

    for column in ("behavior", "variant", "label", "split", "id"):
        requested: Sequence[str] | None = getattr(selection, f"{column}s")
        if requested is None:
            continue
        values = np.array([str(value) for value in store[column].tolist()], dtype=object)
        known = dict.fromkeys(values.tolist())
        absent = [value for value in requested if value not in known]
        if absent or not requested:
            examples = ", ".join(repr(value) for value in list(known)[:_SHOWN])
            more = f", … ({len(known)} in all)" if len(known) > _SHOWN else ""
            raise MismatchError(
                f"{len(absent)} of the {len(requested)} {column}s asked for are not in "
                f"'{store.path}'{f', the first {absent[0]!r}' if absent else ''}; expected some of "
                f"{examples}{more}. See actcache info."
            )
        choices = set(requested)
        fits = np.fromiter((value in choices for value in values), np.bool_, store.n)
        condition = (
            f"{len(requested)} ids" if column == "id" else f"{column} {', '.join(requested)}"
        )
        narrow(condition, fits)
    if selection.rows is not None:
        numbers = selection.rows
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < store.n:
            raise MismatchError(
                f"rows {numbers.min()} to {numbers.max()} are asked for, but '{store.path}' has "
                f"rows 0 to {store.n - 1}. Pass some of them."
            )
        fits = np.zeros(store.n, np.bool_)
        fits[numbers] = True
        narrow("the row numbers", fits)
    if not selected.any():
        raise MismatchError(
            f"nothing is left of the {store.n} rows of '{store.path}': {'; '.join(counts)}; "
            "expected a row that meets all of these. Drop a condition."
        )
    return np.flatnonzero(selected)


def select_arrays(store: Store, selection: Selection) -> list[RowArray]:
    """The row arrays of the selected sites and positions, in the store's order."""
    for kind, requested, known in (
        ("position", selection.positions, store.positions),
        ("site", selection.sites, store.sites),
    ):
        absent = [name for name in requested or () if name not in known]
        if absent or (requested is not None and not requested):
            raise MismatchError(
                f"{kind}s asked for are {', '.join(requested or ()) or 'none'}, but '{store.path}' "
                f"has {', '.join(known)}. Pass some of them."
            )
    arrays = [
        array
        for array in store.row_arrays
        if (selection.sites is None or array.name.rpartition("/")[0] in selection.sites)
        and (selection.positions is None or array.name.rpartition("/")[2] in selection.positions)
    ]
    if not arrays:
        raise MismatchError(
            f"'{store.path}' has {', '.join(store.arrays)}, and none of these is of the sites and "
            "positions asked for. Drop a condition."
        )
    return arrays


def select_layers(store: Store, selection: Selection) -> Int64[np.ndarray, " layer"]:
    """The numbers of the selected layers, rising."""
    known = store.layers
    if selection.layers is None:
        return known
    requested = np.unique(np.array(selection.layers, np.int64))
    if not requested.size or not np.isin(requested, known).all():
        raise MismatchError(
            f"layers asked for are {requested.tolist()}, but '{store.path}' has layers "
            f"{span(known)}. Pass some of them."
        )
    return requested


def span(numbers: Int64[np.ndarray, " _"]) -> str:
    """Numbers in words: `0 to 11`, or `3, 5`."""
    if numbers.size > 2 and (np.diff(numbers) == 1).all():
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers.tolist()))


def require_all_layers(store: Store) -> None:
    """Refuse a store of only some layers, for analyses that know layers by their place."""
    n_layers = store.provenance.get("model", {}).get("n_layers") or store.n_layers
    if store.layers.tolist() != list(range(n_layers)) and store.sites != ["embed"]:
        raise MismatchError(
            f"'{store.path}' holds layers {span(store.layers)} of a model of {n_layers}, expected "
            "all of them. Pass the store that it was taken from; single layers are read with "
            "store.resid(…).layer(number)."
        )
