"""Which rows of a build another store holds already: equal tokens, of the same model, read alike.

A residual depends on the tokens before it and on nothing else of a row, so equal tokens are enough;
behavior, split and texts are the new build's own. Knows stores and tokens; refuses to run a model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from actcache.data.spans import SPAN
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, first_difference
from actcache.prompts.render import Rendered
from actcache.store.copies.copy import open_source
from actcache.store.copies.fill import array_of, stored_values
from actcache.store.schema import RowArray
from actcache.store.store import Store

PARTS = ("prompt", "shared", "positive", "negative")
"""What a row's tokens are made of; each is the ragged column `<part>_tokens`."""


@dataclass(frozen=True)
class Reusable:
    """Rows of a build that need not be run."""

    stores: Sequence[Store]
    store: Int64[np.ndarray, " n"]
    """Which of `stores` holds each row; -1 where none does."""

    row: Int64[np.ndarray, " n"]
    """Which row it is there."""

    def recorded(self) -> dict[str, Any]:
        """As JSON, for the provenance: how many rows, and of which stores."""
        counts = np.bincount(self.store[self.store >= 0], minlength=len(self.stores))
        found = [
            {"digest": store.digest, "rows": int(count)}
            for store, count in zip(self.stores, counts, strict=True)
        ]
        return {"rows": int(counts.sum()), "of": found}

    def fill(self, blocks: Mapping[str, np.ndarray], start: int) -> Int64[np.ndarray, " _"]:
        """Copy what is there into a shard that is being built.

        Args:
            blocks: for each row array `[layer, row, width]` in its stored dtype; written to.
            start: the build's row that is the shard's first.

        Returns:
            The shard's rows that must be run.

        Raises:
            FormatError: a block that would be copied is damaged.
        """
        n_rows = next(iter(blocks.values())).shape[1]
        holder, row = self.store[start : start + n_rows], self.row[start : start + n_rows]
        for number, store in enumerate(self.stores):
            here = np.flatnonzero(holder == number)
            if here.size:
                for name, block in blocks.items():
                    values = stored_values(store.array(name))[row[here]]
                    block[:, here] = values.swapaxes(0, 1)
        return np.flatnonzero(holder < 0)


def find_reusable(
    paths: Sequence[str | Path],
    *,
    rows: Sequence[Rendered],
    arrays: Sequence[RowArray],
    model: Mapping[str, Any],
    mode: str,
    answer: str,
) -> Reusable:
    """Look for the rows of a build in other stores.

    Args:
        paths: finished stores; where several hold a row, the first gives it.
        rows: the build's rows, as tokens.
        arrays: what the build reads; the stores may hold more.
        model: the build's model, the fields of `provenance.IDENTITY`.
        mode: how it is processed.
        answer: which token of a completion is its answer token.

    Raises:
        MismatchError: a store is of another model, processing or answer token, or lacks an array:
            names the field and both values.
    """
    of_answer = any(array.name.endswith(("/positive", "/negative")) for array in arrays)
    asked = {
        "model": {name: model[name] for name in IDENTITY},
        "mode": mode,
        **({"answer": answer} if of_answer else {}),
        "arrays": {array.name: _kind(array) for array in arrays},
    }
    with_span = any(array.dimension_names[2] == "head" for array in arrays)
    stores = [open_source(path) for path in paths]
    known: dict[bytes, tuple[int, int]] = {}
    for number, store in enumerate(stores):
        _require_alike(store, asked)
        parts = [store.ragged(f"{part}_tokens") for part in PARTS]
        spans = store[SPAN].tolist() if with_span else [None] * store.n
        for row, (*tokens, span) in enumerate(zip(*parts, spans, strict=True)):
            known.setdefault(_key([each.tolist() for each in tokens], span), (number, row))
    found = np.full((2, len(rows)), -1, np.int64)
    for i, each in enumerate(rows):
        span = list(each.span or (0, 0)) if with_span else None
        key = _key([list(getattr(each, part)) for part in PARTS], span)
        found[:, i] = known.get(key, (-1, -1))
    return Reusable(stores, found[0], found[1])


def _require_alike(store: Store, asked: Mapping[str, Any]) -> None:
    arrays = {name: array_of(store.array(name)) for name in store.arrays}
    absent = [f"{part}_tokens" for part in PARTS if f"{part}_tokens" not in store.columns.all_names]
    model = store.provenance.get("model", {})
    held = {
        "model": {name: model.get(name) for name in IDENTITY},
        "mode": store.provenance.get("mode"),
        "answer": store.config.get("answer"),
        "arrays": {
            name: _kind(arrays[name]) if name in arrays else None for name in asked["arrays"]
        },
    }
    difference = first_difference({name: held[name] for name in asked}, asked)
    if difference is None and not absent:
        return
    field, old, new = difference or (absent[0], None, "a column")
    raise MismatchError(
        f"'{store.path}', whose rows were to be reused, and this build differ in '{field}': it has "
        f"{old!r}, the build {new!r}. Use the settings and the model that it was built with, or "
        "leave --reuse out."
    )


def _kind(array: RowArray) -> dict[str, Any]:
    return {"layers": array.n_layers, "width": array.width, "dtype": array.dtype}


def _key(parts: Sequence[Sequence[int]], span: Sequence[int] | None) -> bytes:
    """Equal for equal tokens, and in effect for no others."""
    return hashlib.blake2b(repr((parts, span)).encode(), digest_size=16).digest()
