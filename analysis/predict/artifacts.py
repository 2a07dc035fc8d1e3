"""Arrays that the stage `predictors` leaves: slopes, selected layers, prompts in the plane."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actcache.analysis.files import write_arrays
from actcache.analysis.predict.embedding_space import Projection, project_to_plane
from actcache.analysis.predict.selections import LayerSelections
from actcache.encoders import Embeddings
from actcache.store.store import Store


def write_selections(
    out: Path,
    store: Store,
    by_set: Mapping[str, Mapping[str, LayerSelections]],
    layers: Sequence[int],
    plane: Projection | None,
) -> None:
    """Write `predictors.npz`: slopes of each set, and the layer that each training predicts a row.

    Selections are by direction set and behavior; `layers` has the number of each layer.
    """
    number = np.array(layers)
    arrays: dict[str, np.ndarray] = {
        name: np.asarray(store[name], dtype=str) for name in ("id", "behavior", "variant", "split")
    }
    arrays["layer"] = number
    for name, behaviors in by_set.items():
        first = next(iter(behaviors.values()))
        slope = np.empty((store.n, len(layers)))
        fixed = np.empty(store.n, np.int64)
        predicted = {
            strategy: np.empty((len(places), store.n), np.int64)
            for strategy, places in first.predicted.items()
        }
        for selections in behaviors.values():
            at = selections.rows.at
            slope[at], fixed[at] = selections.slopes.slope, selections.fixed
            for strategy, places in selections.predicted.items():
                predicted[strategy][:, at] = places
        arrays[f"{name}/slope"] = slope
        arrays[f"{name}/fixed_layer"] = number[fixed]
        arrays |= {
            f"{name}/{strategy}/layer": number[places] for strategy, places in predicted.items()
        }
    if plane is not None:
        arrays["plane"] = plane.points
    write_arrays(out / "predictors.npz", arrays)


def embedding_plane(store: Store, embeddings: Embeddings, *, seed: int) -> Projection:
    """Project base prompts to the plane; other rows of the store are NaN."""
    base = store["variant"] == "base"
    projection = project_to_plane(embeddings.values[base], seed=seed)
    points = np.full((store.n, 2), np.nan, np.float32)
    points[base] = projection.points
    return replace(projection, points=points)
