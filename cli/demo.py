"""Run the whole job on the built-in model and behaviors: build, analyze, report. No network.

The model was trained by this project to answer questions about itself in the manner of
Model-Written Evaluations. It is a test bed for methods, not evidence about language models.
"""

import argparse
from pathlib import Path

from actcache.cli import analyze, build, console
from actcache.cli.options import add_json, add_output
from actcache.cli.show import show_or_print

EXAMPLE = "actcache demo -o demo-out"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    folder = "demo-out"
    add_output(
        command, "DIR", f"folder to write (default: {folder})", required=False, default=folder
    )
    add_json(command)


def run(args: argparse.Namespace) -> None:
    """The same two commands as a user's, on what the package brings."""
    from actcache.demo import model_path, personas_path, row_files
    from actcache.store.store import open_store

    folder = Path(args.output)
    store, out = folder / "demo.zarr", folder / "results"
    build_args = [*map(str, row_files()), "--model", str(model_path()), "-o", str(store)]
    build_args += ["--dtype", "float32", "--personas", str(personas_path()), "--overwrite"]
    analyze_args = [str(store), "-o", str(out), "--overwrite", "--controls", "5"]
    if args.json:
        summary = analyze.run_analyze(
            open_store(_built(build_args)), out, _parsed(analyze, analyze_args)
        )
        show_or_print(summary, as_json=True, out=out)
        return
    for name, module, given in (("build", build, build_args), ("analyze", analyze, analyze_args)):
        shown = " ".join(given).replace(str(model_path().parent), "DEMO")
        console.err().rule(f"actcache {name}")
        console.err().print(f"actcache {name} {shown}", highlight=False, markup=False)
        module.run(_parsed(module, given))
    pictures = ", ".join(str(path) for path in sorted(out.glob("*.png")))
    console.err().print(f"pictures: {pictures}", highlight=False, soft_wrap=True)


def _parsed(module: object, given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]  # each command module has it
    return parser.parse_args(given)


def _built(given: list[str]) -> str:
    import contextlib
    import io

    args = _parsed(build, [*given, "--json"])
    with contextlib.redirect_stdout(io.StringIO()):  # one document alone goes to stdout
        build.run(args)
    return str(args.output)
