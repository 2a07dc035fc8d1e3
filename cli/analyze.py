"""Answer from a store: directions, discriminative layers, the exact sweep, steerability.

Writes OUT: directions.safetensors, moments.npz, sweep.zarr, steerability.npz, summary.json and
pictures. A sweep that lies in OUT with the same settings is reused; an interrupted one goes on.
The stage sweep runs the model that the store was built with; the others need the store alone.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from actcache import conventions as presets
from actcache.cli import console
from actcache.cli.options import add_device_options, numbers

if TYPE_CHECKING:
    from actcache.analysis.config import AnalyzeConfig
    from actcache.store.store import Store


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("store", metavar="STORE", help="a store that build wrote")
    add("-o", "--output", metavar="OUT", help="results folder (default: STORE's name + -results)")
    add(
        "--stages",
        default="vectors,layers,sweep,predictors",
        metavar="LIST",
        help="some of %(default)s (all by default)",
    )
    add("--labels", metavar="POSITIVE,NEGATIVE", help="which labels, where there are more than two")
    add("--normalize", action="store_true", help="unit residuals for discriminative layers")
    add("--draws", type=int, default=1000, help="bootstrap draws (default %(default)s)")
    add("--seed", type=int, default=0, help="of controls and bootstrap (default %(default)s)")
    add("--overwrite", action="store_true", help="remove earlier results in OUT first")
    add(
        "--dry-run",
        action="store_true",
        help="print what the sweep costs and an estimate of its time, and write nothing; where the "
        "weights are on this machine and not over 16 GB it loads the model and times a batch",
    )
    add("--json", action="store_true", help="print one JSON document")
    group = command.add_argument_group(
        "sweep",
        "A preset sets what a published code does. A flag that is given wins.\n"
        f"{presets.described('sweep')}",
    )
    add = group.add_argument
    add("--preset", choices=presets.NAMES, help="default: the one that the store was built with")
    add(
        "--multipliers",
        metavar="START:STOP:STEP",
        help="factors on the directions; or a list (default -1.5:1.5:0.5)",
    )
    add(
        "--first-steered",
        choices=("fork", "prompt", "completion"),
        help="the last token that both completions share (default: fork); the last prompt token "
        "(repepo, CAA); the completion's first (steering-bench)",
    )
    add(
        "--score",
        choices=("letter", "logprob", "logit", "probability"),
        help="the letters' logits (default: letter); the completions' log-probabilities "
        "(steering-bench) or logits (repepo); the letter's probability (CAA)",
    )
    add("--layers", metavar="LIST", help="layers to steer, for example 3,5 or 0:12 (default: all)")
    add("--controls", type=int, default=1, help="sets of random directions (default %(default)s)")
    add("--model", help="where the store's model lies now, if it was moved")
    add_device_options(group)
    group = command.add_argument_group(
        "predictors",
        "Which layer for which prompt (W2S), and which vector (L2S), with controls.",
    )
    add = group.add_argument
    add("--vectors", default="caa,l2s", metavar="LIST", help="default %(default)s")
    add(
        "--encoders",
        default="cache",
        metavar="LIST",
        help="what prompts are told apart by: cache:LAYER, cache:mean:LAYER, hf:NAME_OR_FOLDER, "
        "openai:MODEL; the first is used, all are compared (default: cache, the middle layer)",
    )
    add("--base-url", metavar="URL", help="where an openai: encoder is asked; key: OPENAI_API_KEY")
    add("--embeddings", metavar="FILE", help="keeps what was paid for (default: a cache folder)")
    add("--top", default="1,2,3", metavar="LIST", help="K of label smoothing (default %(default)s)")
    add("--context-layers", metavar="LIST", help="layers that L2S reads (default: about 8)")
    add("--loss", default="paper", choices=("paper", "code"), help="of L2S (default %(default)s)")
    add("--seeds", type=int, default=5, help="trainings of a predictor (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Open the store, analyze, print."""
    from actcache.store.store import open_store

    store = open_store(args.store)
    out = Path(args.output or f"{args.store.rstrip('/').removesuffix('.zarr')}-results")
    if args.dry_run:
        facts = dry_run(store, out, args)
        if args.json:
            console.print_json(facts)
        else:
            console.print_facts({name: x for name, x in facts.items() if x is not None})
        return
    show_or_print(run_analyze(store, out, args), as_json=args.json, out=out)


def run_analyze(store: "Store", out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages as the command line says."""
    from actcache.analysis.analyze import analyze
    from actcache.analysis.report.files import remove_results

    config = config_of(args, preset=store.config.get("preset", presets.NONE))
    if args.overwrite:
        remove_results(out)

    def load() -> Any:
        return _load(store, args)

    return analyze(
        store,
        out,
        config=config,
        model=load,
        progress=console.Bars(quiet=args.json),
        device=args.device,
    )


def dry_run(store: "Store", out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the analysis would cost; nothing is written."""
    from actcache.analysis.sweep.forecast import forecast_analysis
    from actcache.build.forecast import why_not_loaded

    kept = store.provenance["model"].get("name")
    name = args.model or str(kept)
    # With --overwrite no row is done, whatever lies there.
    path = None if args.overwrite else out / "sweep.zarr"
    return forecast_analysis(
        store,
        path,
        config=config_of(args, preset=store.config.get("preset", presets.NONE)),
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


def config_of(args: argparse.Namespace, *, preset: str) -> "AnalyzeConfig":
    """The settings: what was given, then what the preset sets, then the defaults.

    Args:
        args: the command line.
        preset: the store's, where the command line has none.
    """
    from actcache.analysis.config import AnalyzeConfig, parse_multipliers

    given = {
        "first_steered": args.first_steered,
        "score": args.score,
        "multipliers": parse_multipliers(args.multipliers) if args.multipliers else None,
    }
    return AnalyzeConfig(
        stages=tuple(args.stages.split(",")),
        layers=numbers(args.layers, "layers"),
        labels=args.labels.split(",") if args.labels else None,
        normalize=args.normalize,
        controls=args.controls,
        draws=args.draws,
        batch_tokens=args.batch_tokens,
        vectors=tuple(args.vectors.split(",")),
        encoders=tuple(args.encoders.split(",")),
        base_url=args.base_url,
        embeddings=args.embeddings,
        top=tuple(numbers(args.top, "top") or ()),
        context_layers=numbers(args.context_layers, "context layers"),
        loss=args.loss,
        seeds=args.seeds,
        seed=args.seed,
        **presets.sweep_settings(args.preset or preset, given),
    )


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
