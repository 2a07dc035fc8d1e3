"""How much padding do passes run where shards are small?

At 70B (80 layers of width 8192, bfloat16; four positions) a shard has 48 rows. Tokens that passes run, padding
included, over the tokens of the rows: batching within shards, within runs of them (what a build
does), and within 512 rows, whatever the shards. Lengths of prompts are log-normal, which is close
to chat prompts: a median of 100 tokens, and one in twenty beyond 270. Counted, not timed.
"""

from collections.abc import Sequence

import numpy as np

from actcache.build.runs import RUN_ROWS, shards_of_a_run
from actcache.engine.batching import batch_cost, plan_batches
from actcache.store.schema import RowArray, shard_rows
from benchmarks.support.turns import arguments, report

LARGE = [
    RowArray(f"resid_post/{position}", 80, 8192, "bfloat16")
    for position in ("prompt", "fork", "positive", "negative")
]
MEDIAN, SPREAD, CONTEXT = 100, 0.6, 4096


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths (default 0)")
    args = parser.parse_args(argv)
    figures = {}
    for batch_tokens in (2048, 8192):
        for name, value in padding(args.rows, batch_tokens=batch_tokens, seed=args.seed).items():
            figures[f"{name}, --batch-tokens {batch_tokens}"] = value
    report("padding of small shards", figures, about={"rows": args.rows, "seed": args.seed})


def padding(n: int, *, batch_tokens: int, seed: int) -> dict[str, float]:
    """Tokens run over real tokens, by what shares passes; and runs over 512 rows."""
    lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SPREAD, n)
    costs = np.clip(lengths, 8, CONTEXT).astype(int).tolist()
    rows, _ = shard_rows(LARGE, n)
    together = {
        f"within shards of {rows}": rows,
        "within runs": rows * shards_of_a_run(LARGE, rows),
        f"within {RUN_ROWS} rows": RUN_ROWS,
    }
    ratios = {
        name: sum(
            batch_cost(batch, costs)
            for batch in plan_batches(costs, budget=batch_tokens, run_rows=run_rows)
        )
        / sum(costs)
        for name, run_rows in together.items()
    }
    return {
        **ratios,
        "runs over 512 rows": ratios["within runs"] / ratios[f"within {RUN_ROWS} rows"],
    }


if __name__ == "__main__":
    main()
