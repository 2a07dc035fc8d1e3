"""Strategies for choosing the layer, and what each is worth: fixed, random, oracle, cross-fitted.

A strategy gives each sample a slope (or, if it is trained from several seeds, several). All
strategies of one set of samples are resampled together, so that gains stay paired by sample.

Per sample, the best of many noisy slopes is high even where no layer is better than another. So the
oracle is scored twice: plainly, and cross-fitted, where one half of the multipliers chooses the
layer and the other scores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from actcache.analysis.names import (
    CROSS_FITTED,
    FIXED,
    MOST_FREQUENT,
    ORACLE,
    RANDOM,
    RANDOM_ACTIVE,
    RANKS,
)
from actcache.analysis.stats.bootstrap import Interval, bootstrap_means, estimates, mean_intervals
from actcache.analysis.stats.slopes import among, slopes, split_grid, swept_rows
from actcache.analysis.sweep.layer_ranks import best_layers, ranked_layers


@dataclass(frozen=True, kw_only=True)
class SlopeTable:
    """Slopes of every sample at every layer, from all multipliers and from either half of them.

    NaN of samples that were not swept.
    """

    slope: Float64[np.ndarray, "n layer"]
    """From all multipliers."""

    halves: Float64[np.ndarray, "2 n layer"] | None
    """From either half of the grid; None where `reason` says why."""

    reason: str
    """Why the grid has no halves; empty where it has."""

    @property
    def rows(self) -> Bool[np.ndarray, " n"]:
        """The samples that were swept."""
        return swept_rows(self.slope)

    def of(self, rows: Bool[np.ndarray, " n"] | Int64[np.ndarray, " _"]) -> "SlopeTable":
        """Take some samples."""
        halves = None if self.halves is None else self.halves[:, rows]
        return SlopeTable(slope=self.slope[rows], halves=halves, reason=self.reason)


def slope_table(
    propensity: Float[np.ndarray, "n layer m"], multipliers: Float[np.ndarray, " m"]
) -> SlopeTable:
    """Fit all cells of samples that were swept, on the whole grid and on its `split_grid`.

    Errors of `slopes`.
    """
    rows = swept_rows(propensity)
    swept = propensity[rows]
    slope = among(rows, slopes(swept, multipliers))
    halves = split_grid(multipliers)
    if isinstance(halves, str):
        return SlopeTable(slope=slope, halves=None, reason=halves)
    both = np.stack([among(rows, slopes(swept[..., half], multipliers[half])) for half in halves])
    return SlopeTable(slope=slope, halves=both, reason="")


def fixed_layer(slope: Float64[np.ndarray, "n layer"], train: Bool[np.ndarray, " n"]) -> int:
    """Find the layer with the largest mean slope over the train samples; the first of equals."""
    return int(slope[train].mean(0).argmax())


@dataclass(frozen=True)
class LayerStrategy:
    """What one strategy gives each sample."""

    slope: Float64[np.ndarray, "seed n"]
    """Slope at the chosen layer; one row for each seed, a single one where nothing is random. Of a
    layer drawn at random: the mean over the layers."""

    steerable: Float64[np.ndarray, "seed n"]
    """1 where that slope is above 0, else 0; of a layer drawn at random: the share of layers."""

    base: Float64[np.ndarray, " n"]
    """What the gain is over: the slope at the fixed layer."""

    @property
    def gain(self) -> Float64[np.ndarray, " n"]:
        """Mean over seeds."""
        return np.asarray(self.slope.mean(0) - self.base)


def chosen_layers(
    slope: Float64[np.ndarray, "n layer"],
    layers: Int64[np.ndarray, "seed n"],
    *,
    fixed_layer: int,
) -> LayerStrategy:
    """Take a given layer for each sample (places on the slopes' second axis)."""
    taken = np.take_along_axis(slope[None], layers[..., None], axis=2)[..., 0]
    return LayerStrategy(taken, (taken > 0).astype(np.float64), slope[:, fixed_layer])


def drawn_layer(
    slope: Float64[np.ndarray, "n layer"], among: Sequence[int], *, fixed_layer: int
) -> LayerStrategy:
    """Draw a layer among some, or take the only one: the expectation, so no draw adds noise."""
    few = slope[:, list(among)]
    return LayerStrategy(few.mean(1)[None], (few > 0).mean(1)[None], slope[:, fixed_layer])


def cross_fitted(halves: Float64[np.ndarray, "2 n layer"], *, fixed_layer: int) -> LayerStrategy:
    """Take each sample's best layer by one half of the multipliers, scored with the other.

    Mean of both ways round. The gain is over the fixed layer's slope in the same halves. It is free
    of the bias by noise that is independent between the halves; noise that they share stays.
    """
    chosen = halves.argmax(2)  # [half, n], the first of equals
    scored = np.take_along_axis(halves, chosen[::-1, :, None], axis=2)[..., 0]
    base = halves[:, :, fixed_layer].mean(0)
    return LayerStrategy(scored.mean(0)[None], (scored > 0).mean(0)[None], base)


def compared_strategies(
    table: SlopeTable, *, fixed_layer: int, frequent_layer: int, active: Sequence[int]
) -> dict[str, LayerStrategy]:
    """All strategies that need no predictor, by name; layers are places.

    `frequent_layer` is the best one of most train samples, `active` are those of any.
    """
    slope, fixed = table.slope, fixed_layer
    strategies = {
        FIXED: drawn_layer(slope, [fixed], fixed_layer=fixed),
        MOST_FREQUENT: drawn_layer(slope, [frequent_layer], fixed_layer=fixed),
        RANDOM: drawn_layer(slope, range(slope.shape[1]), fixed_layer=fixed),
        RANDOM_ACTIVE: drawn_layer(slope, active, fixed_layer=fixed),
    }
    for rank, name in enumerate(RANKS[: slope.shape[1]], start=1):  # a model may have fewer layers
        ranked = ranked_layers(slope, rank=rank)[None]
        strategies[name] = chosen_layers(slope, ranked, fixed_layer=fixed)
    if table.halves is not None:
        strategies[CROSS_FITTED] = cross_fitted(table.halves, fixed_layer=fixed_layer)
    return strategies


@dataclass(frozen=True, kw_only=True)
class StrategyScore:
    """What a strategy is worth on test samples.

    Slopes are propensity per unit multiplier. Intervals resample the test samples, with directions
    and fixed layer held; standard errors are over seeds.
    """

    slope: Interval
    """Mean slope: steerability."""

    share: float
    """Share of samples with a slope above 0."""

    gain: Interval
    """Mean slope minus that of the fixed layer (cross-fitted: by the same halves), paired."""

    n_seeds: int
    """Trainings that the numbers are a mean of; 1 where nothing is trained."""

    slope_error: float
    """Standard error of `slope` over seeds; 0 for a single one."""

    share_error: float
    """The same of `share`."""


@dataclass(frozen=True, kw_only=True)
class SteerabilityScores:
    """What each layer and each strategy is worth on `n` test samples."""

    n: int

    by_layer: tuple[Interval, ...]
    """Mean slope of each layer."""

    share_by_layer: tuple[float, ...]
    """Share of samples with a slope above 0, at each layer."""

    fixed_layer: int
    """Number of the layer with the largest mean slope over the train samples."""

    best_on_test_layer: int
    """Number of the layer with the largest mean slope over these very samples."""

    fixed: StrategyScore
    """The fixed layer for all samples."""

    random: StrategyScore
    """A layer drawn at random for each sample."""

    oracle: StrategyScore
    """Each sample's best layer; biased upwards by the noise of the slopes."""

    oracle_distance: float
    """Mean distance in layers of each sample's best layer from the fixed one."""

    cross_fitted: StrategyScore | None
    """Each sample's best layer by one half of the multipliers, scored with the other: free of what
    the halves do not share, such as rounding. What they share stays (where nothing is noise it is
    the oracle), and halves of a curved response have other slopes than the whole. None where the
    grid has no halves."""

    cross_fitted_distance: float | None
    """Mean distance in layers of the layer that either half chooses from the fixed one."""

    fixed_by_halves: Interval | None
    """Mean slope at the fixed layer, scored by the same halves."""


def score_samples(
    table: SlopeTable,
    *,
    fixed_layer: int,
    layers: Sequence[int],
    rng: np.random.Generator,
    draws: int = 1000,
) -> SteerabilityScores:
    """Score one set of samples, at least one; `fixed_layer` is a place in `layers`."""
    slope, halves = table.slope, table.halves
    best = best_layers(slope)
    strategies = {
        FIXED: drawn_layer(slope, [fixed_layer], fixed_layer=fixed_layer),
        RANDOM: drawn_layer(slope, range(slope.shape[1]), fixed_layer=fixed_layer),
        ORACLE: chosen_layers(slope, best[None], fixed_layer=fixed_layer),
    }
    by_halves = []
    if halves is not None:
        strategies[CROSS_FITTED] = cross_fitted(halves, fixed_layer=fixed_layer)
        by_halves = [strategies[CROSS_FITTED].base]
    columns = np.column_stack([slope, *by_halves, _columns(strategies)])
    intervals = mean_intervals(columns, rng, draws=draws)
    n_layers = slope.shape[1]
    scores = _scores([strategies], intervals[n_layers + len(by_halves) :])
    moved = None if halves is None else float(np.abs(halves.argmax(2) - fixed_layer).mean())
    return SteerabilityScores(
        n=len(slope),
        by_layer=tuple(intervals[:n_layers]),
        share_by_layer=tuple((slope > 0).mean(0).tolist()),
        fixed_layer=int(layers[fixed_layer]),
        best_on_test_layer=int(layers[int(slope.mean(0).argmax())]),
        fixed=scores[FIXED],
        random=scores[RANDOM],
        oracle=scores[ORACLE],
        oracle_distance=float(np.abs(best - fixed_layer).mean()),
        cross_fitted=scores.get(CROSS_FITTED),
        cross_fitted_distance=moved,
        fixed_by_halves=intervals[n_layers] if by_halves else None,
    )


def score_behaviors(
    by_behavior: Mapping[str, Mapping[str, LayerStrategy]],
    rng: np.random.Generator,
    *,
    draws: int = 1000,
) -> tuple[dict[str, dict[str, StrategyScore]], dict[str, StrategyScore]]:
    """Score the strategies of every behavior, and their mean over behaviors, counting all the same.

    Behaviors have the same strategies and are resampled apart.

    Returns:
        By behavior and strategy, and by strategy over all behaviors.
    """
    means, resampled = [], []
    for strategies in by_behavior.values():
        columns = _columns(strategies)
        means.append(columns.mean(0))
        resampled.append(bootstrap_means(columns, rng, draws=draws))
    behaviors = {
        behavior: _scores([strategies], estimates(mean, drawn))
        for (behavior, strategies), mean, drawn in zip(
            by_behavior.items(), means, resampled, strict=True
        )
    }
    together = estimates(np.mean(means, axis=0), np.mean(resampled, axis=0))
    return behaviors, _scores(list(by_behavior.values()), together)


def _columns(strategies: Mapping[str, LayerStrategy]) -> Float64[np.ndarray, "n column"]:
    """Slope of each strategy, then gain of each; mean over seeds."""
    slope = [strategy.slope.mean(0) for strategy in strategies.values()]
    return np.stack([*slope, *(strategy.gain for strategy in strategies.values())], axis=1)


def _scores(
    behaviors: Sequence[Mapping[str, LayerStrategy]], intervals: Sequence[Interval]
) -> dict[str, StrategyScore]:
    """The scores whose intervals are those of `_columns`."""
    names = list(behaviors[0])
    scores = {}
    for i, name in enumerate(names):
        # A seed's number is its mean over behaviors, as the paper's tables are read.
        slope = np.mean([strategies[name].slope.mean(1) for strategies in behaviors], axis=0)
        share = np.mean([strategies[name].steerable.mean(1) for strategies in behaviors], axis=0)
        scores[name] = StrategyScore(
            slope=intervals[i],
            share=float(share.mean()),
            gain=intervals[len(names) + i],
            n_seeds=len(slope),
            slope_error=_standard_error(slope),
            share_error=_standard_error(share),
        )
    return scores


def _standard_error(values: Float[np.ndarray, " seed"]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
