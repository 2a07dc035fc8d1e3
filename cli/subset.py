"""Write a part of a store as a new store: rows by behavior, variant, split, …; layers; positions.

A row must meet every condition that is given. Residuals are copied as they are stored, each block
checked; layers keep their numbers, rows their splits, and the new store records what it was made
from. A store of only some layers can be read and exported; analyze needs all of them.
"""

import argparse
from pathlib import Path

from actcache.cli import console
from actcache.cli.options import numbers


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("store", metavar="STORE", help="a store that build wrote")
    add("-o", "--output", required=True, metavar="NEW", help="the store to write, NEW.zarr")
    add("--behavior", metavar="LIST", help="rows of these behaviors")
    add("--variant", metavar="LIST", help="rows of these variants: base, sys_pos, …")
    add("--label", metavar="LIST", help="rows of these labels")
    add("--split", metavar="LIST", help="rows of these splits: train, validation, test")
    add("--ids", metavar="LIST|FILE", help="rows of these ids, or of those in a file, one a line")
    add("--rows", metavar="LIST", help="rows by number, for example 0:100,205 (without 100)")
    add("--layers", metavar="LIST", help="layers by number, for example 3,5 or 0:12")
    add("--positions", metavar="LIST", help="of the store's positions")
    add("--sites", metavar="LIST", help="of the store's sites")
    add("--resume", action="store_true", help="continue an interrupted one")
    add("--overwrite", action="store_true", help="replace the store at NEW")
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Select, copy, print."""
    import numpy as np

    from actcache.cli.info import describe
    from actcache.store.copies.copy import subset
    from actcache.store.copies.selection import Selection

    rows = numbers(args.rows, "rows")
    selection = Selection(
        behaviors=_names(args.behavior),
        variants=_names(args.variant),
        labels=_names(args.label),
        splits=_names(args.split),
        ids=_ids(args.ids),
        rows=None if rows is None else np.array(rows, np.int64),
        layers=numbers(args.layers, "layers"),
        positions=_names(args.positions),
        sites=_names(args.sites),
    )
    with console.progress("subset", total=None, quiet=args.json) as on_rows:
        store = subset(
            args.store,
            args.output,
            selection=selection,
            resume=args.resume,
            overwrite=args.overwrite,
            on_rows=on_rows,
        )
    (console.print_json if args.json else console.print_facts)(describe(store))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def _ids(text: str | None) -> list[str] | None:
    if text is not None and Path(text).is_file():
        return [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line]
    return _names(text)
