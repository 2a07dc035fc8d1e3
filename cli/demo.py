"""Run the whole job on the built-in model and behaviors: build, analyze, report. No network.

The model was trained by this project to answer questions about itself in the manner of
Model-Written Evaluations. It is a test bed for methods, not evidence about language models.
"""

import argparse
from pathlib import Path

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_output
from actcache.cli.terminal.threads import choose_threads, width_of

EXAMPLE = "actcache demo -o demo-out"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    folder = "demo-out"
    add_output(
        command, "DIR", f"folder to write (default: {folder})", required=False, default=folder
    )


def run(args: argparse.Namespace) -> None:
    """Build and analyze, as a user's script would, on what the package brings."""
    import actcache

    choose_threads(width_of(actcache.demo.model_path()))  # before torch is imported
    from actcache import analysis
    from actcache.cli.info import describe
    from actcache.cli.terminal.show import show_or_print

    folder = Path(args.output)
    bars = console.Bars(quiet=args.json)
    store = actcache.build_store(
        actcache.demo.row_files(),
        folder / "demo.zarr",
        model=actcache.demo.model_path(),
        dtype="float32",
        personas=actcache.demo.personas_path(),
        overwrite=True,
        progress=bars,
    )
    if not args.json:
        console.print_result(describe(store), as_json=False)
    out = folder / "results"
    results = analysis.analyze(store, out, controls=5, progress=bars, overwrite=True)
    show_or_print(results.summary, as_json=args.json, out=out)
    if not args.json:
        pictures = ", ".join(str(path) for path in sorted(out.glob("*.png")))
        console.say(f"pictures: {pictures}")
