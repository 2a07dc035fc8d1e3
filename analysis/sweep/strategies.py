"""What each way of choosing the layer is worth: fixed, in hindsight, at random, per sample.

Per sample, the best of many noisy numbers is high even where no layer is better than another. So
the oracle is read twice: plainly, and cross-fitted, where one half of the multipliers chooses the
layer and the other scores it. Refuses to know how propensity was measured, and what it is compared
with.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from actcache.analysis.stats.bootstrap import Interval, mean_intervals
from actcache.analysis.stats.slopes import slopes, split_grid


@dataclass(frozen=True, kw_only=True)
class SlopeTable:
    """Slopes of every sample at every layer, from all multipliers and from either half of them."""

    slope: Float64[np.ndarray, "n layer"]
    """From all multipliers."""

    halves: Float64[np.ndarray, "2 n layer"] | None
    """From either half of the grid; None where `reason` says why."""

    reason: str
    """Why the grid has no halves; empty where it has."""


def slope_table(
    propensity: Float[np.ndarray, "n layer m"], multipliers: Float[np.ndarray, " m"]
) -> SlopeTable:
    """Fit all cells, on the whole grid and on its `split_grid`; errors of `slopes`."""
    slope = slopes(propensity, multipliers)
    halves = split_grid(multipliers)
    if isinstance(halves, str):
        return SlopeTable(slope=slope, halves=None, reason=halves)
    both = np.stack([slopes(propensity[..., half], multipliers[half]) for half in halves])
    return SlopeTable(slope=slope, halves=both, reason="")


def crossfit_slopes(
    halves: Float64[np.ndarray, "2 n layer"],
) -> Float64[np.ndarray, "2 n"]:
    """Each half's slope of each sample at the layer that the other half chose (first of equals)."""
    chosen = halves.argmax(2)  # [2, n]
    return np.take_along_axis(halves, chosen[::-1, :, None], axis=2)[..., 0]


def crossfit_scores(
    halves: Float64[np.ndarray, "2 n layer"], *, fixed_layer: int
) -> Float64[np.ndarray, "n 3"]:
    """Cross-fitted slope of each sample, its slope at the fixed layer by the same halves, the gain.

    The mean of both halves; see `crossfit_slopes`.
    """
    oracle = crossfit_slopes(halves).mean(0)
    fixed = halves[:, :, fixed_layer].mean(0)
    return np.stack([oracle, fixed, oracle - fixed], axis=1)


@dataclass(frozen=True, kw_only=True)
class CrossFit:
    """The oracle where choosing and scoring use different multipliers."""

    oracle: Interval
    """Slope at the layer that the other half of the multipliers chose, mean of both ways round."""

    fixed: Interval
    """Slope at the fixed layer, scored by the same halves."""

    gain: Interval
    """`oracle` less `fixed`, paired by sample; unbiased where the halves' noise is independent."""

    deviation: float
    """Mean distance in layers of the chosen layer from the fixed one."""


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What each way of choosing the layer is worth on one set of test samples.

    All slopes are propensity per unit multiplier; all intervals resample the test samples, with the
    directions and the fixed layer held.
    """

    n: int
    """Test samples read."""

    mean: Float64[np.ndarray, " layer"]
    """Mean slope of each layer."""

    interval: Float64[np.ndarray, "layer 2"]
    """Bootstrap interval of `mean`, low and high."""

    share_steerable: Float64[np.ndarray, " layer"]
    """Share of samples with a slope above 0, at each layer."""

    fixed_layer: int
    """Layer with the largest mean slope over the train samples."""

    fixed: Interval
    """Mean slope at the fixed layer."""

    fixed_share: float
    """Share of samples steerable at the fixed layer."""

    best_on_test_layer: int
    """Layer with the largest mean slope over these very samples."""

    best_on_test: float
    """Mean slope there: the most that any single layer gives."""

    random_layer: Interval
    """Mean slope at a layer drawn at random for each sample."""

    oracle: Interval
    """Mean of each sample's largest slope; biased upwards by the noise of the slopes."""

    oracle_share: float
    """Share of samples steerable at some layer."""

    oracle_gain: Interval
    """`oracle` less `fixed`, paired by sample; as biased."""

    oracle_deviation: float
    """Mean distance in layers of each sample's best layer from the fixed one."""

    crossfit: CrossFit | None
    """The oracle without that bias; None where the grid has no halves."""


def layer_choice(
    table: SlopeTable,
    rows: Bool[np.ndarray, " n"],
    *,
    fixed_layer: int,
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> LayerChoice:
    """Read one set of samples: `rows` of the table, at least one, with the fixed layer given.

    All columns are resampled together, so gains stay paired by sample.
    """
    slope = table.slope[rows]  # [rows, layer]
    oracle_layer = slope.argmax(1)
    oracle = slope.max(1)
    columns = [*slope.T, slope.mean(1), oracle, oracle - slope[:, fixed_layer]]
    if table.halves is not None:
        columns += [*crossfit_scores(table.halves[:, rows], fixed_layer=fixed_layer).T]
    estimates = mean_intervals(np.column_stack(columns), rng, draws=draws, level=level)
    by_layer, (random, best, gain, *halves) = (
        estimates[: slope.shape[1]],
        estimates[slope.shape[1] :],
    )
    mean = np.array([e.value for e in by_layer])
    crossfit = None
    if table.halves is not None:
        moved = np.abs(table.halves[:, rows].argmax(2) - fixed_layer).mean()
        crossfit = CrossFit(
            oracle=halves[0], fixed=halves[1], gain=halves[2], deviation=float(moved)
        )
    return LayerChoice(
        n=len(slope),
        mean=mean,
        interval=np.array([(e.low, e.high) for e in by_layer]),
        share_steerable=(slope > 0).mean(0),
        fixed_layer=fixed_layer,
        fixed=by_layer[fixed_layer],
        fixed_share=float((slope[:, fixed_layer] > 0).mean()),
        best_on_test_layer=int(mean.argmax()),
        best_on_test=float(mean.max()),
        random_layer=random,
        oracle=best,
        oracle_share=float((oracle > 0).mean()),
        oracle_gain=gain,
        oracle_deviation=float(np.abs(oracle_layer - fixed_layer).mean()),
        crossfit=crossfit,
    )
