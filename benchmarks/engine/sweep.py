"""What does the exact sweep cost beside the naive loop, and is it equal to it?

Naive, as steering-bench does: a full forward for every layer, multiplier and completion, batch
size 1. It is timed on a sample of the cells of a few rows and scaled up; the figure says so.
"""

import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch

from actcache.engine.batching import plan_batches
from actcache.engine.model import LanguageModel, load_model
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.prompts.render import Rendered
from benchmarks.build.forwards import LARGE, TINY
from benchmarks.support.models import plain_forwards, random_llama, random_rows
from benchmarks.support.profiles import profile
from benchmarks.support.turns import arguments, in_turns, ratio, report

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


def sweep(
    model: LanguageModel,
    rows: Sequence[Rendered],
    directions: torch.Tensor,
    rule: SteeringRule,
    budget: int,
) -> np.ndarray:
    """Return the propensity `[n, layer, m]` of all rows, in length-sorted batches."""
    n_layers = model.n_layers
    nodes = 1 if rule.score == "letter" else 3
    costs = [row.length + n_layers * (len(MULTIPLIERS) - 1) * nodes for row in rows]
    propensities = np.empty((len(rows), n_layers, len(MULTIPLIERS)), np.float32)
    for batch in plan_batches(costs, budget=budget):
        propensities[batch] = score_grid(
            model,
            [rows[i] for i in batch],
            directions=directions[None],
            multipliers=MULTIPLIERS,
            rule=rule,
            layers=range(n_layers),
        )[:, 0]
    return propensities


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", help="folder; default: a random Llama, 12 layers, d 512")
    parser.add_argument("--data", nargs="*", default=[], help="rows for --model")
    parser.add_argument("--n", type=int, default=32, help="rows (default 32)")
    parser.add_argument("--score", default="logprob", help="default: logprob, as steering-bench")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument(
        "--cells", type=int, default=24, help="cells that the naive loop is timed on"
    )
    parser.add_argument("--profile", metavar="DIR", help="also trace one sweep")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.repeats, args.cells = min(args.n, 4), 1, 4
    torch.set_num_threads(args.threads)
    if args.model:
        from actcache.build.config import BuildConfig
        from actcache.build.plan import plan_build
        from actcache.data.formats import read_samples

        model = load_model(args.model, dtype="float32")
        plan = plan_build(read_samples(args.data, limit=args.n), BuildConfig(model=args.model))
        rows = list(plan.rendered)
    else:
        model = random_llama(vocab=8192, **(TINY if args.quick else LARGE))
        rows = random_rows(args.n, tokens=16 if args.quick else 128, vocab=8192)
    rule = SteeringRule(score=args.score)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(model.n_layers, model.d_model, generator=generator)
    fast = np.empty(0)
    rng = np.random.default_rng(0)
    all_cells = list(itertools.product(range(len(rows)), range(model.n_layers), range(7)))
    cells = [all_cells[i] for i in rng.choice(len(all_cells), args.cells, replace=False)]
    errors: list[float] = []

    def run_sweep() -> None:
        nonlocal fast
        fast = sweep(model, rows, directions, rule, args.batch_tokens)

    def naive() -> None:
        errors.clear()
        for i, layer, m in cells:
            reference = reference_cell(
                model, rows[i], directions[layer], MULTIPLIERS[m], layer, rule
            )
            errors.append(abs(reference - float(fast[i, layer, m])))

    def forward() -> None:
        sequences = [row.chain + row.positive for row in rows]
        plain_forwards(model, sequences, budget=args.batch_tokens, logits=True)

    start = time.perf_counter()
    took = in_turns({"sweep": run_sweep, "cells": naive, "forward": forward}, repeats=args.repeats)
    scale = len(all_cells) / len(cells)
    traced = profile(run_sweep, args.profile, name="sweep") if args.profile else {}
    report(
        "sweep",
        {
            "naive loop / sweep (naive timed on a sample of cells)": scale
            / ratio(took, "sweep", "cells"),
            "sweep / one batched forward of prompt and completion": ratio(took, "sweep", "forward"),
            "largest absolute difference over the sampled cells": max(errors),
            "largest effect": float(np.abs(fast - fast[..., 3:4]).max()),
            "cells a second": len(all_cells) / min(took["sweep"]),
            **traced,
        },
        about={
            "model": model.name,
            "rows": len(rows),
            "layers": model.n_layers,
            "score": args.score,
            "sampled cells": len(cells),
            "of": len(all_cells),
            "seconds in all": round(time.perf_counter() - start),
        },
    )


if __name__ == "__main__":
    main()
