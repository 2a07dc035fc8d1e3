"""Write the rows of several stores as one store, one after the other.

The stores must have the same model, tokenizer, template, prompt settings, positions, sites and
dtype, and no id may be in two of them. Splits stay as they are; prompts that are then in train and
in test are counted and reported.
"""

import argparse

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_new_store, note_ignored

EXAMPLE = "actcache merge tidy.zarr thrifty.zarr -o both.zarr"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument(
        "stores", nargs="+", metavar="STORE", help="two or more stores that build wrote"
    )
    add_new_store(command, "NEW")


def run(args: argparse.Namespace) -> None:
    """Compare, copy, print."""
    note_ignored(args)
    from actcache.cli.info import describe
    from actcache.store.copies.merge import merge

    with console.Bars(quiet=args.json).steps("merge", None) as on_rows:
        merged = merge(
            args.stores,
            args.output,
            resume=args.resume,
            overwrite=args.overwrite,
            on_rows=on_rows,
        )
    if merged.n_leaked:
        console.say(
            f"actcache: warning: {merged.n_leaked} test rows have a prompt that is in train of "
            "another store; splits were kept. Take them out with actcache subset, or build all "
            "rows at once."
        )
    facts = {**describe(merged.store), "leaked test rows": merged.n_leaked}
    console.print_result(facts, as_json=args.json)
