"""Run the whole job on the built-in model and behaviors: build, analyze, steer. No network.

The model was trained by this project to answer questions about itself in the manner of
Model-Written Evaluations. It is a test bed for methods, not evidence about language models.
"""

import argparse
from pathlib import Path

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_output
from actcache.cli.terminal.threads import choose_threads, width_of

EXAMPLE = "actcache demo -o demo-out"

STRENGTHS = (-1.5, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.5)
"""λ of the steered texts: the ends of the sweep's grid, and what is inside."""


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
    from actcache.analysis.files import plain
    from actcache.cli.info import describe
    from actcache.cli.terminal.show import show, show_texts

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
    if not args.json:
        show(results.summary)
    texts = analysis.generate_steered(
        out,
        folder / "texts",
        strength=STRENGTHS,
        max_new=8,  # an answer has three
        target="answer",
        overwrite=True,
        progress=bars,
    )
    if args.json:
        console.print_json({**plain(results.summary), "texts": plain(texts.summary)})
        return
    show_texts(texts)
    console.say(f"results: {out}, steered texts: {texts.path}; open report.html in either")
