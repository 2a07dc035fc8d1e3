"""How well directions tell test rows apart: the AUC, with its bootstrap interval."""

import numpy as np
from jaxtyping import Bool, Float, Float64

from actcache.analysis.stats.bootstrap import Interval, bootstrap_means, estimates


def auc_intervals(
    projections: Float[np.ndarray, "n column"],
    positive: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    draws: int,
) -> list[Interval]:
    """AUC of each column, ties counting half, with an interval that resamples within each class.

    A draw's AUC is Σ wᵢ wⱼ [pᵢ > qⱼ] over positives i and negatives j, with the shares wᵢ and wⱼ
    that the draw gives them: no row is copied and nothing is ranked again.
    """
    upper, lower = projections[positive], projections[~positive]
    weights = [
        bootstrap_means(np.eye(len(members)), rng, draws=draws) for members in (upper, lower)
    ]
    value = np.empty(projections.shape[1])
    drawn: Float64[np.ndarray, "draws column"] = np.empty((draws, len(value)))
    for column in range(len(value)):
        p, q = upper[:, column, None], lower[None, :, column]
        won = (p > q) + 0.5 * (p == q)
        value[column] = won.mean()
        drawn[:, column] = ((weights[0] @ won) * weights[1]).sum(1)
    return estimates(value, drawn)
