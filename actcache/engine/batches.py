"""Which rows run together: sorted by length, as many as the budget allows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def plan_batches(costs: Sequence[int], *, budget: int) -> list[Int64[np.ndarray, " _"]]:
    """Group rows of like cost, longest first, so that a batch holds little padding.

    A batch is padded to its dearest row, so `rows × dearest` is what it costs. The longest come
    first: what does not fit into memory shows at once, not after an hour.

    Args:
        costs: tokens of each row, as the pass counts them.
        budget: tokens that a batch may cost, padding included. A row over it runs alone.

    Returns:
        Row numbers, batch by batch; each row once.
    """
    order = np.argsort(-np.asarray(costs, np.int64), kind="stable").astype(np.int64)
    batches, at = [], 0
    while at < len(order):
        rows = max(1, budget // max(1, costs[order[at]]))
        batches.append(order[at : at + rows])
        at += rows
    return batches
