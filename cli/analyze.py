"""Answer from a store: directions, discriminative layers, the exact sweep, steerability.

Writes OUT: directions.safetensors, moments.npz, sweep.zarr, steerability.npz, summary.json,
config.toml for --config, tables.md, report.html and pictures. A sweep in OUT that was run with the
same settings is reused; an interrupted one is resumed. Only the sweep, which the stages sweep and
predictors read, runs the model that the store was built with.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache import conventions
from actcache.analysis.config import CONCEPTS, PREDICTORS, SWEEP, AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.config_file import write_config
from actcache.cli.terminal.options import (
    add_dry_run,
    add_format,
    add_output,
    add_overwrite,
    add_settings,
    add_settings_of,
    add_workers,
    given_settings,
    given_workers,
    names,
    preset_help,
)
from actcache.cli.terminal.threads import choose_threads

EXAMPLE = "actcache analyze rows.zarr -o results --multipliers -1:1:0.5"

if TYPE_CHECKING:
    from actcache.store.store import Store


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("store", metavar="STORE", help="a store that build wrote")
    add_output(command, "OUT", "results folder (default: STORE's name + -results)", required=False)
    add_overwrite(command, "remove earlier results in OUT first")
    add_dry_run(command, "what the sweep costs")
    command.add_argument(
        "--no-check", action="store_true", help="read the store without its checksums"
    )
    add_format(command)
    headings = {
        CONCEPTS: "Directions at the token that attends to the marked span, in each layer.",
        SWEEP: "A preset sets what a published code does. A flag that is given wins.\n"
        f"{preset_help('sweep')}",
        PREDICTORS: "Which layer for which prompt (W2S), and which vector (L2S), with controls.",
    }
    groups = add_settings(
        command, AnalyzeConfig, headings, no_default=("preset", *conventions.SWEEP_FIELDS)
    )
    groups[SWEEP].add_argument("--model", help="where the store's model is now, if it was moved")
    add_settings_of(groups[SWEEP], BuildConfig, "device", "device_map", "trust_remote_code")
    groups[SWEEP].add_argument(
        "--sweep-store",
        metavar="PLACE",
        help="where the sweep's store lies, a folder or s3://BUCKET/NAME.zarr (default: where the "
        "results in OUT say, else OUT/sweep.zarr)",
    )
    add_workers(groups[""])


def run(args: argparse.Namespace) -> None:
    """Open the store, run the stages with the settings of the command line, print."""
    from actcache.analysis.checks import check_analysis, steers
    from actcache.analysis.report_files import check_formats
    from actcache.store.store import open_store

    formats = names(args.format) or ()
    check_formats(formats)
    given_workers(args)
    store = open_store(args.store)
    out = Path(args.output or _results_of(store, args.store))
    config = config_of(args, preset=store.config.get("preset", conventions.NO_PRESET))
    if set(config.stages) - {"vectors", "layers", "concepts"} and store.kind == "residuals":
        choose_threads(store.d_model)
    check_analysis(store, config, device=args.device)
    if args.sweep_store and not steers(store, config):
        console.say("actcache: --sweep-store is ignored: no stage steers")
    if args.dry_run:
        console.print_result(dry_run(store, out, config, args), as_json=args.json)
        return
    _check_model(store, out, config, args)
    from actcache.analysis.pipeline import analyze
    from actcache.analysis.results_folder import CONFIG
    from actcache.cli.terminal.show import show_or_print  # imports rich

    results = analyze(
        store,
        out,
        config=config,
        model=partial(_load, store, args),
        progress=console.Bars(quiet=args.json),
        device=args.device,
        workers=args.workers,
        cluster=args.cluster,
        gpus_per_worker=args.gpus_per_worker,
        overwrite=args.overwrite,
        sweep_store=args.sweep_store,
        check=not args.no_check,
        formats=formats,
    )
    args.sweep_store = results.summary.sweep_store  # as the next run in OUT would find it
    write_config(out / CONFIG, args, config)
    show_or_print(results.summary, as_json=args.json, out=out)


def _results_of(store: "Store", path: str) -> str:
    """The folder for results: beside the store, or where we are if that is in a bucket."""
    place = path.rstrip("/") if isinstance(store.path, Path) else Path(store.path).name
    return f"{place.removesuffix('.zarr')}-results"


def dry_run(
    store: "Store", out: Path, config: AnalyzeConfig, args: argparse.Namespace
) -> dict[str, Any]:
    """Estimate what the analysis costs; nothing is written."""
    from actcache.analysis.predict.selections import learned_sets
    from actcache.analysis.results_folder import place_of_sweep
    from actcache.analysis.sweep.forecast import forecast_analysis
    from actcache.build.forecast import why_not_loaded

    name = args.model or str(store.provenance["model"].get("name"))
    return forecast_analysis(
        store,
        None if args.overwrite else place_of_sweep(out, args.sweep_store),  # else nothing is reused
        config=config,
        learned=() if store.kind != "residuals" else learned_sets(store, config),
        model=why_not_loaded(name, revision=store.config.get("revision"))
        or (lambda: _load(store, args)),
    )


def _check_model(
    store: "Store", out: Path, config: AnalyzeConfig, args: argparse.Namespace
) -> None:
    """Refuse a model that cannot be loaded, before anything is written or removed."""
    from actcache.analysis.checks import steers
    from actcache.analysis.results_folder import place_of_sweep
    from actcache.store.writing.partial import destination_of

    if steers(store, config) and (
        args.overwrite or not destination_of(place_of_sweep(out, args.sweep_store)).finished()
    ):
        from actcache.build.replay import require_replayable
        from actcache.engine.model import load_config

        require_replayable(store)
        name = args.model or store.provenance["model"]["name"]
        load_config(
            name,
            revision=store.config.get("revision"),
            trust_remote_code=args.trust_remote_code,
        )
        return
    for flag in ("model", "device_map", "trust_remote_code"):
        if getattr(args, flag):
            console.say(f"actcache: --{flag.replace('_', '-')} is ignored: no stage runs the model")


def _load(store: "Store", args: argparse.Namespace) -> Any:
    from actcache.build.replay import load_store_model

    return load_store_model(
        store,
        name=args.model,
        device=args.device,
        device_map=args.device_map,
        trust_remote_code=args.trust_remote_code,
    )


def config_of(args: argparse.Namespace, *, preset: str) -> AnalyzeConfig:
    """Merge the settings: given values win over the preset's, those over the defaults.

    `preset` is the store's, for command lines that name none.
    """
    given = given_settings(args, AnalyzeConfig)
    return AnalyzeConfig(**conventions.sweep_settings(args.preset or preset, given))
