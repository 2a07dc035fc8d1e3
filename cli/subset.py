"""Write a part of a store as a new store: some rows, layers, positions or sites.

A row must fulfil every condition that is given. Residuals are copied bit for bit, and each block is
checked; layers keep their numbers, rows keep their splits, and the new store records what it was
made from. A store of some layers can be read and exported; analyze needs all of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_new_store, names, note_ignored, numbers

EXAMPLE = "actcache subset rows.zarr -o small.zarr --split train,test --layers 10:20"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("store", metavar="STORE", help="a store that build wrote")
    add("--behavior", metavar="LIST", help="rows of these behaviors")
    add("--variant", metavar="LIST", help="rows of these variants: base, sys_pos, …")
    add("--label", metavar="LIST", help="rows of these labels")
    add("--split", metavar="LIST", help="rows of these splits: train, validation, test")
    add("--ids", metavar="LIST|FILE", help="rows of these ids, or of those in a file, one a line")
    add("--rows", metavar="LIST", help="rows by number, for example 0:100,205 (without row 100)")
    add("--layers", metavar="LIST", help="layers by number, for example 3,5 or 0:12")
    add("--positions", metavar="LIST", help="of the store's positions")
    add("--sites", metavar="LIST", help="of the store's sites")
    add_new_store(command, "NEW")


def run(args: argparse.Namespace) -> None:
    """Select, copy, print."""
    note_ignored(args)
    import numpy as np

    from actcache.cli.info import describe
    from actcache.store.copies.copy import subset
    from actcache.store.copies.selection import Selection

    rows = numbers(args.rows, "rows")
    selection = Selection(
        behaviors=names(args.behavior),
        variants=names(args.variant),
        labels=names(args.label),
        splits=names(args.split),
        ids=_ids(args.ids),
        rows=None if rows is None else np.array(rows, np.int64),
        layers=numbers(args.layers, "layers"),
        positions=names(args.positions),
        sites=names(args.sites),
    )
    with console.Bars(quiet=args.json).steps("subset", None) as on_rows:
        store = subset(
            args.store,
            args.output,
            selection=selection,
            resume=args.resume,
            overwrite=args.overwrite,
            on_rows=on_rows,
        )
    console.print_result(describe(store), as_json=args.json)


def _ids(text: str | None) -> Sequence[str] | None:
    if text is not None and Path(text).is_file():
        return [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line]
    return names(text)
