"""The stage `layers`: which layers and norm outputs tell two classes apart."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

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
from actcache.store.store import Store


def find_planes(
    store: Store,
    names: Sequence[str],
    labels: tuple[str, str] | None,
    train: Bool[np.ndarray, " n"],
    config: AnalyzeConfig,
) -> dict[str, Plane]:
    """The plane of each behavior, or of two labels, on train samples."""
    groups = (
        label_groups(store, labels, pooled=config.pooled)
        if labels
        else {name: store["behavior"] == name for name in names}
    )
    return {
        name: find_plane(
            store,
            rows=train & groups[name],
            labels=labels,
            position=prompt_position(store, config.position) if labels else "prompt",
            normalize=config.normalize,
        )
        for name in names
    }


def score_layers(
    store: Store,
    directions: Directions,
    labels: tuple[str, str],
    train: Bool[np.ndarray, " n"],
    config: AnalyzeConfig,
) -> dict[str, LayerScores]:
    """Discriminative layers and their scores, on the samples that made no direction.

    Or on those that did, as the method's equation 9 has it.
    """
    code = label_codes(store, labels)
    groups = label_groups(store, labels, pooled=config.pooled)
    residuals = store.resid(prompt_position(store, config.position))
    read = (train if config.on_calibration else store["split"] != "train") & (code >= 0)
    scores = {}
    for name, values in zip(directions.names, directions.values, strict=True):
        scored = read & groups[name]
        batches = residuals.batches(rows=BATCH_ROWS, select=scored)
        scores[name] = layer_scores(
            project((resid for _, resid in batches), values),
            1 - code[scored],  # 1 is the positive class
            rng=np.random.default_rng(config.seed),
            normalize=config.normalize,
            draws=config.draws,
        )
    return scores
