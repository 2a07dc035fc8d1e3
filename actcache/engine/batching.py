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
from actcache.prompts.beginnings import find_beginnings, group_by_beginning

Heads = Sequence[Sequence[int]] | None
"""The tokens of each row that it may share with others; None if a pass shares nothing."""

log = logging.getLogger("actcache")
"""Warnings go to stderr unless the application configures logging."""


def plan_batches(
    costs: Sequence[int], *, budget: int, heads: Heads = None, run_rows: int | None = None
) -> list[Int64[np.ndarray, " _"]]:
    """Group rows that begin alike, and rows of similar cost, so that a batch holds little padding.

    The longest rows come first: what does not fit into memory fails at once, not after an hour.
    Costs and budget are tokens; a row that is longer than the budget runs alone.

    Args:
        costs: tokens of each row, without padding.
        budget: tokens of a batch, as `batch_cost` counts them.
        heads: the tokens of each row that a pass runs once for rows which share them, if it does.
        run_rows: plan each so many rows alone.

    Returns:
        Row numbers, batch by batch; each row once.
    """
    if run_rows is not None:
        batches = []
        for start in range(0, len(costs), run_rows):
            run = slice(start, start + run_rows)
            shared = None if heads is None else heads[run]
            batches += [
                start + batch for batch in plan_batches(costs[run], budget=budget, heads=shared)
            ]
        return batches
    by_cost = np.asarray(costs, np.int64)
    groups = group_by_beginning(heads) if heads is not None else []
    batches = []
    for group in groups:
        rows = np.concatenate([_longest_first(rows, by_cost) for rows in group])
        batches += _cut(rows, costs, budget=budget, heads=heads)
    grouped = [rows for group in groups for rows in group]
    others = np.setdiff1d(np.arange(len(costs)), np.concatenate(grouped) if grouped else [])
    batches += _cut(_longest_first(others.astype(np.int64), by_cost), costs, budget=budget)
    return sorted(batches, key=lambda batch: -int(by_cost[batch].max()))


def batch_cost(batch: Int64[np.ndarray, " _"], costs: Sequence[int], heads: Heads = None) -> int:
    """Count the tokens of a batch: all rows padded to the longest, shared beginnings once."""
    return len(batch) * max(int(costs[row]) for row in batch) - n_shared(batch, heads)


def n_shared(batch: Int64[np.ndarray, " _"], heads: Heads) -> int:
    """Count the tokens of a batch that need not be run, since another row has run them."""
    return 0 if heads is None else find_beginnings([heads[row] for row in batch]).n_saved


def _longest_first(
    rows: Int64[np.ndarray, " _"], costs: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " _"]:
    return rows[np.argsort(-costs[rows], kind="stable")]


def _cut(
    rows: Int64[np.ndarray, " _"],
    costs: Sequence[int],
    *,
    budget: int,
    heads: Heads = None,
) -> list[Int64[np.ndarray, " _"]]:
    """Cut rows, in their order, into batches as large as the budget allows."""
    batches = []
    while len(rows):
        if heads is None:  # the first row is the longest
            fits = max(1, budget // max(1, int(costs[rows[0]])))
        else:
            fits, too_many = 1, 2
            while too_many <= len(rows) and batch_cost(rows[:too_many], costs, heads) <= budget:
                fits, too_many = too_many, 2 * too_many
            while too_many - fits > 1:
                n_rows = (fits + too_many) // 2
                if n_rows <= len(rows) and batch_cost(rows[:n_rows], costs, heads) <= budget:
                    fits = n_rows
                else:
                    too_many = n_rows
        batches.append(rows[:fits])
        rows = rows[fits:]
    return batches


class Budget:
    """Tokens that a pass may cost; shrinks when memory runs out.

    Each unit of work has its own, so that what ran out of memory changes the batches, and with them
    the last bits, of no other unit.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        """The current budget, padding included."""
        self._initial = tokens
        self._warned = [tokens]

    def renewed(self) -> "Budget":
        """Begin another unit of work with the first budget; what was warned of is not repeated."""
        renewed = Budget(self._initial)
        renewed._warned = self._warned
        return renewed

    def shrink(self, cost: int) -> None:
        """Set the budget to half of `cost`, the tokens of the pass that did not fit."""
        self.tokens = max(1, min(self.tokens, cost) // 2)
        if self.tokens >= self._warned[-1]:
            return
        self._warned.append(self.tokens)
        log.warning(
            "actcache: the device is out of memory with %d tokens in a pass; continuing with at "
            "most %d (--batch-tokens)",
            cost,
            self.tokens,
        )


def run_batches(
    costs: Sequence[int],
    *,
    budget: Budget,
    run: Callable[[Int64[np.ndarray, " _"]], None],
    heads: Heads = None,
) -> None:
    """Run every row once, in batches within the budget; split batches that do not fit.

    `run` takes row numbers. It is called again, with fewer rows and a smaller budget, after it
    raised `torch.OutOfMemoryError`; a row that does not fit alone is a `ModelError`. `heads` are
    those of `plan_batches`.
    """
    waiting = plan_batches(costs, budget=budget.tokens, heads=heads)
    while waiting:
        batch = waiting[0]
        if _fits(run, batch):
            waiting = waiting[1:]
            continue
        if len(batch) == 1:
            raise ModelError(
                f"the device is out of memory with a single row of {costs[batch[0]]} tokens in a "
                "pass, expected room for one. Use a smaller --dtype, shorter prompts, fewer "
                "--layers, or several GPUs with --device-map auto."
            )
        budget.shrink(batch_cost(batch, costs, heads))
        remaining = np.concatenate(waiting)
        waiting = [
            remaining[part]
            for part in plan_batches(
                [costs[row] for row in remaining],
                budget=budget.tokens,
                heads=None if heads is None else [heads[row] for row in remaining],
            )
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
