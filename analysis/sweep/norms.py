"""Direction sets brought to one norm a layer, so that a slope compares directions, not lengths."""

from collections.abc import Mapping
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from actcache.analysis.directions.difference_of_means import unit
from actcache.analysis.directions.shard_groups import BATCH_ROWS
from actcache.analysis.stats.units import MapUnits
from actcache.conventions import Norm
from actcache.store.store import Store


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
