"""Controls of a concept's directions: shuffled labels, random directions, the pools alone.

A high held-out AUC is no evidence by itself: where the concept is the largest variance of the rows,
directions of shuffled labels separate them too, with either sign.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from actcache.analysis.concepts.rows import ConceptRows
from actcache.analysis.concepts.summary import ControlScores, PoolScores
from actcache.analysis.directions.discriminative import auc
from actcache.analysis.directions.fitting.scores import auc_intervals
from actcache.analysis.stats.bootstrap import Interval


def control_scores(
    layers: Iterable[Float32[np.ndarray, "n d_model"]],
    rows: ConceptRows,
    *,
    draws: int,
    seed: int,
) -> ControlScores:
    """Score directions that know nothing of the concept on its held-out rows.

    All layers have the same shufflings of the train labels. AUC is signed: a direction that ranks
    the rows the wrong way round is below 0.5.

    Args:
        layers: residuals of the rows, layer by layer.
        rows: of the concept.
        draws: shufflings, and random directions.
        seed: of both.
    """
    rng = np.random.default_rng(seed)
    train, judged = rows.split == "train", rows.split == rows.held_out
    labels = rows.positive[train].astype(np.float64)
    shuffled = np.stack([rng.permutation(labels) for _ in range(draws)])
    shuffled -= shuffled.mean(1, keepdims=True)
    intervals: dict[str, list[Interval]] = {"shuffled": [], "random": []}
    for values in layers:
        directions = {
            "shuffled": shuffled @ values[train],
            "random": rng.standard_normal((draws, values.shape[1])),
        }
        for name, drawn in directions.items():
            scores = _signed_auc(values[judged] @ drawn.T, rows.positive[judged])
            intervals[name].append(_middle(scores))
    return ControlScores(
        draws=draws, shuffled=tuple(intervals["shuffled"]), random=tuple(intervals["random"])
    )


def pool_scores(
    layers: Iterable[Float32[np.ndarray, "n d_model"]],
    pools: ConceptRows,
    *,
    concept: Float32[np.ndarray, "layer d_model"],
    draws: int,
) -> PoolScores:
    """Tell two pools of statements apart without any prefix, as a concept would be.

    `concept` are the concept's own directions, to compare with.
    """
    train, judged = pools.split == "train", pools.split == pools.held_out
    labels = pools.positive[train] - pools.positive[train].mean()
    projections, cosines = [], []
    for values, of_concept in zip(layers, concept, strict=True):
        direction = labels @ np.asarray(values[train], np.float64)
        length = float(np.linalg.norm(direction)) or 1.0
        projections.append(values[judged] @ (direction / length))
        cosines.append(float(direction @ of_concept / length))
    rng = np.random.default_rng(0)
    intervals = auc_intervals(
        np.stack(projections, axis=1), pools.positive[judged], rng, draws=draws
    )
    return PoolScores(auc=tuple(intervals), cosine=tuple(cosines))


def _signed_auc(
    projections: Float[np.ndarray, "n draw"], positive: np.ndarray
) -> Float64[np.ndarray, " draw"]:
    return auc(projections[positive], projections[~positive])


def _middle(values: Sequence[float] | np.ndarray) -> Interval:
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975])
    return Interval(float(median), float(low), float(high))
