"""What the stage `predictors` leaves beside its tables: choices as arrays, prompts as a picture.

Refuses to know how choices were made.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from actcache.analysis.predict.embedding_space import project_to_plane
from actcache.analysis.predict.selections import Chosen
from actcache.analysis.report.plots import plot_embeddings
from actcache.analysis.results import write_arrays, write_aside
from actcache.encoders import Embeddings
from actcache.store.store import Store


def write_choices(
    out: Path, store: Store, kinds: Mapping[str, Mapping[str, Chosen]], layers: list[int]
) -> None:
    """`predictors.npz`: slopes of each kind, and the layer that each training predicts per row."""
    number = np.array(layers)
    arrays: dict[str, np.ndarray] = {
        name: np.asarray(store[name], dtype=str) for name in ("id", "behavior", "variant", "split")
    }
    arrays["layer"] = number
    for kind, found in kinds.items():
        any_of = next(iter(found.values()))
        slope = np.empty((store.n, len(layers)))
        places = {
            name: np.empty((len(each), store.n), np.int64) for name, each in any_of.places.items()
        }
        fixed = np.empty(store.n, np.int64)
        for each in found.values():
            slope[each.rows.at] = each.slopes.slope
            fixed[each.rows.at] = each.fixed
            for name, chosen in each.places.items():
                places[name][:, each.rows.at] = chosen
        arrays[f"{kind}/slope"] = slope
        arrays[f"{kind}/fixed_layer"] = number[fixed]
        arrays |= {f"{kind}/{name}/layer": number[each] for name, each in places.items()}
    write_arrays(out / "predictors.npz", arrays)


def draw_embeddings(out: Path, store: Store, found: Embeddings, *, seed: int) -> None:
    """`embeddings.png`: base prompts in the plane, by behavior."""
    base = store["variant"] == "base"
    plane = project_to_plane(found.values[base], seed=seed)
    behaviors = store["behavior"][base]
    write_aside(
        out / "embeddings.png",
        lambda path: plot_embeddings(path, plane, behaviors, encoder=found.name),
    )
