"""Run a model once over prompts and keep the residuals of the decisive tokens in a store.

DATA are .jsonl, .json or .csv files, a Hugging Face data set saved to a folder, or the id of one on
the Hub; each file is a behavior. Its keys say what it holds: prompt, positive, negative; question,
answer_matching_behavior, answer_not_matching_behavior (MWE, CAA); positive and negative with prompt
and response each (steering-bench); prompt, label. Every row is checked before the model is loaded.
"""

import argparse
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from actcache.cli import console


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
    add("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    add("--batch-tokens", type=int, default=8192, help="tokens in a pass (default %(default)s)")
    group = command.add_argument_group("prompts")
    add = group.add_argument
    add("--system", help="system message of the rows that bring none")
    add("--template", default="auto", metavar="auto|none|FILE", help="chat template")
    add(
        "--space",
        default="one",
        choices=("one", "add", "none"),
        help="between prompt and completion: exactly one space; one more than it brings; none",
    )
    add("--bos", default="auto", choices=("auto", "0", "1", "2"), help="BOS tokens at the start")
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
        help="tokens to read (default %(default)s; of labelled prompts: prompt)",
    )
    add("--sites", default="resid_post", metavar="LIST", help="of resid_post,embed")
    add(
        "--answer",
        default="first",
        choices=("first", "last"),
        help="answer token of a completion: the first that differs, or its last",
    )
    add("--store-dtype", default="auto", help="keep float32, bfloat16, float16; auto: the model's")
    add("--seed", type=int, default=0, help="of splits and certificate (default %(default)s)")
    group = command.add_argument_group("how it runs")
    add = group.add_argument
    add("--resume", action="store_true", help="go on with an interrupted build")
    add("--overwrite", action="store_true", help="replace a store that lies at STORE")
    add("--dry-run", action="store_true", help="print rows, tokens, passes and bytes; run nothing")
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Read, check, build, print."""
    from actcache.config import BuildConfig
    from actcache.rows import read_samples
    from actcache.variants import expand_variants, load_personas

    lists = ("variants", "positions", "sites")
    given: dict[str, Any] = {
        field.name: tuple(getattr(args, field.name).split(","))
        if field.name in lists
        else getattr(args, field.name)
        for field in fields(BuildConfig)
    }
    config = BuildConfig(**given)
    samples = read_samples(args.data, limit=args.limit)
    samples = expand_variants(samples, config.variants, personas=load_personas(args.personas))

    from actcache.build import plan_build, run_build  # from here on torch is needed

    plan = plan_build(samples, config)
    _say_left_out(plan.left_out)
    if args.dry_run:
        _print(forecast(plan, args.output), as_json=args.json)
        return
    with console.progress("build", total=plan.n, quiet=args.json) as on_rows:
        store = run_build(
            plan, args.output, resume=args.resume, overwrite=args.overwrite, on_rows=on_rows
        )
    from actcache.cli.info import describe

    _print(describe(store), as_json=args.json)


def forecast(plan: Any, output: str) -> dict[str, Any]:
    """What a build will cost: rows, tokens, passes, bytes on disk against what is free."""
    from actcache.batches import plan_batches
    from actcache.model import load_config

    shape = load_config(plan.config.model, revision=plan.config.revision)
    n_layers = shape.num_hidden_layers
    wanted = (plan.config.store_dtype, plan.config.dtype, str(shape.dtype).removeprefix("torch."))
    kept = next(dtype for dtype in wanted if dtype != "auto")
    values = sum(1 if site == "embed" else n_layers for site in plan.config.sites)
    n_bytes = plan.n * len(plan.positions) * values * shape.hidden_size
    n_bytes *= 2 if kept in ("float16", "bfloat16") else 4
    folder = Path(output).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return {
        "rows": plan.n,
        "left out": len(plan.left_out),
        "tokens": plan.tokens,
        "passes": len(plan_batches(plan.costs, budget=plan.config.batch_tokens)),
        "token-layers": plan.tokens * n_layers,
        "bytes on disk": n_bytes,
        "bytes free": shutil.disk_usage(folder).free,
    }


def _say_left_out(left_out: Any) -> None:
    if not left_out:
        return
    names = ", ".join(f"{row['id']} ({row['tokens']} tokens)" for row in left_out)
    console.err().print(
        f"actcache: left out, longer than the model's context of {left_out[0]['context']} tokens "
        f"(never cut): {len(left_out)} rows: {names}",
        highlight=False,
        markup=False,
    )


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(facts)
    else:
        console.print_facts(facts)
