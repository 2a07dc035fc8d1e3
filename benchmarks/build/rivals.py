"""How much faster than other tools, and are the numbers the same? Build and sweep, in turns.

Build, two jobs: `pairs` (the answer token of both completions) and `prompts` (the last token of
each prompt), all layers, float32. Each rival gets the same texts in batches of `--batch`, in the
order of the data, as its users call it, or with `--sorted` by length, which none does by itself.
Ours runs the same tokens, in memory and as a whole build into a store on disk. `benchmarks.build.rival_tools`
lists what else each one does. All results are compared with ours before anything is timed.

Sweep: steering-bench's loop with steering-vectors (batch size 1, both completions, each layer and
multiplier) is timed on a sample of cells and scaled up; its propensities are compared with ours.

`make bench-rivals` installs the rivals into an environment of its own and runs this. nnsight and
lmprobe install cleanly (dependency group `benchmarks`); steering-vectors asks for transformers < 5
and is installed without its dependencies, which are already installed, since 0.12.2 works with
5.23. What is not installed is left out and named.
"""

import argparse
import gc
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.data.formats import read_samples
from actcache.engine.model import load_model, load_tokenizer
from actcache.engine.steered_scores import SteeringRule
from benchmarks.build.rival_tools import (
    DOES,
    MAKERS,
    PACKAGES,
    Job,
    Run,
    constant_part,
    missing,
    steered_alone,
)
from benchmarks.engine.sweep import MULTIPLIERS, sweep
from benchmarks.support.models import saved_gpt2, saved_rows
from benchmarks.support.profiles import profile
from benchmarks.support.turns import arguments, in_turns, ratio, report

ACTCACHE = ("actcache, in memory", "actcache, store on disk")
POST_NORM = "transformers"
"""Its last layer is after the final norm, so only the layers below are compared."""

BOUND = 1e-4
"""Largest relative error of a correct tool; measured errors are about 1e-6 in float32."""

VOCAB = 8192
"""Words of the random model; fewer than GPT-2's 50257, in favour of tools that compute logits."""


def read_jobs(args: argparse.Namespace, folder: Path) -> dict[str, Job]:
    """Make the jobs by name, on a random GPT-2 or on the given model and rows.

    The rivals take text: rows whose decoded text does not tokenize to the same ids are left out.
    """
    model_folder, data, template = args.model, args.data, "auto"
    if model_folder is None:
        shape = {"layers": 3, "d_model": 64, "heads": 4} if args.quick else dict(args.shape)
        model_folder = saved_gpt2(folder / "model", vocab=256 if args.quick else VOCAB, **shape)
        tokens, vocab = (16, 256) if args.quick else (args.tokens, VOCAB)
        data = [saved_rows(folder / "rows.jsonl", args.n, tokens=tokens, vocab=vocab)]
        template = "none"
    model = load_model(model_folder, dtype="float32", device="cpu")
    tokenizer = load_tokenizer(model_folder)
    config = BuildConfig(
        model=model_folder,
        dtype="float32",
        device="cpu",
        template=template,
        batch_tokens=args.batch_tokens,
    )
    # Twice as many of each file as are needed, to make up for those that are left out.
    samples = read_samples(data, limit=2 * args.n)
    jobs = {}
    for name, positions in (("pairs", ("positive", "negative")), ("prompts", ("prompt",))):
        plan = plan_build(samples, replace(config, positions=positions))
        sides = [
            [row.chain + row.positive[:1] for row in plan.rendered],
            [row.chain + row.negative[:1] for row in plan.rendered],
        ]
        tokens_of = sides if name == "pairs" else [[row.prompt for row in plan.rendered]]
        texts_of = [[tokenizer.decode(ids) for ids in side] for side in tokens_of]
        same = [
            i
            for i in range(plan.n)
            if all(
                tuple(tokenizer(texts[i])["input_ids"]) == ids[i]
                for texts, ids in zip(texts_of, tokens_of, strict=True)
            )
        ]
        if len(same) < min(args.n, plan.n):
            Console(stderr=True).print(
                f"{name}: {plan.n - len(same)} rows do not survive decoding to text and are left out"
            )
        chosen = same[: args.n]
        if args.sorted:
            chosen = sorted(chosen, key=lambda i: -len(tokens_of[0][i]))
        plan = replace(
            plan,
            samples=[plan.samples[i] for i in chosen],
            rendered=[plan.rendered[i] for i in chosen],
        )
        jobs[name] = Job(
            model_folder,
            model,
            plan,
            [[texts[i] for i in chosen] for texts in texts_of],
            [[ids[i] for i in chosen] for ids in tokens_of],
            args.batch,
            args.batch_tokens,
        )
    return jobs


