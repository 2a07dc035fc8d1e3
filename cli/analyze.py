"""Answer from a store: directions, discriminative layers, the exact sweep, steerability.

Writes OUT: directions.safetensors, moments.npz, sweep.zarr, steerability.npz, summary.json and
pictures. A sweep in OUT that was run with the same settings is reused; an interrupted one is
resumed. Only the stage sweep runs the model that the store was built with; the others read the
store.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from actcache import conventions
from actcache.analysis.config import PREDICTORS, SWEEP, AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli import console
from actcache.cli.options import (
    add_dry_run,
    add_json,
    add_output,
    add_overwrite,
    add_settings,
    add_settings_of,
    given_settings,
    preset_help,
)

EXAMPLE = "actcache analyze rows.zarr -o results --multipliers -1:1:0.5"

if TYPE_CHECKING:
    from actcache.store.store import Store


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("store", metavar="STORE", help="a store that build wrote")
    add_output(command, "OUT", "results folder (default: STORE's name + -results)", required=False)
    add_overwrite(command, "remove earlier results in OUT first")
    add_dry_run(command, "what the sweep costs")
    add_json(command)
    about = {
        SWEEP: "A preset sets what a published code does. A flag that is given wins.\n"
        f"{preset_help('sweep')}",
        PREDICTORS: "Which layer for which prompt (W2S), and which vector (L2S), with controls.",
    }
    groups = add_settings(
        command,
        AnalyzeConfig,
        order=(SWEEP, PREDICTORS),
        about=about,
        no_default=("preset", *conventions.SWEEP_FIELDS),
    )
    groups[SWEEP].add_argument("--model", help="where the store's model is now, if it was moved")
    add_settings_of(groups[SWEEP], BuildConfig, "device", "device_map", "trust_remote_code")


def run(args: argparse.Namespace) -> None:
    """Open the store, analyze, print."""
    from actcache.store.store import open_store

    store = open_store(args.store)
    out = Path(args.output or f"{args.store.rstrip('/').removesuffix('.zarr')}-results")
    if args.dry_run:
        console.print_result(dry_run(store, out, args), as_json=args.json)
    else:
        show_or_print(run_analyze(store, out, args), as_json=args.json, out=out)


def run_analyze(store: "Store", out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages with the settings of the command line."""
    from actcache.analysis.analyze import analyze
    from actcache.analysis.report.files import remove_results

    config = config_of(args, preset=store.config.get("preset", conventions.NO_PRESET))
    if args.overwrite:
        remove_results(out)
    return analyze(
        store,
        out,
        config=config,
        model=lambda: _load(store, args),
        progress=console.Bars(quiet=args.json),
        device=args.device,
    )


