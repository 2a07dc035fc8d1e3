"""Checks a whole store: every block and column against its checksum, every file accounted for.

Reads everything once and changes nothing.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actcache.errors import DamageError
from actcache.store.columns import read_checked_column
from actcache.store.encoding import block_bytes, shard_index
from actcache.store.layout import (
    PARTIAL,
    Layout,
    folders_above,
    open_layout,
    read_in_place,
    record_name,
    shard_name,
)
from actcache.store.shard_maps import ShardMaps
from actcache.store.storage.protocol import Storage


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store."""

    where: str
    """The file."""

    actual: str
    expected: str

    def __str__(self) -> str:
        return f"'{self.where}' holds {self.actual}, expected {self.expected}."


def verify(
    path: str | Path | Storage,
    *,
    partial: bool = False,
    on_bytes: Callable[[int], None] = lambda _n: None,
) -> list[Problem]:
    """Check a store against its own checksums.

    The result is empty if every byte is as it was written. A damaged document or record hides what
    it vouches for, so after such a problem there may be more. Of a partial store the committed part
    is checked; what an interruption left is ignored.

    Args:
        path: the folder of the store, or a storage.
        partial: prefer the interrupted store of that path, if there is one.
        on_bytes: called with the bytes of residuals that were just checked; `Store.n_bytes` in all.

    Raises:
        StoreNotFoundError: there is no store.
        IncompleteStoreError: the store is not finished, and `partial` is False.
        FormatError: it is a folder without zarr.json, or its format is newer.
        MismatchError: it was replaced or removed while it was read.
    """
    problems: list[Problem] = []

    def note(damage: DamageError) -> None:
        problem = Problem(damage.where, damage.actual, damage.expected)
        if problem not in problems:
            problems.append(problem)

    try:
        layout = open_layout(path, partial=partial, tolerate=note)
    except DamageError as damage:
        note(damage)
        return problems
    for column in layout.columns.values():
        try:
            read_in_place(layout, functools.partial(read_checked_column, layout, column))
        except DamageError as damage:
            note(damage)
    problems += _bad_shards(layout, on_bytes, {problem.where for problem in problems})
    if layout.complete and not layout.storage.location.endswith(PARTIAL):
        problems += _unaccounted(layout)  # elsewhere an interruption may have left something
    return problems


def _bad_shards(
    layout: Layout, on_bytes: Callable[[int], None], skip: set[str]
) -> Iterator[Problem]:
    maps, size = ShardMaps(layout, check=False), layout.root.shard_rows
    for array in layout.arrays.values():
        expected = shard_index(array, size)
        for shard in range(len(layout.checksums)):
            rows = layout.root.rows_of(shard)
            where = layout.storage.where(shard_name(array, shard))
            if where in skip:
                continue
            intact, index = maps.inspect(array, shard)
            for layer in range(array.n_layers):
                if not intact[layer]:
                    actual = f"other bytes at layer {layer} of rows {rows[0]} to {rows[-1]}"
                    yield Problem(where, actual, "those of its checksum")
                on_bytes(block_bytes(array, len(rows)))
            if index != expected:
                yield Problem(where, "another index", "that of its blocks")
    maps.clear()


def _unaccounted(layout: Layout) -> Iterator[Problem]:
    """Files and folders that no store has, and links."""
    root, storage = layout.root, layout.storage
    known = {*layout.files, *map(record_name, range(root.n_shards + 2))}
    for array in layout.arrays.values():
        known |= {shard_name(array, shard) for shard in range(root.n_shards)}
    folders = {f"{name}/" for name in folders_above(known)}
    unvisited = [""]
    while unvisited:
        for name in storage.list(unvisited.pop()):
            if name in folders:
                unvisited.append(name.rstrip("/"))
            elif name not in known:
                where = storage.where(name.rstrip("/"))
                yield Problem(where, "something that no store has", "nothing")
