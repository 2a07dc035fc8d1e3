"""Answer from a store: directions, discriminative layers, the exact sweep, steerability.

Writes OUT: directions.safetensors, moments.npz, sweep.zarr, steerability.npz, summary.json and
pictures. A sweep that lies in OUT with the same settings is reused; an interrupted one goes on.
The stage sweep runs the model that the store was built with; the others need the store alone.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache import conventions as presets
from actcache.cli import console
from actcache.cli.options import add_device_options, numbers
from actcache.cli.show import show_or_print

if TYPE_CHECKING:
    from actcache.analysis.config import AnalyzeConfig
    from actcache.analysis.summary import Summary
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


def run_analyze(store: "Store", out: Path, args: argparse.Namespace) -> "Summary":
    """Run the stages as the command line says."""
    from actcache.analysis.analyze import analyze
    from actcache.analysis.results import remove_results

    config = config_of(args, preset=store.config.get("preset", presets.NONE))
    if args.overwrite:
        remove_results(out)
    results = analyze(
        store,
        out,
        config=config,
        model=lambda: _load(store, args),
        progress=console.Bars(quiet=args.json),
        device=args.device,
    )
    return results.summary


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