def dry_run(store: "Store", out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Estimate what the analysis costs; nothing is written."""
    from actcache.analysis.sweep.forecast import forecast_analysis
    from actcache.build.forecast import why_not_loaded

    name = args.model or str(store.provenance["model"].get("name"))
    # With --overwrite nothing is reused.
    path = None if args.overwrite else out / "sweep.zarr"
    return forecast_analysis(
        store,
        path,
        config=config_of(args, preset=store.config.get("preset", conventions.NO_PRESET)),
        model=why_not_loaded(name, revision=store.config.get("revision"))
        or (lambda: _load(store, args)),
    )


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

    Args:
        args: the command line.
        preset: the store's; used where the command line names none.
    """
    given = given_settings(args, AnalyzeConfig)
    return AnalyzeConfig(**conventions.sweep_settings(args.preset or preset, given))


def show_or_print(summary: dict[str, Any], *, as_json: bool, out: Path) -> None:
    """The summary as tables, or as one JSON document."""
    if as_json:
        console.print_json(summary)
    else:
        show(summary)
        console.err().print(f"results: {out}", highlight=False, soft_wrap=True)


def show(summary: dict[str, Any]) -> None:
    """The tables of a summary on stdout."""
    for said in summary.get("left_out", ()):
        console.out().print(f"left out: {said}", highlight=False, markup=False)
    if "layers" in summary:
        for name, scores in summary["layers"].items():
            _show_layers(name, scores)
    if "sweep" in summary:
        _show_sweep(summary["sweep"])
    if "predictors" in summary:
        _show_predictors(summary["predictors"])
    if not {"layers", "sweep", "predictors"} & set(summary) and "vectors" in summary:
        for name, vector in summary["vectors"].items():
            norms = ", ".join(f"{norm:.3g}" for norm in vector["norm"])
            console.out().print(f"{name}: norm of the direction by layer: {norms}")


def _show_sweep(sweep: dict[str, Any]) -> None:
    table = Table(title="Steerability on test samples: slope of propensity per unit multiplier")
    table.add_column("behavior", overflow="fold")
    for name in ("n", "layer", "fixed", "oracle", "cross-fitted gain", "steerable", "by letter"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("random direction", justify="right", no_wrap=True)
    for name, found in sweep["behaviors"].items():
        crossfit, control = found["crossfit"], found["control_at_fixed"]
        table.add_row(
            name,
            str(found["n"]),
            str(found["fixed_layer"]),
            _estimate(found["fixed"]),
            f"{found['oracle']['value']:.3g}",
            f"{crossfit['gain']['value']:+.2g}" if crossfit else "-",
            f"{found['fixed_share']:.0%}",
            " ".join(f"{x} {c['fixed_share']:.0%}" for x, c in found["by_letter"].items()) or "-",
            f"{_mean(control['slope']):.2g}, {_mean(control['share']):.0%}"
            if control["share"]
            else "-",
        )
    out = console.out()
    out.print(table)
    base = {name: found for name, found in sweep["behaviors"].items() if "@" not in name}
    for name, found in base.items():  # those of other framings are in summary.json
        words = f"{found['verdict']} {found['letter_warning']}".strip()
        out.print(f"{name}: {words}", highlight=False, markup=False)
    check = sweep["self_check"]
    out.print(
        f"self-check: cells against full passes differ by {check['naive_error']:.1e}; cells that "
        f"add nothing spread by {check['noise_floor']:.1e}",
        highlight=False,
    )


def _show_predictors(found: dict[str, Any]) -> None:
    from actcache.analysis.report.predictor_tables import short_table

    out = console.out()
    if "left_out" in found:
        out.print(f"predictors were left out: {found['left_out']}", highlight=False, markup=False)
        return
    made = short_table(found)
    table = Table(title=made.title)
    for i, column in enumerate(made.columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in made.rows:
        table.add_row(*row)
    out.print(table)
    out.print(made.note, highlight=False, markup=False)
    for sentence in found["words"]:
        out.print(sentence, highlight=False, markup=False)
    out.print("by behavior, variant and letter, training and encoders: tables.md", highlight=False)


def _show_layers(name: str, scores: dict[str, Any]) -> None:
    table = Table(
        title=f"{name}: held-out samples on one common direction (layer {scores['common_layer']})"
    )
    for column in ("layer", "mean +", "mean −", "discriminative", "in draws", "Fisher", "AUC"):
        table.add_column(column, justify="right")
    for layer, discriminative in enumerate(scores["discriminative"]):
        plus, minus = (scores["class_mean"][k][layer] for k in (0, 1))
        table.add_row(
            str(layer),
            f"{plus:.3g}",
            f"{minus:.3g}",
            "yes" if discriminative else "",
            f"{scores['discriminative_share'][layer]:.0%}",
            f"{scores['fisher'][layer]:.3g}",
            f"{scores['auc'][layer]:.3f}",
        )
    console.out().print(table)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _estimate(found: dict[str, float]) -> str:
    from actcache.analysis.stats.bootstrap import Interval

    return str(Interval(**found))
