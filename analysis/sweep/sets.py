"""The direction sets of an analysis: one sweep steers with all of them, each on rows of its own.

Figures read the slopes of base train samples, which choose layers, and of test samples of every
framing. Other rows are not swept. Random directions are there to be compared with, so a part of
the test samples is enough for them. What is to be swept beside these is one more entry of
`sets_of_analysis`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    Directions,
    pair_directions,
    random_directions,
)
from actcache.analysis.names import METHOD, OWN_DIFFERENCE, control_set, split_set
from actcache.analysis.stats.units import MapUnits
from actcache.analysis.sweep.row_directions import AnyDirections, RowDirections, row_directions
from actcache.analysis.sweep.splits import splits_of
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class SweepSet:
    """The directions of one set, and the rows that they steer."""

    directions: RowDirections
    rows: Bool[np.ndarray, " n"]
    """Rows that a figure reads; others are not swept."""

    control: bool = False
    """Whether it is there to be compared with."""


def sets_of_analysis(
    store: Store,
    directions: Directions,
    *,
    config: AnalyzeConfig,
    others: Mapping[str, AnyDirections] | None = None,
    map_units: MapUnits = map,
) -> dict[str, SweepSet]:
    """List what one sweep steers with: the behaviors' directions, learned ones, random ones.

    Args:
        store: of pairs.
        directions: the difference of means of every behavior.
        config: the settings: how many controls, and on how many rows.
        others: learned or given directions by name of the set; in the order of the file.
        map_units: runs the groups of `store_moments`.
    """
    controls = _random(directions, config)
    steered: dict[str, AnyDirections] = {METHOD: directions, **(others or {})}
    for number, split in enumerate(splits_of(store, config)[1:], start=1):
        steered[split_set(number)] = pair_directions(store, rows=split.train, map_units=map_units)
    return {
        name: SweepSet(
            directions=row_directions(store, (steered | controls)[name], name=name),
            rows=rows,
            control=name in controls,
        )
        for name, rows in rows_of_sets(store, config, list(others or {})).items()
    }


def rows_of_sets(
    store: Store, config: AnalyzeConfig, others: Sequence[str] = ()
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Say which rows each set of `sets_of_analysis` steers, before there are directions."""
    read = rows_read(store, config)
    rows = {METHOD: read, **dict.fromkeys(others, read)}
    for number, split in enumerate(splits_of(store, config)[1:], start=1):
        rows[split_set(number)] = np.ones(store.n, bool) if config.all_rows else split.rows
        if OWN_DIFFERENCE in rows:  # no split changes these vectors
            rows[OWN_DIFFERENCE] = rows[OWN_DIFFERENCE] | split.rows
    few = control_rows(store, read, config)
    return rows | dict.fromkeys(map(control_set, range(config.controls)), few)


def rows_read(store: Store, config: AnalyzeConfig) -> Bool[np.ndarray, " n"]:
    """Find the rows that a figure reads; with `all_rows` all rows."""
    if config.all_rows:
        return np.ones(store.n, bool)
    base_train = (store["split"] == "train") & (store["variant"] == "base")
    return np.asarray(base_train | (store["split"] == "test"))


def control_rows(
    store: Store, read: Bool[np.ndarray, " n"], config: AnalyzeConfig
) -> Bool[np.ndarray, " n"]:
    """Choose the rows that random directions steer, of those that a figure `read`s.

    All train rows, so that their layers are chosen as well as those of other sets; of the test rows
    of each behavior and framing `control_rows`, drawn at random.
    """
    test = store["split"] == "test"
    if config.all_rows:
        return read
    chosen = read & ~test
    rng = np.random.default_rng([config.seed, _STREAM])
    for behavior in np.unique(store["behavior"]):
        for variant in np.unique(store["variant"]):
            rows = (store["behavior"] == behavior) & (store["variant"] == variant)
            drawn = rng.permutation(np.flatnonzero(read & test & rows))[: config.control_rows]
            chosen[drawn] = True
    return np.asarray(chosen)


_STREAM = 3
"""Keeps these draws apart from others of the same seed."""


def _random(directions: Directions, config: AnalyzeConfig) -> dict[str, Directions]:
    """Random directions of every behavior, of the same lengths, by name of the set."""
    rng = np.random.default_rng(config.seed)
    random = np.stack(  # [behavior, control, layer, d_model]
        [random_directions(values, rng, count=config.controls) for values in directions.values]
    )
    return {
        control_set(i): replace(directions, values=random[:, i]) for i in range(config.controls)
    }
