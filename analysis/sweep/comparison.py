"""Direction sets against one another: slopes over behaviors, beside random directions.

Intervals resample behaviors and then their samples: what holds for a few behaviors need not hold
for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from actcache.analysis.names import CONTROL, METHOD
from actcache.analysis.stats.bootstrap import Interval, bootstrap_means, estimates
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.strategies import fixed_layer
from actcache.conventions import Norm
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class SetSlopes:
    """Mean slope of test samples under one direction set."""

    by_layer: tuple[Interval, ...]
    """Mean over behaviors, at each swept layer."""

    fixed: Interval
    """The same, each behavior at the layer that its train samples chose."""

    fixed_layers: dict[str, int]
    """That layer, by behavior."""

    over_caa: Interval | None
    """Its gain at its own fixed layers over the difference of means at theirs, paired by sample;
    None of that set itself."""

    over_random: Interval | None
    """The same over random directions; None of them, and without any."""

    behaviors: dict[str, tuple[float, ...]]
    """Mean slope of each behavior by layer."""


@dataclass(frozen=True, kw_only=True)
class ComparedSets:
    """Direction sets of one sweep, of one norm a layer unless they are raw."""

    norm: Norm
    layers: tuple[int, ...]
    sets: dict[str, SetSlopes]
    """By name; the difference of means and random directions among them."""


def compare_sets(
    store: Store,
    sweep: Sweep,
    names: Sequence[str],
    *,
    norm: Norm,
    train: Bool[np.ndarray, " n"],
    seed: int,
    draws: int,
) -> ComparedSets:
    """Compare direction sets of a sweep on base test samples.

    Args:
        store: of pairs, that was swept.
        sweep: with the sets.
        names: of the sets beside the difference of means and random directions.
        norm: that the sets were brought to.
        train: samples that choose each behavior's layer.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    others = [name for name in sweep.names if name == CONTROL]
    test = (store["split"] == "test") & (store["variant"] == "base")
    behavior = store["behavior"]
    groups = list(dict.fromkeys(behavior[test].tolist()))
    slopes = {name: sweep.slopes(name) for name in (METHOD, *names, *others)}
    places: dict[str, dict[str, int]] = {}
    at_fixed: dict[str, Float64[np.ndarray, " n"]] = {}
    for name, slope in slopes.items():
        swept = ~np.isnan(slope).any(1)
        places[name] = {b: fixed_layer(slope, train & swept & (behavior == b)) for b in groups}
        chosen = np.array([places[name].get(b, 0) for b in behavior.tolist()])
        at_fixed[name] = slope[np.arange(len(slope)), chosen]
    layers = sweep.layers.tolist()
    sets = {}
    for name, slope in slopes.items():
        columns = {
            **{f"layer {layer}": slope[:, place] for place, layer in enumerate(layers)},
            "fixed": at_fixed[name],
        }
        if name != METHOD:
            columns["over_caa"] = at_fixed[name] - at_fixed[METHOD]
        if others and name not in others:
            columns["over_random"] = at_fixed[name] - at_fixed[others[0]]
        pooled = {
            key: _over_behaviors(
                [values[test & (behavior == b)] for b in groups], seed=seed, draws=draws
            )
            for key, values in columns.items()
        }
        sets[name] = SetSlopes(
            by_layer=tuple(pooled[f"layer {layer}"] for layer in layers),
            fixed=pooled["fixed"],
            fixed_layers={b: layers[place] for b, place in places[name].items()},
            over_caa=pooled.get("over_caa"),
            over_random=pooled.get("over_random"),
            behaviors={
                b: tuple(np.nanmean(slope[test & (behavior == b)], 0).tolist()) for b in groups
            },
        )
    return ComparedSets(norm=norm, layers=tuple(layers), sets=sets)


def _over_behaviors(
    groups: Sequence[Float64[np.ndarray, " _n"]], *, seed: int, draws: int
) -> Interval:
    """Mean over behaviors of their mean over samples, with both resampled; NaN is left out."""
    rng = np.random.default_rng(seed)
    known = [values[~np.isnan(values)] for values in groups]
    known = [values for values in known if len(values)]
    means = np.array([values.mean() for values in known])
    count = len(known)
    # A resample of samples for each place that a behavior may be drawn to.
    drawn = np.stack(
        [bootstrap_means(v[:, None], rng, draws=draws * count)[:, 0] for v in known]
    ).reshape(count, draws, count)
    chosen = rng.integers(count, size=(draws, count))
    resampled = drawn[chosen, np.arange(draws)[:, None], np.arange(count)].mean(1)
    [pooled] = estimates(means.mean()[None], resampled[:, None])
    return pooled
