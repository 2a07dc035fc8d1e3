"""What each way of choosing a layer is worth, side by side, for each behavior and over all.

A way gives each sample a slope (or, where it is drawn at random or trained from several seeds,
several). All ways of a behavior are resampled together, so that gains stay paired by sample.
Refuses to know how a way came to its layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from actcache.analysis.stats.bootstrap import Interval, bootstrap_means, estimates
from actcache.analysis.sweep.layer_ranks import ranked_layers
from actcache.analysis.sweep.strategies import crossfit_slopes

FIXED = "fixed"
"""The way that all others are compared with."""

RANKS = ("oracle", "second", "third", "fourth")
"""Each sample's best layer, its second best, …: with the slopes in hand, so for comparison only."""


@dataclass(frozen=True)
class Way:
    """What one way of choosing gives each sample."""

    slope: Float64[np.ndarray, "seed row"]
    """Slope at the chosen layer; one row of it for each seed, a single one where nothing is random.
    Of a layer drawn at random: the mean over the layers."""

    steerable: Float64[np.ndarray, "seed row"]
    """1 where that slope is above 0, else 0; of a layer drawn at random: the share of layers."""

    against: Float64[np.ndarray, " row"] | None = None
    """What the gain is over, where that is not the slope at the fixed layer."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """A way's figures; intervals resample the test samples, the standard errors are over seeds."""

    slope: Interval
    """Mean slope: steerability."""

    share: float
    """Share of samples with a slope above 0."""

    gain: Interval
    """Mean slope less that of the fixed layer (or of what the way names), paired by sample."""

    n_seeds: int
    """Trainings that the figures are a mean of."""

    slope_error: float
    """Standard error of `slope` over seeds; 0 for a single one."""

    share_error: float
    """The same of `share`."""


def chosen_way(
    slope: Float64[np.ndarray, "row layer"], layers: Int64[np.ndarray, "seed row"]
) -> Way:
    """The way that takes these layers (places on the slopes' second axis)."""
    taken = np.take_along_axis(slope[None], layers[..., None], axis=2)[..., 0]
    return Way(taken, (taken > 0).astype(np.float64))


def random_way(slope: Float64[np.ndarray, "row layer"], among: Sequence[int]) -> Way:
    """A layer drawn at random among some: its expectation, so that no draw adds noise."""
    few = slope[:, list(among)]
    return Way(few.mean(1)[None], (few > 0).mean(1)[None])


def crossfit_way(halves: Float64[np.ndarray, "2 row layer"], *, fixed_layer: int) -> Way:
    """Each sample's best layer by one half of the multipliers, read with the other, both ways.

    Its gain is over the fixed layer's slope in the same halves.
    """
    taken = crossfit_slopes(halves)
    return Way(
        taken.mean(0)[None], (taken > 0).mean(0)[None], against=halves[:, :, fixed_layer].mean(0)
    )


def simple_ways(
    slope: Float64[np.ndarray, "row layer"],
    *,
    fixed_layer: int,
    frequent_layer: int,
    active: Sequence[int],
) -> dict[str, Way]:
    """All ways that need no predictor: fixed, most frequent, random, and each sample's best ones.

    Args:
        slope: of the samples that the figures are of.
        fixed_layer: place of the layer with the largest mean over train.
        frequent_layer: place of the layer that is best for most train samples.
        active: places of the layers that are best for some train sample.
    """
    every = np.ones((1, len(slope)), np.int64)
    ways = {
        FIXED: chosen_way(slope, fixed_layer * every),
        "most frequent": chosen_way(slope, frequent_layer * every),
        "random": random_way(slope, range(slope.shape[1])),
        "random active": random_way(slope, active),
    }
    ranks = RANKS[: slope.shape[1]]  # a model may have fewer layers
    return ways | {
        name: chosen_way(slope, ranked_layers(slope, rank=rank)[None])
        for rank, name in enumerate(ranks, start=1)
    }


def worths(
    by_behavior: Mapping[str, Mapping[str, Way]],
    rng: np.random.Generator,
    *,
    draws: int = 1000,
) -> tuple[dict[str, dict[str, Worth]], dict[str, Worth]]:
    """The figures of every behavior, and their mean over behaviors, each counting the same.

    Args:
        by_behavior: the same ways for each behavior, `fixed` among them.
        rng: source of the bootstrap; behaviors are resampled apart.
        draws: bootstrap draws.

    Returns:
        By behavior and way, and by way over all behaviors.
    """
    names = list(next(iter(by_behavior.values())))
    means, resampled = [], []
    for ways in by_behavior.values():
        fixed = ways[FIXED].slope.mean(0)
        slopes = {name: ways[name].slope.mean(0) for name in names}
        gains = [
            slope - (fixed if ways[name].against is None else ways[name].against)
            for name, slope in slopes.items()
        ]
        columns = np.stack([*slopes.values(), *gains], axis=1)  # [row, 2 · way]
        means.append(columns.mean(0))
        resampled.append(bootstrap_means(columns, rng, draws=draws))
    each = {
        behavior: _worths(names, mean, drawn, [ways])
        for (behavior, ways), mean, drawn in zip(by_behavior.items(), means, resampled, strict=True)
    }
    together = _worths(
        names, np.mean(means, axis=0), np.mean(resampled, axis=0), list(by_behavior.values())
    )
    return each, together


def _worths(
    names: Sequence[str],
    mean: Float64[np.ndarray, " column"],
    drawn: Float64[np.ndarray, "draws column"],
    behaviors: Sequence[Mapping[str, Way]],
) -> dict[str, Worth]:
    found = estimates(mean, drawn)
    result = {}
    for i, name in enumerate(names):
        # A seed's figure is its mean over behaviors, as the paper's tables are read.
        slope = np.mean([ways[name].slope.mean(1) for ways in behaviors], axis=0)
        share = np.mean([ways[name].steerable.mean(1) for ways in behaviors], axis=0)
        result[name] = Worth(
            slope=found[i],
            share=float(share.mean()),
            gain=found[len(names) + i],
            n_seeds=len(slope),
            slope_error=_standard_error(slope),
            share_error=_standard_error(share),
        )
    return result


def _standard_error(values: Float[np.ndarray, " seed"]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
