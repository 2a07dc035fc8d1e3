"""Turn an HDF5 file, or an archive, into a store.

What export wrote becomes the store that it was, and is refused if it was changed since. Any other
HDF5 file with datasets such as resid_post/prompt [n, layer, d_model] of float32 or float16 (in
MATLAB's order: d_model, layer, n), and columns of n texts or numbers beside them (id, behavior,
label, split, prompt), becomes a store of an unknown model: the stages vectors and layers run on it,
the sweep does not.
"""

import argparse

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_new_store, note_ignored

EXAMPLE = "actcache import rows.h5 -o rows.zarr"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument(
        "source", metavar="FILE", help="an HDF5 file, or an archive that export wrote"
    )
    add_new_store(command, "STORE")


def run(args: argparse.Namespace) -> None:
    """Import, and print what the store holds."""
    note_ignored(args)
    from actcache.cli.info import describe
    from actcache.exchange import import_store

    store = import_store(
        args.source,
        args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=console.Bars(quiet=args.json),
    )
    console.print_result(describe(store), as_json=args.json)
