"""What does a build cost beside the forward passes that nobody can avoid?

Ours reads all layers at prompt, fork and both answer tokens. The floors, in turns: two plain Hugging
Face forwards per row (prompt with either completion), with and without logits; one forward of the
prompts alone. With `--model` the whole build with its files is timed too.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from actcache.engine.batching import plan_batches
from actcache.engine.model import LanguageModel, load_model
from actcache.engine.tree_capture import capture, tokens_run
from actcache.prompts.render import Rendered
from benchmarks.support.models import plain_forwards, random_llama, random_rows
from benchmarks.support.profiles import profile
from benchmarks.support.turns import arguments, in_turns, ratio, report

POSITIONS = ("prompt", "fork", "positive", "negative")
LARGE: dict[str, Any] = {"layers": 12, "d_model": 512, "heads": 8, "mlp": 1408}
TINY: dict[str, Any] = {"layers": 2, "d_model": 32, "heads": 2, "mlp": 64}


def variants(
    model: LanguageModel, rows: Sequence[Rendered], *, budget: int
) -> dict[str, Callable[[], object]]:
    costs = [tokens_run(row, positions=POSITIONS, answer="first") for row in rows]

    def run_captures() -> None:
        for batch in plan_batches(costs, budget=budget):
            residuals = capture(
                model,
                [rows[i] for i in batch],
                positions=POSITIONS,
                answer="first",
                sites=("resid_post",),
            )
            residuals["resid_post"].cpu()

    both = [row.chain + row.positive for row in rows], [row.chain + row.negative for row in rows]
    prompts = [row.prompt for row in rows]

    def floor(
        sequences: Sequence[Sequence[tuple[int, ...]]], *, logits: bool
    ) -> Callable[[], None]:
        def run() -> None:
            for side in sequences:
                plain_forwards(model, side, budget=budget, logits=logits)

        return run

    return {
        "capture": run_captures,
        "two forwards": floor(both, logits=True),
        "two forwards, no logits": floor(both, logits=False),
        "prompts once": floor([prompts], logits=True),
        "prompts once, no logits": floor([prompts], logits=False),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", help="folder; default: a random Llama, 12 layers, d 512")
    parser.add_argument("--data", nargs="*", default=[], help="rows for --model")
    parser.add_argument("--n", type=int, default=64, help="rows (default 64)")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--profile", metavar="DIR", help="also trace one capture, and one build")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.repeats = min(args.n, 8), 1
    torch.set_num_threads(args.threads)
    if args.model:
        from actcache.build.config import BuildConfig
        from actcache.build.plan import plan_build
        from actcache.data.formats import read_samples

        model = load_model(args.model, dtype="float32")
        config = BuildConfig(model=args.model, batch_tokens=args.batch_tokens)
        plan = plan_build(read_samples(args.data, limit=args.n), config)
        rows = list(plan.rendered)
    else:
        shape = TINY if args.quick else LARGE
        model = random_llama(vocab=8192, **shape)
        rows = random_rows(args.n, tokens=16 if args.quick else 128, vocab=8192)
    took = in_turns(variants(model, rows, budget=args.batch_tokens), repeats=args.repeats)
    if args.model:
        from actcache.build.run import run_build

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "store.zarr")
            whole = {
                "build": lambda: run_build(plan, path, model=model, overwrite=True),
                "two forwards": variants(model, rows, budget=args.batch_tokens)["two forwards"],
            }
            model.digest  # noqa: B018  # hashed once a model, so not timed
            took_whole = in_turns(whole, repeats=max(1, args.repeats // 2))
    figures = {
        f"capture / {name}": ratio(took, "capture", name) for name in took if name != "capture"
    }
    if args.model:
        figures["build with files and certificate / two forwards"] = ratio(
            took_whole, "build", "two forwards"
        )
    figures["rows a second"] = len(rows) / min(took["capture"])
    if args.profile:
        capture_all = variants(model, rows, budget=args.batch_tokens)["capture"]
        figures |= profile(capture_all, args.profile, name="capture")
        if args.model:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "store.zarr")
                figures |= profile(
                    lambda: run_build(plan, path, model=model, overwrite=True),
                    args.profile,
                    name="build",
                )
    report(
        "build",
        figures,
        about={"model": model.name, "rows": len(rows), "repeats": args.repeats},
    )


if __name__ == "__main__":
    main()
