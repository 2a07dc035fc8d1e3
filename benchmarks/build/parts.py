"""What share of a build's CPU time do the store and the checks take?

A whole build, in turns with each of its parts alone on the same rows: the passes (shards computed
and thrown away), the store (the same shards committed and the log sealed), the check before and the
certificate after. CPU seconds of the process, all threads: what waits for the disk is not in it.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from actcache import demo
from actcache.build.certify import certify, rows_of_certificate
from actcache.build.config import BuildConfig
from actcache.build.pipeline import plan_store
from actcache.build.plan import BuildPlan
from actcache.build.provenance import ModelFacts
from actcache.build.run import load_planned, plan_contents, run_build
from actcache.build.runs import Blocks, Runs
from actcache.engine.batching import Budget
from actcache.engine.model import LanguageModel
from actcache.engine.self_check import check_capture
from actcache.engine.tree_capture import capture
from actcache.store.schema import shard_rows
from actcache.store.store import open_store
from actcache.store.writing.writer import Writer
from benchmarks.support.models import saved_gpt2, saved_rows
from benchmarks.support.turns import arguments, in_turns, ratio, report

PARTS = ("passes", "store", "check", "certificate")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--rows", default="32,500", help="rows of each build, by commas (default 32,500)")
    add("--layers", type=int, default=12, help="of a random GPT-2 (default 12)")
    add("--d-model", type=int, default=256, help="its width (default 256)")
    add("--tokens", type=int, default=64, help="of its prompts, about (default 64)")
    add("--demo", action="store_true", help="the built-in model and rows instead")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in map(int, args.rows.split(",")):
            plan = plan_demo(n) if args.demo else plan_random(Path(folder), n, args)
            took = in_turns(
                variants(plan, Path(folder)), repeats=args.repeats, clock=time.process_time
            )
            for part in PARTS:
                figures[f"{part} / build, {n} rows"] = ratio(took, part, "build")
            figures[f"build, {n} rows, CPU seconds"] = sorted(took["build"])[args.repeats // 2]
    about = {
        name: getattr(args, name) for name in ("demo", "layers", "d_model", "tokens", "repeats")
    }
    report("parts of a build", figures, about=about)


def plan_demo(n: int) -> BuildPlan:
    """Plan the first rows of the demo."""
    config = BuildConfig(model=str(demo.model_path()))
    return plan_store(demo.row_files("tidy"), config, limit=n)


def plan_random(folder: Path, n: int, args: Any) -> BuildPlan:
    """Plan random pairs for a random model."""
    model, vocab = folder / "model", 1000
    if not model.exists():
        shape = {"layers": args.layers, "d_model": args.d_model, "heads": args.d_model // 32}
        saved_gpt2(model, **shape, vocab=vocab)
    rows = saved_rows(folder / f"{n}.jsonl", n, tokens=args.tokens, vocab=vocab)
    return plan_store(rows, BuildConfig(model=str(model)))


def variants(plan: BuildPlan, folder: Path) -> dict[str, Callable[[], object]]:
    """Make the whole build and its parts, on one loaded model."""
    model = load_planned(plan.config)
    facts = ModelFacts.of(model, plan.config.sites)
    contents, _ = plan_contents(plan, facts, reused_stores=[], shard_rows=None)
    fresh = (folder / f"{plan.n}-{i}.zarr" for i in count())  # removing stores is no part
    finished = run_build(plan, folder / f"{plan.n}-finished.zarr", model=model)
    certificate = finished.certificate
    shards = computed(plan, contents.arrays, model)
    alone = check_capture(model, plan.rendered, read=capture, **plan.reading).alone
    chosen = rows_of_certificate(plan.n, seed=plan.config.seed, checked=alone)
    sampled = {i: plan.rendered[i] for i in chosen}

    def build() -> None:
        run_build(plan, next(fresh), model=model)

    def write() -> None:
        path = next(fresh)
        with Writer.create(path, contents) as writer:
            for blocks in shards:
                writer.commit(blocks)
            writer.finish(certificate)
        open_store(path)

    return {
        "build": build,
        "passes": lambda: computed(plan, contents.arrays, model),
        "store": write,
        "check": lambda: check_capture(model, plan.rendered, read=capture, **plan.reading),
        "certificate": lambda: certify(finished, model, sampled, alone=alone, **plan.reading),
    }


def computed(plan: BuildPlan, arrays: Any, model: LanguageModel) -> list[Blocks]:
    """Compute every shard of a build."""
    a_shard, _ = shard_rows(arrays, plan.n)
    runs = Runs.of(plan, arrays, shard_rows=a_shard)

    def read_earlier(rows: Any) -> Any:
        raise ValueError(f"rows {rows} repeat rows of an earlier run, expected none that repeat")

    budget = Budget(plan.config.batch_tokens)
    return [
        blocks
        for number in range(len(runs))
        for _, blocks in runs[number].compute(
            model, read=capture, read_earlier=read_earlier, budget=budget
        )
    ]


if __name__ == "__main__":
    main()
