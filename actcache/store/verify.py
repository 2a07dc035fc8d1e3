"""Checks a whole store: every block and column against its checksum, every file accounted for.

Reads everything once and changes nothing. It finds what is wrong; it mends nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actcache.errors import DamageError
from actcache.store.columns import read_checked_column
from actcache.store.encoding import block_bytes, shard_index
from actcache.store.layout import PARTIAL, Layout, find_store, read_layout, record_path, shard_path
from actcache.store.shard_maps import ShardMaps
from actcache.store.storage.files import open_file


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store."""

    where: str
    """The file."""

    found: str
    expected: str

    def __str__(self) -> str:
        return f"'{self.where}' holds {self.found}, expected {self.expected}."


def verify(
    path: str | Path, *, partial: bool = False, on_bytes: Callable[[int], None] = lambda _n: None
) -> list[Problem]:
    """Check a store against its own checksums.

    A damaged document or record hides what it vouches for, so after such a problem there may be
    more. Of a partial store the committed part is checked; what an interruption left is ignored.

    Args:
        path: the store's folder.
        partial: check the interrupted one, if there is one.
        on_bytes: told how many bytes of residuals were checked, each time; `Store.n_bytes` in all.

    Returns:
        What is wrong; nothing, if every byte is as it was written.

    Raises:
        StoreNotFoundError: there is no store.
        IncompleteStoreError: there is only an interrupted one, and `partial` is False.
        FormatError: it is a folder without zarr.json, or its format is newer.
    """
    problems: list[Problem] = []

    def note(damage: DamageError) -> None:
        problem = Problem(damage.where, damage.found, damage.expected)
        if problem not in problems:
            problems.append(problem)

    try:
        layout = read_layout(find_store(path, partial=partial), tolerate=note)
    except DamageError as damage:
        note(damage)
        return problems
    for column in layout.columns.values():
        try:
            read_checked_column(layout, column)
        except DamageError as damage:
            note(damage)
    problems += _bad_shards(layout, on_bytes, {problem.where for problem in problems})
    if not layout.folder.name.endswith(PARTIAL):  # else what an interruption left may lie there
        problems += _unaccounted(layout)
    return problems


def _bad_shards(
    layout: Layout, on_bytes: Callable[[int], None], skip: set[str]
) -> Iterator[Problem]:
    maps = ShardMaps(layout, check=False)
    rows = layout.root.shard_rows
    for array in layout.arrays.values():
        index = shard_index(array, rows)
        for shard in range(len(layout.checksums)):
            path = shard_path(layout.folder, array, shard)
            if str(path) in skip:
                continue
            for layer in range(array.n_layers):
                if not maps.is_right(array, shard, layer):
                    yield Problem(
                        str(path), f"other bytes at layer {layer}", "those of its checksum"
                    )
                on_bytes(block_bytes(array, len(layout.root.rows_of(shard))))
            with os.fdopen(open_file(path), "rb") as file:
                file.seek(-len(index), os.SEEK_END)
                if file.read() != index:
                    yield Problem(str(path), "another index", "that of its blocks")
    maps.clear()


def _unaccounted(layout: Layout) -> Iterator[Problem]:
    """Files that no store has, and links."""
    root, folder = layout.root, layout.folder
    known = {folder / name for name in layout.files}
    known |= {record_path(folder, number) for number in range(root.n_shards + 2)}
    for array in layout.arrays.values():
        known |= {shard_path(folder, array, shard) for shard in range(root.n_shards)}
    folders = {parent for path in known for parent in path.parents if parent != folder.parent}
    open_folders = [folder]
    while open_folders:
        for entry in os.scandir(open_folders.pop()):
            path = Path(entry.path)
            if path in folders and entry.is_dir(follow_symlinks=False):
                open_folders.append(path)
            elif path not in known or not entry.is_file(follow_symlinks=False):
                yield Problem(str(path), "something that no store has", "nothing")
