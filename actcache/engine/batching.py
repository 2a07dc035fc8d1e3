"""Which rows run together, and what happens when the device runs out of memory.

Rows are sorted by length and grouped under a budget of tokens. The result of a row does not depend,
beyond rounding, on which rows it runs with; so a batch that does not fit is split and run again.
Knows costs and row numbers; knows nothing of what a pass computes. torch is imported where a batch
runs, so that planning (in encoders, dry runs) does not wait for it.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from actcache.errors import ModelError

log = logging.getLogger("actcache")
"""Warnings go to stderr unless the application configures logging."""


def plan_batches(costs: Sequence[int], *, budget: int) -> list[Int64[np.ndarray, " _"]]:
    """Group rows of similar cost, so that a batch holds little padding.

    A batch is padded to its longest row, so it costs its number of rows times its longest row. The
    longest rows come first: what does not fit into memory fails at once, not after an hour. Costs
    and budget are tokens; a row that is longer than the budget runs alone.

    Returns:
        Row numbers, batch by batch; each row once.
    """
    order = np.argsort(-np.asarray(costs, np.int64), kind="stable").astype(np.int64)
    batches, start = [], 0
    while start < len(order):
        longest = max(1, costs[order[start]])
        n_rows = max(1, budget // longest)
        batches.append(order[start : start + n_rows])
        start += n_rows
    return batches


class Budget:
    """Tokens that a pass may cost; shrinks for good when memory runs out."""

    def __init__(self, tokens: int):
        self.tokens = tokens
        """The current budget, padding included."""

    def shrink(self, cost: int) -> None:
        """Set the budget to half of `cost`, the tokens of the pass that did not fit."""
        self.tokens = max(1, min(self.tokens, cost) // 2)
        log.warning(
            "actcache: the device is out of memory with %d tokens in a pass; continuing with at "
            "most %d (--batch-tokens)",
            cost,
            self.tokens,
        )


def run_batches(
    costs: Sequence[int], *, budget: Budget, run: Callable[[Int64[np.ndarray, " _"]], None]
) -> None:
    """Run every row once, in batches within the budget; split batches that do not fit.

    `run` takes row numbers. It is called again, with fewer rows and a smaller budget, after it
    raised `torch.OutOfMemoryError`; a row that does not fit alone is a `ModelError`.
    """
    waiting = plan_batches(costs, budget=budget.tokens)
    while waiting:
        batch = waiting[0]
        if _fits(run, batch):
            waiting = waiting[1:]
            continue
        longest = max(costs[row] for row in batch)
        if len(batch) == 1:
            raise ModelError(
                f"the device is out of memory with a single row of {longest} tokens in a pass, "
                "expected room for one. Use a smaller --dtype, shorter prompts, fewer --layers, or "
                "several GPUs with --device-map auto."
            )
        budget.shrink(longest * len(batch))
        remaining = np.concatenate(waiting)
        waiting = [
            remaining[part]
            for part in plan_batches([costs[row] for row in remaining], budget=budget.tokens)
        ]


def _fits(run: Callable[[Int64[np.ndarray, " _"]], None], batch: Int64[np.ndarray, " _"]) -> bool:
    """Run a batch and return whether it fitted into memory."""
    import torch

    try:
        run(batch)
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = True
    # The error holds the frames that raised it, and they the batch's tensors: memory can be freed
    # only here, after the except block has dropped it.
    if not fits and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits
