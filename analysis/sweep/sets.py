"""The direction sets of an analysis: one sweep steers with all of them, each on rows of its own.

Figures read the slopes of base train samples, which choose layers, and of test samples of every
framing. Other rows are not swept. Random directions are there to be compared with, so a part of
those rows is enough for them. What is to be swept beside these is one more entry of
`sets_of_analysis`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import Directions, random_directions
from actcache.analysis.names import METHOD, control_set
from actcache.analysis.sweep.row_directions import AnyDirections, RowDirections, row_directions
from actcache.store.store import Store

CONTROL_SHARE = 4
"""Random directions steer one in so many of the rows that a figure reads, …"""

CONTROL_LEAST = 64
"""… or this many of each behavior, framing and split, where that is more."""


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
) -> dict[str, SweepSet]:
    """List what one sweep steers with: the behaviors' directions, learned ones, random ones.

    Args:
        store: of pairs.
        directions: the difference of means of every behavior.
        config: the settings: how many controls, and on how many rows.
        others: learned or given directions by name of the set; in the order of the file.
    """
    read = rows_read(store, config)
    steered: dict[str, AnyDirections] = {METHOD: directions, **(others or {})}
    sets = {
        name: SweepSet(directions=row_directions(store, given, name=name), rows=read)
        for name, given in steered.items()
    }
    few = control_rows(store, read, config)
    for name, values in _random(directions, config).items():
        sets[name] = SweepSet(
            directions=row_directions(store, values, name=name), rows=few, control=True
        )
    return sets


def rows_of_sets(
    store: Store, config: AnalyzeConfig, others: Sequence[str] = ()
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Say which rows each set of `sets_of_analysis` steers, before there are directions."""
    read = rows_read(store, config)
    few = control_rows(store, read, config)
    controls = dict.fromkeys(map(control_set, range(config.controls)), few)
    return {METHOD: read, **dict.fromkeys(others, read), **controls}


def rows_read(store: Store, config: AnalyzeConfig) -> Bool[np.ndarray, " n"]:
    """Find the rows that a figure reads; with `all_rows` all rows."""
    if config.all_rows:
        return np.ones(store.n, bool)
    base_train = (store["split"] == "train") & (store["variant"] == "base")
    return np.asarray(base_train | (store["split"] == "test"))


def control_rows(
    store: Store, read: Bool[np.ndarray, " n"], config: AnalyzeConfig
) -> Bool[np.ndarray, " n"]:
    """Draw the rows that random directions steer, apart in each behavior, framing and split."""
    columns = [store[name].tolist() for name in ("behavior", "variant", "split")]
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, group in enumerate(zip(*columns, strict=True)):
        if read[row]:
            groups.setdefault(group, []).append(row)
    rng = np.random.default_rng([config.seed, _STREAM])
    drawn = np.zeros(store.n, bool)
    for rows in groups.values():
        usual = max(CONTROL_LEAST, -(-len(rows) // CONTROL_SHARE))
        count = config.control_rows or (len(rows) if config.all_rows else usual)
        drawn[rng.permutation(rows)[:count]] = True
    return drawn


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
