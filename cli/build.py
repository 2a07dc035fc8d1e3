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
from typing import TYPE_CHECKING, Any

from actcache import conventions as presets
from actcache.cli import console
from actcache.cli.options import add_device_options

NAMED = 10
"""How many rows that are left out are named on the terminal; the store lists all."""

DRY_RUN = (
    "print rows, tokens, passes, bytes and an estimate of the time, and write nothing; where the "
    "weights are on this machine and not over 16 GB it loads the model and times a batch"
)

if TYPE_CHECKING:
    from actcache.build.config import BuildConfig
    from actcache.build.plan import BuildPlan
    from actcache.prompts.checks import CheckSummary


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
    """Read, check, build, print."""
    from actcache.data.formats import read_samples
    from actcache.data.personas import expand_variants, load_personas
    from actcache.store.store import open_store

    config = config_of(args)
    for old in args.reuse:  # before a model is loaded
        open_store(old)
    samples = read_samples(args.data, limit=args.limit)
    samples = expand_variants(
        samples,
        config.variants,
        personas=load_personas(args.personas),
        separator=config.separator,
    )

    from actcache.build.plan import plan_build
    from actcache.build.run import run_build  # from here on torch is needed
    from actcache.store.partial import committed_bytes
    from actcache.store.storage.room import require_room

    plan = plan_build(samples, config)
    _say_left_out(plan.left_out)
    _say_conditions(plan.conditions, preset=config.preset)
    _say_leaks(plan)
    if args.dry_run:
        from actcache.build.forecast import estimate_build

        estimate = estimate_build(plan)
        facts = forecast(plan, args.output)
        facts |= {"estimated seconds": estimate.seconds, "estimate": estimate.basis}
        _print(facts, as_json=args.json)
        return
    n_bytes = forecast(plan, args.output)["bytes on disk"]
    require_room(args.output, n_bytes - committed_bytes(args.output))
    with console.progress("build", total=plan.n, quiet=args.json) as on_rows:
        store = run_build(
            plan,
            args.output,
            resume=args.resume,
            overwrite=args.overwrite,
            reuse=args.reuse,
            on_rows=on_rows,
        )
    from actcache.cli.info import describe

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


def forecast(plan: Any, output: str) -> dict[str, Any]:
    """What a build will cost: rows, tokens, passes, bytes on disk against what is free."""
    from actcache.engine.batching import plan_batches
    from actcache.engine.model import load_config

    shape = load_config(
        plan.config.model,
        revision=plan.config.revision,
        trust_remote_code=plan.config.trust_remote_code,
    )
    n_layers = shape.num_hidden_layers
    wanted = (plan.config.store_dtype, plan.config.dtype, str(shape.dtype).removeprefix("torch."))
    kept = next(dtype for dtype in wanted if dtype != "auto")
    d_model, n_heads = shape.hidden_size, shape.num_attention_heads
    of_heads = n_heads * (getattr(shape, "head_dim", None) or d_model // n_heads)
    n_each = 2 if kept in ("float16", "bfloat16") else 4
    widths = {"embed": d_model, "heads": n_layers * of_heads}
    widths["attention"] = n_layers * n_heads * 4 // n_each  # float32 whatever the others are
    values = sum(widths.get(site, n_layers * d_model) for site in plan.config.sites)
    n_bytes = plan.n * len(plan.positions) * values * n_each
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
    long = [row for row in left_out if "tokens" in row]
    if long:
        names = [f"{row['id']} ({row['tokens']} tokens)" for row in long]
        _say(
            f"left out, longer than the model's context of {long[0]['context']} tokens (never "
            f"cut): {len(long)} rows: {_some(names)}"
        )
    bad = [row for row in left_out if "tokens" not in row]
    if bad:
        names = [f"{row['id']} ({row['reason']})" for row in bad]
        _say(f"left out, of no use: {len(bad)} rows: {_some(names)}")


def _say_conditions(found: "CheckSummary", *, preset: str) -> None:
    for each in found.findings:
        _say(f"note: of {found.n} rows {each}")
    if preset != presets.NONE and found.n:
        wanted = presets.needs(preset)
        _say(f"preset {preset}: every row that is kept holds {', '.join(wanted)}")


def _say_leaks(plan: "BuildPlan") -> None:
    for behavior, found in plan.leaks.items():
        if found.kept:
            _say(
                f"warning: '{behavior}' brought its own splits, and {found.kept} of its "
                f"{found.n_test} test prompts are in train too. Leave the key split out, and equal "
                "prompts stay together."
            )
        elif found.plain:
            _say(
                f"note: '{behavior}' repeats prompts; a plain shuffle would have put {found.plain} "
                f"of its {found.n_test} test prompts in train too, these splits none"
            )


def _some(names: list[str]) -> str:
    more = f", … (all {len(names)} are in the store)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _say(text: str) -> None:
    console.err().print(f"actcache: {text}", highlight=False, markup=False, soft_wrap=True)


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(facts)
    else:
        console.print_facts({name: x for name, x in facts.items() if x is not None})
