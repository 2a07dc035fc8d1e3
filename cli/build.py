"""Run a model once over prompts and keep the residuals of the decisive tokens in a store.

DATA are .jsonl, .json or .csv files, a Hugging Face data set saved to a folder, or the id of one on
the Hub; each file is a behavior. Its keys say what it holds: prompt, positive, negative; question,
answer_matching_behavior, answer_not_matching_behavior (MWE, CAA); positive and negative with prompt
and response each (steering-bench); prompt, label. Every row is checked before the model is loaded.
"""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from actcache import conventions as presets
from actcache.cli import console
from actcache.cli.options import add_device_options

DRY_RUN = (
    "print rows, tokens, passes, bytes and an estimate of the time, and write nothing; where the "
    "weights are on this machine and not over 16 GB it loads the model and times a batch"
)

if TYPE_CHECKING:
    from actcache.build.config import BuildConfig


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("data", nargs="+", metavar="DATA", help="rows: files, a data set folder, or a Hub id")
    add("-o", "--output", required=True, metavar="STORE", help="the store to write, STORE.zarr")
    group = command.add_argument_group("model")
    add = group.add_argument
    add("--model", required=True, help="Hub id or local folder")
    add("--revision", help="branch, tag or commit on the Hub")
    add("--dtype", default="auto", help="compute in float32, bfloat16, float16; auto: checkpoint's")
    add(
        "--engine",
        default="torch",
        choices=("torch", "transformer-lens"),
        help="default %(default)s",
    )
    add_device_options(group)
    group = command.add_argument_group(
        "prompts",
        "A preset sets what a published code does, and rows must hold what that code takes for\n"
        f"granted. A flag that is given wins.\n{presets.described('build')}",
    )
    add = group.add_argument
    add("--preset", default=presets.NONE, choices=presets.NAMES, help="default %(default)s")
    add("--system", help="system message of the rows that bring none; '' for none (default)")
    add("--template", default="auto", metavar="auto|none|FILE", help="chat template")
    add(
        "--space",
        choices=("one", "add", "none", "strip"),
        help="between prompt and completion: exactly one space (default); one more than it brings; "
        "none; one, with both stripped",
    )
    add(
        "--bos",
        choices=("auto", "0", "1", "2", "tokenizer"),
        help="BOS tokens at the start: one if template or tokenizer put any (default: auto); as "
        "many as given; or what the tokenizer makes of the rendered text",
    )
    add("--separator", help="between persona sentence and prompt (default: a blank line)")
    add(
        "--variants",
        default="base",
        metavar="LIST",
        help="of base,sys_pos,sys_neg,user_pos,user_neg (default %(default)s)",
    )
    add("--personas", metavar="FILE", help="JSON of the persona sentences that variants need")
    add("--limit", type=int, metavar="N", help="the first N rows of each file")
    group = command.add_argument_group("what is kept")
    add = group.add_argument
    add(
        "--positions",
        default="prompt,fork,positive,negative",
        metavar="LIST",
        help="tokens to read (default %(default)s; of labelled prompts: prompt); also mean, over "
        "the prompt's tokens; template:K, its last K, the same in all; last:K, the same or not",
    )
    add(
        "--sites",
        default="resid_post",
        metavar="LIST",
        help="of resid_post,embed,resid_mid,attn_out,mlp_out,heads; attention: its mass on the "
        'part of the prompt that a row marks under "span"',
    )
    add(
        "--answer",
        choices=("first", "last"),
        help="answer token of a completion: the first that differs (default), or its last",
    )
    add("--store-dtype", default="auto", help="keep float32, bfloat16, float16; auto: the model's")
    add("--seed", type=int, default=0, help="of splits and certificate (default %(default)s)")
    group = command.add_argument_group("how it runs")
    add = group.add_argument
    add("--skip-bad-rows", action="store_true", help="leave out and list rows of no use")
    add("--resume", action="store_true", help="go on with an interrupted build")
    add(
        "--reuse",
        action="append",
        default=[],
        metavar="OLD",
        help="a store of the same model: copy its rows of equal tokens; may be given again",
    )
    add("--overwrite", action="store_true", help="replace a store that lies at STORE")
    add("--dry-run", action="store_true", help=DRY_RUN)
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Check the rows, build the store, and print what it holds."""
    from actcache.build import forecast_build, plan_store, run_build
    from actcache.cli.info import describe

    plan = plan_store(
        args.data,
        config_of(args),
        limit=args.limit,
        personas=args.personas,
        reuse=args.reuse,
    )
    for note in plan.notes:
        console.err().print(f"actcache: {note}", highlight=False, markup=False, soft_wrap=True)
    if args.dry_run:
        _print(forecast_build(plan, args.output), as_json=args.json)
        return
    store = run_build(
        plan,
        args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        reuse=args.reuse,
        progress=console.Bars(quiet=args.json),
    )
    _print(describe(store), as_json=args.json)


def config_of(args: argparse.Namespace) -> "BuildConfig":
    """The settings: what was given, then what the preset sets, then the defaults."""
    from actcache.build.config import BuildConfig

    lists = ("variants", "positions", "sites")
    given: dict[str, Any] = {
        field.name: tuple(getattr(args, field.name).split(","))
        if field.name in lists
        else getattr(args, field.name)
        for field in fields(BuildConfig)
    }
    return BuildConfig(**presets.build_settings(args.preset, given))


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(facts)
    else:
        console.print_facts({name: x for name, x in facts.items() if x is not None})
