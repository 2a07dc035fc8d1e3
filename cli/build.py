"""Run a model once over prompts and store the residuals of the decisive tokens.

DATA are .jsonl, .json, .csv or .tsv files (also as .gz), .parquet files, a Hugging Face data set
saved to a folder, the id of one on the Hub, or - for JSON on stdin; each file is a behavior. The
format is recognized by its keys: prompt, positive, negative; question, answer_matching_behavior,
answer_not_matching_behavior (MWE, CAA); positive and negative with prompt and response each
(steering-bench); prompt, label; prompt alone. OpenAI's messages may stand for prompt; other keys
become columns of the store. Every row is checked before the model is loaded. The settings are
written to STORE.toml, for --config.
"""

import argparse
from functools import partial
from pathlib import Path

from actcache import conventions
from actcache.build.config import KEPT, MODEL, PROMPTS, RUN, BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.config_file import write_config
from actcache.cli.terminal.options import (
    add_dry_run,
    add_new_store,
    add_settings,
    add_workers,
    given_settings,
    given_workers,
    key_map,
    note_ignored,
    preset_help,
)
from actcache.cli.terminal.threads import choose_threads, width_of

EXAMPLE = "actcache build rows/*.jsonl --model gpt2 --preset caa -o rows.zarr"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("data", nargs="+", metavar="DATA", help="rows: files, a data set folder, or a Hub id")
    add_new_store(command, "STORE")
    add_dry_run(command, "rows, tokens, passes, bytes")
    about_presets = (
        "A preset sets what a published code does, and rows must fulfil what that code\n"
        f"takes for granted. A flag that is given wins.\n{preset_help('build')}"
    )
    headings = {MODEL: None, PROMPTS: about_presets, KEPT: None, RUN: None}
    groups = add_settings(command, BuildConfig, headings, no_default=conventions.BUILD_FIELDS)
    add = groups[PROMPTS].add_argument
    add("--personas", metavar="FILE", help="JSON of the persona sentences that variants need")
    add("--limit", type=int, metavar="N", help="only the first N rows of each file")
    add("--split", metavar="NAME", help="of data sets with splits, which to read (default: train)")
    add(
        "--map",
        metavar="NAME=KEY,…",
        help="read the key KEY of each row as NAME, for example prompt=question",
    )
    groups[RUN].add_argument(
        "--reuse",
        action="append",
        default=[],
        metavar="OLD",
        help="a store of the same model: copy its rows of equal tokens; may be given again",
    )
    add_workers(groups[RUN])


def run(args: argparse.Namespace) -> None:
    """Check the rows, build the store, and print what it holds."""
    config = config_of(args)  # before torch is imported
    workers = given_workers(args)
    note_ignored(args)
    if not args.dry_run:
        from actcache.build.place import require_place  # imports numpy

        require_place(args.output, resume=args.resume, overwrite=args.overwrite)
    choose_threads(width_of(config.model))
    from actcache.build import forecast_build, plan_store, run_build, run_with_workers
    from actcache.cli.info import describe

    plan = plan_store(
        args.data,
        config,
        limit=args.limit,
        split=args.split,
        map=key_map(args.map),
        personas=args.personas,
        reuse=args.reuse,
    )
    for note in plan.notes:
        console.say(f"actcache: {note}")
    if args.dry_run:
        console.print_result(forecast_build(plan, args.output), as_json=args.json)
        return
    run = run_build if workers is None else partial(run_with_workers, workers=workers)
    store = run(
        plan,
        args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        reuse=args.reuse,
        progress=console.Bars(quiet=args.json),
    )
    if isinstance(store.path, Path):
        write_config(Path(f"{store.path}.toml"), args, config)
    else:
        console.say(f"actcache: settings are not written beside '{store.path}': it records them")
    console.print_result(describe(store), as_json=args.json)


def config_of(args: argparse.Namespace) -> BuildConfig:
    """Merge the settings: given values win over the preset's, those over the defaults."""
    given = given_settings(args, BuildConfig)
    return BuildConfig(**conventions.build_settings(args.preset, given))
