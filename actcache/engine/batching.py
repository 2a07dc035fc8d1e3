"""Batches that shrink when the device runs out of memory, so that a long run goes on.

The result of a row does not depend, beyond rounding, on which rows it runs with; so a batch that
did not fit is cut up and run again. Knows costs and row numbers; knows nothing of what a pass does.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int64

from actcache.engine.batches import plan_batches
from actcache.errors import ModelError

log = logging.getLogger("actcache")
"""Warnings go to stderr where nobody says otherwise."""


class Budget:
    """Tokens that a pass may cost. Shrinks when memory runs out, and stays so.

    Args:
        tokens: the budget at first, padding included.
    """

    def __init__(self, tokens: int):
        self.tokens = tokens
        """The budget now."""

    def shrink(self, cost: int) -> None:
        """Take half of `cost` tokens, those of the pass that did not fit, as the budget."""
        self.tokens = max(1, min(self.tokens, cost) // 2)
        log.warning(
            "actcache: the device is out of memory with %d tokens in a pass; going on with at "
            "most %d (--batch-tokens)",
            cost,
            self.tokens,
        )


def run_batches(
    costs: Sequence[int], *, budget: Budget, run: Callable[[Int64[np.ndarray, " _"]], None]
) -> None:
    """Run every row once, in batches within the budget; cut up the batches that do not fit.

    Args:
        costs: tokens of each row, as the pass counts them.
        budget: the budget; smaller afterwards where memory ran out.
        run: runs the rows of these numbers. It is called again, with fewer rows, after it raised
            `torch.OutOfMemoryError`.

    Raises:
        ModelError: a row does not fit alone.
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
        left = np.concatenate(waiting)
        waiting = [
            left[some] for some in plan_batches([costs[i] for i in left], budget=budget.tokens)
        ]


def _fits(run: Callable[[Int64[np.ndarray, " _"]], None], batch: Int64[np.ndarray, " _"]) -> bool:
    """Whether `run` came to an end. Its frames, and the tensors in them, are gone when it did not.

    The error holds on to the frames that raised it, so it must be gone before memory is freed.
    """
    try:
        run(batch)
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = True
    if not fits and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits
