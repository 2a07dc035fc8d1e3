"""Direction sets beside the difference of means: fitted by other methods, or read from files.

They are brought to one norm a layer, so that a slope compares directions, not lengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import Directions, unit
from actcache.analysis.directions.fitting.methods import fit_directions
from actcache.analysis.directions.shard_groups import BATCH_ROWS
from actcache.analysis.stats.units import MapUnits
from actcache.analysis.sweep.direction_files import read_direction_sets
from actcache.analysis.sweep.row_directions import RowDirections, shared_directions
from actcache.conventions import Norm
from actcache.store.store import Store

ByBehavior = Mapping[str, Float32[np.ndarray, "layer d_model"]]

MEAN = "mean"
"""The method that gives the difference of means itself."""


def fit_pairs(
    store: Store, config: AnalyzeConfig, *, map_units: MapUnits = map
) -> dict[str, dict[str, np.ndarray]]:
    """Fit the directions of pairs by every method of the settings but `mean`.

    The rows are the answer tokens of the positive and of the negative completions, base rows alone.
    `map_units` runs the behaviors.

    Returns:
        Method to behavior to its unit directions `[layer, d_model]`.
    """
    methods = _methods(config)
    fitted: dict[str, dict[str, np.ndarray]] = {method: {} for method in methods}
    if not methods:
        return fitted
    behaviors = list(dict.fromkeys(store["behavior"].tolist()))
    fit = partial(_fit_behavior, store, methods=methods, draws=config.draws)
    for behavior, of_behavior in zip(behaviors, map_units(fit, behaviors), strict=True):
        for method, values in of_behavior.items():
            fitted[method][behavior] = values
    return fitted


def _methods(config: AnalyzeConfig) -> list[str]:
    return [method for method in config.methods if method != MEAN]


def _fit_behavior(
    store: Store, behavior: str, *, methods: Sequence[str], draws: int
) -> dict[str, Float32[np.ndarray, "layer d_model"]]:
    """Fit the directions of one behavior, by method."""
    rows = np.flatnonzero((store["behavior"] == behavior) & (store["variant"] == "base"))
    split = np.tile(store["split"][rows], 2)
    fitted = fit_directions(
        _both_sides(store, rows),
        np.repeat([1.0, 0.0], len(rows)),
        train=split == "train",
        validation=split == "validation",
        pairs=np.tile(np.arange(len(rows)), 2),
        methods=methods,
        draws=draws,
    )
    return {method: fit.values for method, fit in fitted.items()}


def _both_sides(store: Store, rows: np.ndarray) -> Iterator[Float32[np.ndarray, "n d_model"]]:
    sides = [store.resid(position) for position in ("positive", "negative")]
    for layer in range(store.n_layers):
        values = [np.asarray(side[rows, layer], np.float32) for side in sides]
        yield np.concatenate(values)


def tensors_of(fitted: Mapping[str, ByBehavior]) -> dict[str, np.ndarray]:
    """Name what `fit_pairs` returned as a results folder does: `<behavior>/<method>`."""
    return {
        f"{behavior}/{method}": values
        for method, by_behavior in fitted.items()
        for behavior, values in by_behavior.items()
    }


def given_names(store: Store, config: AnalyzeConfig) -> list[str]:
    """Name the sets of `given_sets`, in order; files are read, and nothing is fitted.

    Raises:
        MismatchError: a file does not hold directions for the store.
        NotFiniteError: a direction is infinite or not a number.
    """
    return [*_methods(config), *_sets_of_files(store, config)]


def _sets_of_files(store: Store, config: AnalyzeConfig) -> dict[str, ByBehavior]:
    """Read the files' sets, under names that no other set of the sweep has."""
    taken = {*_methods(config), *store["behavior"].tolist()}
    sets: dict[str, ByBehavior] = {}
    for given in read_direction_sets(config.directions, store):
        name = given.name if given.name not in (*taken, *sets) else f"file-{given.name}"
        sets[_set_name(name)] = given.values
    return sets


def given_sets(
    store: Store,
    directions: Directions,
    *,
    config: AnalyzeConfig,
    fitted: Mapping[str, ByBehavior],
    train: Bool[np.ndarray, " n"],
    map_units: MapUnits = map,
) -> tuple[Directions, dict[str, RowDirections]]:
    """Bring the sets to sweep beside the difference of means to one norm a layer.

    Args:
        store: of pairs.
        directions: the difference of means of every behavior.
        config: its files and the norm.
        fitted: what `fit_pairs` returned.
        train: samples whose residuals the norm `residual` reads.
        map_units: runs the behaviors of that norm.

    Returns:
        The difference of means as it is to be swept, and the other sets by name.
    """
    sets: dict[str, ByBehavior] = {**fitted, **_sets_of_files(store, config)}
    if not sets:
        return directions, {}
    means = {name: directions[name] for name in directions.names}
    norms = norms_of(store, means, norm=config.norm, rows=train, map_units=map_units)
    if norms is not None:
        if config.norm == "residual":
            values = [scaled(means[name], norms[name]) for name in directions.names]
            directions = replace(directions, values=np.stack(values))
        sets = {name: _scaled(values, norms) for name, values in sets.items()}
    names = list(means)
    of = np.array([names.index(behavior) for behavior in store["behavior"].tolist()], np.int64)
    return directions, {
        name: shared_directions(np.stack([values[behavior] for behavior in names]), of)
        for name, values in sets.items()
    }


def _scaled(
    values: ByBehavior, norms: Mapping[str, Float64[np.ndarray, " layer"]]
) -> dict[str, Float32[np.ndarray, "layer d_model"]]:
    return {behavior: scaled(layers, norms[behavior]) for behavior, layers in values.items()}


def _set_name(name: str) -> str:
    """A set from a file never has the name of one that every sweep has."""
    taken = name == "difference_of_means" or name.partition("_")[0] == "random"
    return f"file-{name}" if taken else name


def scaled(
    values: Float[np.ndarray, "layer d_model"], norm: Float[np.ndarray, " layer"]
) -> Float32[np.ndarray, "layer d_model"]:
    """Give each layer's direction a norm; a zero direction stays zero."""
    wide = np.asarray(values, np.float64)
    return np.asarray(unit(wide) * np.asarray(norm)[:, None], np.float32)


def norms_of(
    store: Store,
    directions: Mapping[str, Float[np.ndarray, "layer d_model"]],
    *,
    norm: Norm,
    rows: Bool[np.ndarray, " n"],
    map_units: MapUnits = map,
) -> dict[str, Float64[np.ndarray, " layer"]] | None:
    """Say how long directions are to be in each layer, for each behavior; None to leave them.

    Args:
        store: of pairs.
        directions: each behavior's difference of means.
        norm: `caa`, its norm; `residual`, the mean norm of the residuals at the answer tokens;
            `raw`, as they are.
        rows: samples whose residuals count, such as the train split.
        map_units: runs the behaviors of the norm `residual`.
    """
    if norm == "raw":
        return None
    if norm == "caa":
        return {
            name: np.linalg.norm(np.asarray(values, np.float64), axis=-1)
            for name, values in directions.items()
        }
    of_behavior = [rows & (store["behavior"] == name) for name in directions]
    norms = map_units(partial(_mean_norm, store), of_behavior)
    return dict(zip(directions, norms, strict=True))


def _mean_norm(store: Store, rows: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " layer"]:
    total, count = np.zeros(store.n_layers), 0
    for position in ("positive", "negative"):
        for _, values in store.resid(position).batches(rows=BATCH_ROWS, select=rows):
            wide = np.asarray(values, np.float64)
            total += np.linalg.norm(wide, axis=-1).sum(0)
            count += len(wide)
    return np.asarray(total / max(count, 1))
