"""The stage `layers`: which layers and norm outputs tell two classes apart."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    Directions,
    label_codes,
    label_groups,
    prompt_position,
)
from actcache.analysis.directions.discriminative import LayerScores, layer_scores, project
from actcache.analysis.directions.planes import Plane, find_plane
from actcache.analysis.directions.shard_groups import BATCH_ROWS
from actcache.analysis.stats.units import MapUnits
from actcache.store.store import Store


def find_planes(
    store: Store,
    names: Sequence[str],
    labels: tuple[str, str] | None,
    train: Bool[np.ndarray, " n"],
    config: AnalyzeConfig,
    *,
    map_units: MapUnits = map,
) -> dict[str, Plane]:
    """The plane of each behavior, or of two labels, on train samples."""
    groups = (
        label_groups(store, labels, pooled=config.pooled)
        if labels
        else {name: store["behavior"] == name for name in names}
    )
    find = partial(
        _find_plane,
        store,
        labels=labels,
        position=prompt_position(store, config.position) if labels else "prompt",
        normalize=config.normalize,
    )
    planes = map_units(find, [train & groups[name] for name in names])
    return dict(zip(names, planes, strict=True))


def _find_plane(store: Store, rows: Bool[np.ndarray, " n"], **settings: Any) -> Plane:
    return find_plane(store, rows=rows, **settings)


def score_layers(
    store: Store,
    directions: Directions,
    labels: tuple[str, str],
    train: Bool[np.ndarray, " n"],
    config: AnalyzeConfig,
    *,
    map_units: MapUnits = map,
) -> dict[str, LayerScores]:
    """Discriminative layers and their scores, on the samples that made no direction.

    Or on those that did, as the method's equation 9 has it.
    """
    code = label_codes(store, labels)
    groups = label_groups(store, labels, pooled=config.pooled)
    read = (train if config.on_calibration else store["split"] != "train") & (code >= 0)
    score = partial(_score_layers, store, code=code, config=config)
    units = [(directions[name], read & groups[name]) for name in directions.names]
    return dict(zip(directions.names, map_units(score, units), strict=True))


def _score_layers(
    store: Store,
    unit: tuple[Float32[np.ndarray, "layer d_model"], Bool[np.ndarray, " n"]],
    *,
    code: Int64[np.ndarray, " n"],
    config: AnalyzeConfig,
) -> LayerScores:
    """Score one direction on the rows of its behavior."""
    values, scored = unit
    residuals = store.resid(prompt_position(store, config.position))
    batches = residuals.batches(rows=BATCH_ROWS, select=scored)
    return layer_scores(
        project((resid for _, resid in batches), values),
        1 - code[scored],  # 1 is the positive class
        rng=np.random.default_rng(config.seed),
        normalize=config.normalize,
        draws=config.draws,
    )
