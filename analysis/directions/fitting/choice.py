"""What every method gets and gives in a layer; how validation rows choose among its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from actcache.analysis.directions.fitting.row_space import CentredRows


@dataclass(frozen=True, kw_only=True)
class LayerLabels:
    """The labels of one layer's rows: 0 and 1, or how much each row shows the concept."""

    train: Float64[np.ndarray, " n"]
    validation: Float64[np.ndarray, " m"]

    pairs: Int64[np.ndarray, "pair 2"]
    """Train rows, by their place among them, that are compared: the positive one first."""


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """What a method found in one layer."""

    weights: Float64[np.ndarray, " r"]
    """The direction, of any length and sign, in the coordinates of the `RowSpace`."""

    setting: Mapping[str, float]
    """What the validation rows chose; empty for a method that has nothing to choose."""

    validation: float
    """Pearson correlation of the validation rows' projections with their labels; NaN without."""


def best_on_validation(
    candidates: Float64[np.ndarray, "k r"],
    settings: Sequence[Mapping[str, float]],
    rows: CentredRows,
    labels: LayerLabels,
) -> LayerFit:
    """Choose the candidate whose validation projections correlate best with the labels.

    Candidates must point where train labels rise. The first of equals wins.
    """
    score = pearson(rows.validation @ candidates.T, labels.validation)
    best = int(np.argmax(np.nan_to_num(score, nan=-np.inf)))
    return LayerFit(weights=candidates[best], setting=settings[best], validation=float(score[best]))


def pearson(
    values: Float[np.ndarray, "m k"], labels: Float[np.ndarray, " m"]
) -> Float64[np.ndarray, " k"]:
    """Correlation of each column with the labels; NaN where either does not vary."""
    if not len(labels):
        return np.full(values.shape[1], np.nan)
    a, b = values - values.mean(0), labels - labels.mean()
    length = np.linalg.norm(a, axis=0) * np.linalg.norm(b)
    undefined = np.full(len(length), np.nan)
    return np.asarray(np.divide(b @ a, length, out=undefined, where=length > 0))
