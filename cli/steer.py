"""Write texts under a grid of steerings in one batch, and choose a strength that keeps them whole.

OUT is what analyze left: its directions steer the store's validation and test rows, or the rows
and prompts that are given. FILE is one steering that was saved. Each method runs at several
strengths, beside the unsteered model and random vectors. The strength is chosen on validation rows
and tested once on test rows: the largest effect whose texts the unsteered model does not find much
less likely, and that keep their form.

Writes GEN: generations.jsonl (a line a text), configurations.json, summary.json, tables.md,
curve.png, config.toml for --config, and steering.safetensors, the chosen steering, for chat, export
and other prompts.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from actcache.analysis.generation.config import CHOICE, JUDGE, STEERING, TEXTS, SteerConfig
from actcache.cli.chat import add_model_options
from actcache.cli.terminal import console
from actcache.cli.terminal.config_file import write_config
from actcache.cli.terminal.options import (
    add_dry_run,
    add_output,
    add_overwrite,
    add_settings,
    given_settings,
)

EXAMPLE = "actcache steer results -o texts --behavior tidy --method caa,random --strength -1:1:0.25"

MODEL = "model"

if TYPE_CHECKING:
    from actcache.analysis.generation.run.plan import GenerationPlan


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("source", metavar="OUT|FILE", help="what analyze left, or a steering")
    add_output(command, "GEN", "folder to write")
    command.add_argument("--resume", action="store_true", help="resume an interrupted run")
    add_overwrite(command, "remove earlier texts in GEN first")
    add_dry_run(command, "rows × configurations × tokens")
    command.add_argument(
        "--save", metavar="FILE", help="save the chosen steering there as well, as safetensors"
    )
    headings = {
        STEERING: None,
        TEXTS: None,
        CHOICE: "On validation rows a strength is chosen, on test rows it is tested once.",
        JUDGE: "Its key is read from OPENAI_API_KEY; the cost is shown first, and each text is "
        "paid for once.",
    }
    groups = add_settings(command, SteerConfig, headings)
    add = groups[TEXTS].add_argument
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="ROWS",
        help="files of rows whose prompts are continued (default: the validation and test rows of "
        "OUT's store)",
    )
    add("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be repeated")
    model = command.add_argument_group(MODEL)
    model.add_argument("--store", help="where OUT's store is now, if it was moved")
    add_model_options(model)


def run(args: argparse.Namespace) -> None:
    """Plan, generate, choose, print."""
    from actcache.analysis.generation.run.stage import forecast_generation, run_plan

    config = SteerConfig(**given_settings(args, SteerConfig))
    plan = plan_of(args, config)
    if args.dry_run:
        console.print_result(forecast_generation(plan), as_json=args.json)
        return
    texts = run_plan(
        plan,
        Path(args.output),
        resume=args.resume,
        overwrite=args.overwrite,
        save=args.save,
        progress=console.Bars(quiet=args.json),
    )
    write_config(Path(args.output) / "config.toml", args, config)
    from actcache.cli.terminal.show import show_texts

    if args.json:
        from actcache.analysis.files import plain

        console.print_json(plain(texts.summary))
    else:
        show_texts(texts)


def plan_of(args: argparse.Namespace, config: SteerConfig) -> "GenerationPlan":
    """Check everything that needs no weights."""
    from actcache.analysis.generation.run.source_plan import plan_generation

    return plan_generation(
        args.source,
        config,
        data=args.data,
        prompts=args.prompt,
        store=args.store,
        model=args.model,
        template=args.template,
        system=args.system,
        dtype=args.dtype,
        device=args.device,
        device_map=args.device_map,
        trust_remote_code=args.trust_remote_code,
    )
