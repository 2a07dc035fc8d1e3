"""Run a model once over prompts and store the residuals of the decisive tokens.

DATA are .jsonl, .json or .csv files, a Hugging Face data set saved to a folder, or the id of one on
the Hub; each file is a behavior. The format is recognized by its keys: prompt, positive, negative;
question, answer_matching_behavior, answer_not_matching_behavior (MWE, CAA); positive and negative
with prompt and response each (steering-bench); prompt, label. Every row is checked before the model
is loaded.
"""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache import conventions
from actcache.build.config import KEPT, MODEL, PROMPTS, RUN, BuildConfig
from actcache.cli import console
from actcache.cli.options import (
    add_dry_run,
    add_json,
    add_new_store,
    add_settings,
    given_settings,
    preset_help,
)

EXAMPLE = "actcache build rows/*.jsonl --model gpt2 --preset caa -o rows.zarr"

NAMED = 10
"""How many rows that are left out are named on the terminal; the store lists all."""

if TYPE_CHECKING:
    from actcache.build.plan import BuildPlan
    from actcache.prompts.checks import CheckSummary


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("data", nargs="+", metavar="DATA", help="rows: files, a data set folder, or a Hub id")
    add_new_store(command, "STORE")
    add_dry_run(command, "rows, tokens, passes, bytes")
    add_json(command)
    about = {
        PROMPTS: "A preset sets what a published code does, and rows must fulfil what that code\n"
        f"takes for granted. A flag that is given wins.\n{preset_help('build')}",
    }
    groups = add_settings(
        command,
        BuildConfig,
        order=(MODEL, PROMPTS, KEPT, RUN),
        about=about,
        no_default=conventions.BUILD_FIELDS,
    )
    add = groups[PROMPTS].add_argument
    add("--personas", metavar="FILE", help="JSON of the persona sentences that variants need")
    add("--limit", type=int, metavar="N", help="only the first N rows of each file")
    groups[RUN].add_argument(
        "--reuse",
        action="append",
        default=[],
        metavar="OLD",
        help="a store of the same model: copy its rows of equal tokens; may be given again",
    )


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
        console.print_result(facts, as_json=args.json)
        return
    n_bytes = forecast(plan, args.output)["bytes on disk"]
    require_room(args.output, n_bytes - committed_bytes(args.output))
    with console.Bars(quiet=args.json).steps("build", plan.n) as on_rows:
        store = run_build(
            plan,
            args.output,
            resume=args.resume,
            overwrite=args.overwrite,
            reuse=args.reuse,
            on_rows=on_rows,
        )
    from actcache.cli.info import describe

    console.print_result(describe(store), as_json=args.json)


def config_of(args: argparse.Namespace) -> BuildConfig:
    """Merge the settings: given values win over the preset's, those over the defaults."""
    given = given_settings(args, BuildConfig)
    return BuildConfig(**conventions.build_settings(args.preset, given))


def forecast(plan: Any, output: str) -> dict[str, Any]:
    """What a build will cost: rows, tokens, passes, bytes on disk against what is free."""
    from actcache.engine.batches import plan_batches
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
    if preset != conventions.NO_PRESET and found.n:
        wanted = conventions.conditions_of(preset)
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
    console.say(f"actcache: {text}")