def largest_relative_error(residuals: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return `[layer]`: largest difference over the largest value of that row's residual.

    Both arrays are `[side, n, layer, d]`.
    """
    scale = np.abs(reference).max(-1)  # [side, n, layer]
    errors: np.ndarray = np.abs(residuals - reference).max(-1) / scale
    return np.asarray(errors.max((0, 1)))


def build_figures(
    name: str,
    job: Job,
    *,
    args: argparse.Namespace,
    makers: Mapping[str, Callable[[Job], Run]],
    folder: Path,
) -> dict[str, Any]:
    tools = [tool for tool in makers if name == "pairs" or tool != "steering-vectors"]
    runs: dict[str, Callable[[], Any]] = {tool: makers[tool](job) for tool in tools}
    reference = runs[ACTCACHE[0]]()
    figures: dict[str, Any] = {}
    for tool, run in runs.items():
        if tool in (ACTCACHE[0], "plain forwards"):
            continue
        errors = largest_relative_error(run(), reference)
        if tool == POST_NORM:
            figures[f"{name}: largest relative error, {tool}, last layer"] = float(errors[-1])
            errors = errors[:-1]
        figures[f"{name}: largest relative error, {tool}"] = float(errors.max())
        if not errors.max() <= BOUND:
            raise SystemExit(f"{tool} differs from ours by {errors}, expected at most {BOUND:g}.")
    once = f"{ACTCACHE[1]}: self-check and certificate"
    runs = {**runs, once: constant_part(job, folder / f"{name}.zarr")}
    gc.collect()
    gc.freeze()  # lmprobe collects garbage after each batch; exclude what the others imported
    took = in_turns(runs, repeats=args.repeats)
    gc.unfreeze()
    for tool in tools:
        if tool not in ACTCACHE:
            for form in ACTCACHE:
                figures[f"{name}: {tool} / {form}"] = ratio(took, tool, form)
    figures[f"{name}: {ACTCACHE[1]} / in memory"] = ratio(took, ACTCACHE[1], ACTCACHE[0])
    figures[f"{name}: of that the same for any number of rows, share"] = ratio(
        took, once, ACTCACHE[1]
    )
    figures[f"{name}: rows a second, in memory"] = job.plan.n / min(took[ACTCACHE[0]])
    if args.profile:
        for tool in ACTCACHE:
            figures |= profile(runs[tool], args.profile, name=f"{name}: {tool}")
    return figures


def sweep_figures(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    model, rows = job.model, list(job.plan.rendered)
    rule = SteeringRule(score="logprob")
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(model.n_layers, model.d_model, generator=generator)
    all_cells = list(itertools.product(range(len(rows)), range(model.n_layers), range(7)))
    rng = np.random.default_rng(0)
    cells = [
        all_cells[i]
        for i in rng.choice(len(all_cells), min(args.cells, len(all_cells)), replace=False)
    ]
    propensities: dict[str, np.ndarray] = {}

    def sweep_rows() -> None:
        propensities["fast"] = sweep(model, rows, directions, rule, args.batch_tokens)

    def loop() -> None:
        propensities["slow"] = np.array(
            [steered_alone(model, rows[i], directions[x], MULTIPLIERS[m], x) for i, x, m in cells]
        )

    took = in_turns({"ours": sweep_rows, "loop": loop}, repeats=args.repeats)
    fast = np.array([propensities["fast"][cell] for cell in cells])
    scale = len(all_cells) / len(cells)
    return {
        f"sweep: steering-vectors loop / ours (timed on {len(cells)} of {len(all_cells)} cells)": scale
        * ratio(took, "loop", "ours"),
        "sweep: largest absolute difference of propensity": float(
            np.abs(propensities["slow"] - fast).max()
        ),
        "sweep: largest effect": float(
            np.abs(propensities["fast"] - propensities["fast"][..., 3:4]).max()
        ),
        "sweep: the loop would take, s": scale * min(took["loop"]),
        "sweep: ours takes, s": min(took["ours"]),
    }


def main(
    argv: Sequence[str] | None = None, *, makers: Mapping[str, Callable[[Job], Run]] = MAKERS
) -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", help="folder; default: a random GPT-2 of 12 layers, d 768")
    add("--data", nargs="*", default=[], help="rows for --model")
    add("--n", type=int, default=64, help="rows (default 64)")
    add("--tokens", type=int, default=128, help="tokens of a prompt, about (default 128)")
    add("--batch", type=int, default=16, help="texts in a batch of the rivals (default 16)")
    # As many as a batch of the rivals holds of such prompts.
    add("--batch-tokens", type=int, default=2048, help="tokens in a batch of ours (default 2048)")
    add("--sorted", action="store_true", help="give the rivals the rows sorted by length")
    add("--cells", type=int, default=24, help="cells that the steering loop is timed on")
    add("--questions", default="pairs,prompts,sweep", help="default %(default)s")
    add("--profile", metavar="DIR", help="also write a trace of ours, and show where time goes")
    add("--quick", action="store_true", help="a tiny model and few rows: does it run at all?")
    args = parser.parse_args(argv)
    args.shape = {"layers": 12, "d_model": 768, "heads": 12}
    if args.quick:
        args.n, args.repeats, args.cells = min(args.n, 12), 1, 8
    torch.set_num_threads(args.threads)
    absent = [tool for tool in PACKAGES if missing(tool)]
    for tool in absent:
        Console(stderr=True).print(f"{tool} is not installed, so it is left out: make bench-rivals")
    installed = {tool: makers[tool] for tool in DOES if tool not in absent}
    questions = args.questions.split(",")
    with tempfile.TemporaryDirectory() as folder:
        jobs = read_jobs(args, Path(folder))
        figures: dict[str, Any] = {}
        for name in ("pairs", "prompts"):
            if name in questions:
                figures |= build_figures(
                    name, jobs[name], args=args, makers=installed, folder=Path(folder)
                )
        if "sweep" in questions and "steering-vectors" not in absent:
            figures |= sweep_figures(jobs["pairs"], args)
    job = jobs["pairs"]
    about = {
        "model": Path(job.folder).name if args.model else "random GPT-2, vocabulary of words",
        "rows": job.plan.n,
        "layers": job.model.n_layers,
        "d_model": job.model.d_model,
        "tokens of a pair, mean": float(np.mean([len(ids) for ids in job.tokens[0]])),
        "batch of the rivals": args.batch,
        "order": "sorted by length" if args.sorted else "as in the data",
        "repeats": args.repeats,
        "does": {tool: DOES[tool] for tool in installed},
        "not installed": absent,
    }
    report("rivals", figures, about=about)


if __name__ == "__main__":
    main()
