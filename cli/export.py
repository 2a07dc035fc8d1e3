"""Write a store, what analyze left, or a steering as a file of another format.

A store becomes hdf5 (plain numbers and text with named dimensions, for MATLAB, R and Julia), npz
(for small stores), safetensors, or an archive (compressed without loss, for any Zarr v3 reader). A
results folder becomes safetensors (its directions), gguf (one direction, as the control vector of
llama.cpp and repeng), hdf5 or npz (directions, steerability and propensities). A steering file
becomes gguf, easysteer (a folder for EasySteer in vLLM) or safetensors; what a format cannot say is
refused. A file gets its name once it is complete. import turns hdf5 and archives into the same
store again.
"""

import argparse
from pathlib import Path

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_output, add_overwrite, names

EXAMPLE = "actcache export results --to gguf --directions tidy -o tidy.gguf"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add(
        "source",
        metavar="STORE|OUT|GEN|FILE",
        help="a store, what analyze left, or a steering file; of what "
        "steer left, the chosen steering",
    )
    add(
        "--to",
        required=True,
        choices=("hdf5", "npz", "safetensors", "gguf", "easysteer", "archive"),
        help="the format",
    )
    add_output(command, "FILE", "the file to write")
    add(
        "--as",
        dest="values",
        default="float32",
        choices=("float32", "bits"),
        help="bfloat16 in hdf5 and npz: as float32 (exact), or its bits as uint16 (default "
        "%(default)s)",
    )
    add(
        "--directions",
        metavar="LIST",
        help="of results: behaviors, or names of directions, for example "
        "narcissism/difference_of_means",
    )
    add_overwrite(command, "replace the file at FILE, if there is one")


def _source(path: str) -> str:
    """Of what steer left, the file of the steering that was chosen."""
    from actcache.analysis.generation.folder import Generations, is_generations

    folder = Path(path)
    return str(Generations(folder).steering_path) if is_generations(folder) else path


def run(args: argparse.Namespace) -> None:
    """Export, and print what was written."""
    from actcache.exchange import export

    facts = export(
        _source(args.source),
        args.output,
        to=args.to,
        values=args.values,
        directions=names(args.directions or None),
        overwrite=args.overwrite,
        progress=console.Bars(quiet=args.json),
    )
    if args.json:
        console.print_json(facts)
    else:
        console.print_facts(
            {k: ", ".join(v) if isinstance(v, list) else v for k, v in facts.items()}
        )
