"""Write the rows of several stores as one store, one after the other.

The stores must agree in model, tokenizer, template, rendering, positions, sites and dtype, and no
id may be in two of them. Splits stay as they are; prompts that are then both in train and in test
are counted and reported.
"""

import argparse

from actcache.cli import console


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("stores", nargs="+", metavar="STORE", help="two or more stores that build wrote")
    add("-o", "--output", required=True, metavar="NEW", help="the store to write, NEW.zarr")
    add("--resume", action="store_true", help="continue an interrupted one")
    add("--overwrite", action="store_true", help="replace the store at NEW")
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Compare, copy, print."""
    from actcache.cli.info import describe
    from actcache.store.copies.merge import merge

    with console.progress("merge", total=None, quiet=args.json) as on_rows:
        merged = merge(
            args.stores,
            args.output,
            resume=args.resume,
            overwrite=args.overwrite,
            on_rows=on_rows,
        )
    if merged.n_leaked:
        console.err().print(
            f"actcache: warning: {merged.n_leaked} test rows have a prompt that is in train of "
            "another store; splits were kept. Remove them with actcache subset, or build all "
            "rows at once.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    facts = {**describe(merged.store), "leaked test rows": merged.n_leaked}
    (console.print_json if args.json else console.print_facts)(facts)
