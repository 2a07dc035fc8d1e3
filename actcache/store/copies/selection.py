"""Which part of a store is meant: rows by what is known of them, layers by number, arrays by name.

Says what is not there instead of leaving it out. Reads columns; never residuals.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from actcache.errors import MismatchError
from actcache.store.copies.fill import array_of
from actcache.store.schema import RowArray
from actcache.store.store import Store

_SHOWN = 8  # values of a column that a message names


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is kept of a store; all of it by default. A row must fit every condition."""

    behaviors: Sequence[str] | None = None
    variants: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None

    ids: Sequence[str] | None = None
    """Ids of rows; the rows keep the store's order."""

    rows: Int[np.ndarray, " _"] | None = None
    """Numbers of rows, likewise."""

    layers: Sequence[int] | Int[np.ndarray, " _"] | None = None
    """Layers by number. `embed` has none and is kept."""

    positions: Sequence[str] | None = None
    sites: Sequence[str] | None = None

    def recorded(self, rows: Int64[np.ndarray, " _"]) -> dict[str, Any]:
        """As JSON: names as they were asked for, and the digest of the row numbers that it gave."""
        named = ("behaviors", "variants", "labels", "splits", "positions", "sites")
        asked = {name: getattr(self, name) for name in named}
        asked["layers"] = None if self.layers is None else np.asarray(self.layers).tolist()
        return {
            **{name: list(value) for name, value in asked.items() if value is not None},
            "n": int(rows.size),
            "rows_sha256": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        }


def select_rows(store: Store, selection: Selection) -> Int64[np.ndarray, " _"]:
    """The rows that fit, by number, in the store's order.

    Raises:
        MismatchError: none does, or a value is asked for that no row has.
    """
    kept = np.ones(store.n, np.bool_)
    counts: list[str] = []

    def narrow(what: str, fits: np.ndarray) -> None:
        counts.append(f"{int(fits.sum())} of {what}")
        np.logical_and(kept, fits, out=kept)

    for column in ("behavior", "variant", "label", "split", "id"):
        wanted: Sequence[str] | None = getattr(selection, f"{column}s")
        if wanted is None:
            continue
        values = np.array([str(value) for value in store[column].tolist()], dtype=object)
        known = dict.fromkeys(values.tolist())
        absent = [value for value in wanted if value not in known]
        if absent or not wanted:
            held = ", ".join(repr(value) for value in list(known)[:_SHOWN])
            more = f", … ({len(known)} in all)" if len(known) > _SHOWN else ""
            raise MismatchError(
                f"{len(absent)} of the {len(wanted)} {column}s asked for are not in "
                f"'{store.path}'{f', the first {absent[0]!r}' if absent else ''}; expected some of "
                f"{held}{more}. See actcache info."
            )
        chosen = set(wanted)
        fits = np.fromiter((value in chosen for value in values), np.bool_, store.n)
        named = f"{len(wanted)} ids" if column == "id" else f"{column} {', '.join(wanted)}"
        narrow(named, fits)
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
    if not kept.any():
        raise MismatchError(
            f"nothing is left of the {store.n} rows of '{store.path}': {'; '.join(counts)}; "
            "expected a row that fits all of these. Ask for less at once."
        )
    return np.flatnonzero(kept)


def select_arrays(store: Store, selection: Selection) -> list[RowArray]:
    """The row arrays of the sites and positions that are kept, as the store has them.

    Raises:
        MismatchError: one was not kept there.
    """
    for what, wanted, known in (
        ("position", selection.positions, store.positions),
        ("site", selection.sites, store.sites),
    ):
        absent = [name for name in wanted or () if name not in known]
        if absent or (wanted is not None and not wanted):
            raise MismatchError(
                f"{what}s asked for are {', '.join(wanted or ()) or 'none'}, but '{store.path}' "
                f"has {', '.join(known)}. Pass some of them."
            )
    names = [
        name
        for name in store.arrays
        if (selection.sites is None or name.rpartition("/")[0] in selection.sites)
        and (selection.positions is None or name.rpartition("/")[2] in selection.positions)
    ]
    if not names:
        raise MismatchError(
            f"'{store.path}' has {', '.join(store.arrays)}, and none of these is of the sites and "
            "positions asked for. Ask for less at once."
        )
    return [array_of(store.array(name)) for name in names]


def select_layers(store: Store, selection: Selection) -> Int64[np.ndarray, " layer"]:
    """The numbers of the layers that are kept, rising.

    Raises:
        MismatchError: one is not in the store.
    """
    known = store.layers
    if selection.layers is None:
        return known
    wanted = np.unique(np.array(selection.layers, np.int64))
    if not wanted.size or not np.isin(wanted, known).all():
        raise MismatchError(
            f"layers asked for are {wanted.tolist()}, but '{store.path}' has layers "
            f"{span(known)}. Pass some of them."
        )
    return wanted


def span(numbers: Int64[np.ndarray, " _"]) -> str:
    """Numbers in words: `0 to 11`, or `3, 5`."""
    if numbers.size > 2 and (np.diff(numbers) == 1).all():
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers.tolist()))


def require_all_layers(store: Store) -> None:
    """Refuse a store of which only some layers were kept, where layers go by their place.

    Raises:
        MismatchError: it lacks layers.
    """
    n_layers = store.provenance.get("model", {}).get("n_layers") or store.n_layers
    if store.layers.tolist() != list(range(n_layers)) and store.sites != ["embed"]:
        raise MismatchError(
            f"'{store.path}' holds layers {span(store.layers)} of a model of {n_layers}, expected "
            "all of them. Pass the store that it was taken from; single layers are read with "
            "store.resid(…).layer(number)."
        )
