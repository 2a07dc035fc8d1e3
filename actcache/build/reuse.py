"""Rows that other stores already hold: equal tokens, same model, same reading.

A residual depends only on the tokens before it, so equal tokens are enough; behavior, split and
texts are those of the new build.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from actcache.conventions import ATTENTION, ATTENTION_CONTROL
from actcache.data.spans import CONTROL_SPAN, SPAN
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, first_difference
from actcache.prompts.render import PARTS, Rendered
from actcache.store.schema import RowArray
from actcache.store.store import Store


@dataclass(frozen=True)
class Reusable:
    """Rows of a build that are copied from other stores instead of run."""

    stores: Sequence[Store]

    store: Int64[np.ndarray, " n"]
    """Which of `stores` holds each row; -1 if none does."""

    row: Int64[np.ndarray, " n"]
    """The row's number in that store."""

    def recorded(self) -> dict[str, Any]:
        """As JSON, for the provenance: how many rows come from which store."""
        counts = np.bincount(self.store[self.store >= 0], minlength=len(self.stores))
        sources = [
            {"digest": store.digest, "rows": int(count)}
            for store, count in zip(self.stores, counts, strict=True)
        ]
        return {"rows": int(counts.sum()), "of": sources}

    def part(self, rows: slice) -> "Reusable":
        """The same of some rows."""
        return Reusable(self.stores, self.store[rows], self.row[rows])

    def fill(self, blocks: Mapping[str, np.ndarray], start: int) -> None:
        """Copy the rows that a shard can reuse.

        Args:
            blocks: for each row array `[layer, row, width]` in its stored dtype; written to.
            start: number of the shard's first row.
        """
        n_rows = next(iter(blocks.values())).shape[1]
        holder, row = self.store[start : start + n_rows], self.row[start : start + n_rows]
        for number, store in enumerate(self.stores):
            copied = np.flatnonzero(holder == number)
            if copied.size:
                for name, block in blocks.items():
                    values = store.array(name).stored[row[copied]]
                    block[:, copied] = values.swapaxes(0, 1)


def find_reusable(
    stores: Sequence[Store],
    *,
    rows: Sequence[Rendered],
    arrays: Sequence[RowArray],
    model: Mapping[str, Any],
    mode: str,
    answer: str,
) -> Reusable:
    """Look for the rows of a build in other stores.

    Args:
        stores: finished stores; if several hold a row, it is copied from the first.
        rows: the build's rows, as tokens.
        arrays: the arrays of the build; the stores may hold more.
        model: the build's model, the fields of `identity.IDENTITY`; a store with another model,
            mode or answer token is refused.
        mode: see `provenance.MODE`.
        answer: which token of a completion is its answer token.
    """
    reads_answers = any(array.name.endswith(("/positive", "/negative")) for array in arrays)
    required = {
        "model": {name: model[name] for name in IDENTITY},
        "mode": mode,
        **({"answer": answer} if reads_answers else {}),
        "arrays": {array.name: _shape(array) for array in arrays},
    }
    columns = _span_columns(arrays)
    known: dict[bytes, tuple[int, int]] = {}
    for number, store in enumerate(stores):
        _require_compatible(store, required)
        parts = [store.ragged(f"{part}_tokens") for part in PARTS]
        spans = _spans(store, columns)
        for row, (*tokens, span) in enumerate(zip(*parts, spans, strict=True)):
            known.setdefault(_key([ids.tolist() for ids in tokens], span), (number, row))
    sources = np.full((2, len(rows)), -1, np.int64)  # store, and row in it
    for i, rendered in enumerate(rows):
        sources[:, i] = known.get(_key_of(rendered, columns), (-1, -1))
    return Reusable(stores, sources[0], sources[1])


def first_equal_rows(
    rows: Sequence[Rendered], arrays: Sequence[RowArray]
) -> Int64[np.ndarray, " n"]:
    """Find for each row of a build the first one that has its tokens, perhaps itself.

    Prompts without a concept are the same for all concepts; they are run once.
    """
    columns = _span_columns(arrays)
    first: dict[bytes, int] = {}
    return np.array(
        [first.setdefault(_key_of(row, columns), number) for number, row in enumerate(rows)],
        np.int64,
    )


def _span_columns(arrays: Sequence[RowArray]) -> list[str]:
    """The columns of the spans that a build reads attention on."""
    sites = {array.name.partition("/")[0] for array in arrays}
    return [
        column
        for site, column in ((ATTENTION, SPAN), (ATTENTION_CONTROL, CONTROL_SPAN))
        if site in sites
    ]


def _key_of(row: Rendered, columns: Sequence[str]) -> bytes:
    spans = [list(getattr(row, column) or (0, 0)) for column in columns]
    return _key([list(getattr(row, part)) for part in PARTS], spans)


def _spans(store: Store, columns: Sequence[str]) -> Sequence[Sequence[Sequence[int]]]:
    """The spans of each row, those that the build reads attention on."""
    values = [store[column].tolist() for column in columns]
    return list(zip(*values, strict=True)) if values else [()] * store.n


def _require_compatible(store: Store, required: Mapping[str, Any]) -> None:
    arrays = {array.name: array for array in store.row_arrays}
    columns = store.columns.with_ragged()
    missing = [f"{part}_tokens" for part in PARTS if f"{part}_tokens" not in columns]
    model = store.provenance.get("model", {})
    stored = {
        "model": {name: model.get(name) for name in IDENTITY},
        "mode": store.provenance.get("mode"),
        "answer": store.config.get("answer"),
        "arrays": {
            name: _shape(arrays[name]) if name in arrays else None for name in required["arrays"]
        },
    }
    difference = first_difference({name: stored[name] for name in required}, required)
    if difference is None and not missing:
        return
    field, old, new = difference or (missing[0], None, "a column")
    raise MismatchError(
        f"rows of '{store.path}' cannot be reused: it differs from this build in '{field}': it has "
        f"{old!r}, the build {new!r}. Use the settings and the model that it was built with, or "
        "leave --reuse out."
    )


def _shape(array: RowArray) -> dict[str, Any]:
    return {"layers": array.n_layers, "width": array.width, "dtype": array.dtype}


def _key(parts: Sequence[Sequence[int]], spans: Sequence[Sequence[int]]) -> bytes:
    """Hash a row's tokens; equal hashes mean equal tokens."""
    return hashlib.blake2b(repr((parts, list(spans))).encode(), digest_size=16).digest()
