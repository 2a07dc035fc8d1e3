"""What do beginnings that rows share save, in a build and in a sweep?

Rows of 128 tokens of which 0, 50 or 75 % are the same in all. In turns, by CPU time: each pass as
it is, and with sharing switched off, in the batches that it then gets; both are checked to be
equal. At 0 % the ratio is what looking for beginnings costs.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from actcache.analysis.sweep.grid import sweep_costs
from actcache.engine.batching import Heads, plan_batches
from actcache.engine.model import LanguageModel
from actcache.engine.steered_scores import SteeringRule, score_grid, sweep_head
from actcache.engine.tree_capture import capture, capture_head, tokens_run
from actcache.prompts.render import Rendered
from benchmarks.build.forwards import LARGE, POSITIONS, TINY
from benchmarks.support.models import random_llama
from benchmarks.support.turns import arguments, in_turns, ratio, report

RULE = SteeringRule()


def sharing_rows(n: int, *, tokens: int, shared: int, vocab: int) -> list[Rendered]:
    """Make pairs of `tokens` prompt tokens, the first `shared` of which are the same in all."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(5, vocab, shared).tolist()
    return [
        Rendered((*beginning, *rng.integers(5, vocab, tokens - shared).tolist()), (1,), (2,), (3,))
        for _ in range(n)
    ]


def build(model: LanguageModel, *, rows: Sequence[Rendered], budget: int) -> torch.Tensor:
    """Read all layers at four tokens of every row, as a build does for one shard."""
    costs = [tokens_run(row, positions=POSITIONS, answer="first") for row in rows]
    heads = [capture_head(row, positions=POSITIONS) for row in rows]
    out = torch.empty(len(rows), model.n_layers, len(POSITIONS), model.d_model)
    for batch in plan_batches(costs, budget=budget, heads=_if_shared(model, heads)):
        chosen = [rows[i] for i in batch]
        values = capture(model, chosen, positions=POSITIONS, answer="first", sites=["resid_post"])
        out[batch] = values["resid_post"].cpu()
    return out


def sweep(
    model: LanguageModel,
    *,
    rows: Sequence[Rendered],
    directions: torch.Tensor,
    multipliers: Sequence[float],
    budget: int,
) -> torch.Tensor:
    """Compute the propensity `[n, layer, multiplier]` of every row, as a sweep does."""
    n_cells = model.n_layers * sum(x != 0 for x in multipliers)
    heads = [sweep_head(row, RULE) for row in rows]
    costs = sweep_costs(rows, RULE, n_cells=n_cells)
    out = torch.empty(len(rows), model.n_layers, len(multipliers))
    for batch in plan_batches(costs, budget=budget, heads=_if_shared(model, heads)):
        scores = score_grid(
            model,
            [rows[i] for i in batch],
            directions=directions,
            multipliers=multipliers,
            rule=RULE,
            layers=range(model.n_layers),
        )
        out[batch] = torch.from_numpy(scores[:, 0])
    return out


def _if_shared(model: LanguageModel, heads: Heads) -> Heads:
    return heads if model.can_share_beginnings else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=128, help="rows (default 128)")
    parser.add_argument("--tokens", type=int, default=128, help="of a row (default 128)")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--d-model", type=int, default=512, help="default 512, of 12 layers")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.tokens, args.repeats = 16, 32, 1
    torch.set_num_threads(args.threads)
    shape = (
        TINY if args.quick else {**LARGE, "d_model": args.d_model, "mlp": args.d_model * 11 // 4}
    )
    vocab = 8192
    # Two models of the same weights, one of which is told that it cannot share.
    sharing, whole = (random_llama(vocab=vocab, **shape) for _ in range(2))
    whole.__dict__["can_share_beginnings"] = False
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(1, sharing.n_layers, sharing.d_model, generator=generator)
    figures: dict[str, float] = {}
    for percent in (0, 50, 75):
        rows = sharing_rows(
            args.n, tokens=args.tokens, shared=args.tokens * percent // 100, vocab=vocab
        )
        settings: dict[str, Any] = {"rows": rows, "budget": args.batch_tokens}
        work: dict[str, Any] = {"build": partial(build, **settings)}
        for multipliers in ((-1.0, 0.0, 1.0), (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)):
            work[f"sweep of {len(multipliers)} multipliers"] = partial(
                sweep, directions=directions, multipliers=multipliers, **settings
            )
        for name, run in work.items():
            torch.testing.assert_close(run(sharing), run(whole), rtol=1e-4, atol=1e-4)
            took = in_turns(
                {"whole": partial(run, whole), "shared": partial(run, sharing)},
                repeats=args.repeats,
                clock=time.process_time,
            )
            figures[f"{name}, {percent} % shared: whole / shared"] = ratio(took, "whole", "shared")
    report(
        "beginnings",
        figures,
        about={
            "model": sharing.name,
            "rows": args.n,
            "tokens": args.tokens,
            "repeats": args.repeats,
        },
    )


if __name__ == "__main__":
    main()
