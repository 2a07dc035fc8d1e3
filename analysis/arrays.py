"""Arrays of the results folder: directions, their moments, slopes and best layers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actcache.analysis.directions.difference_of_means import Directions, unit
from actcache.analysis.files import write_arrays, write_tensors
from actcache.analysis.names import METHOD
from actcache.analysis.stats.slopes import fit_quality
from actcache.analysis.summary import VectorSummary
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.steerability import Steerability
from actcache.store.store import Store


def write_vectors(out: Path, store: Store, directions: Directions) -> dict[str, VectorSummary]:
    """Write `directions.safetensors` (as they are and of norm 1) and `moments.npz`."""
    tensors = {}
    for name, values in zip(directions.names, directions.values, strict=True):
        tensors[f"{name}/{METHOD}"] = values
        tensors[f"{name}/{METHOD}_unit"] = unit(values)
    about = {
        "layer": "output of the decoder block, from 0",
        "weights_sha256": str(store.provenance["model"]["weights_sha256"]),
        "model": str(store.provenance["model"]["name"]),
    }
    write_tensors(out / "directions.safetensors", tensors, about=about)
    moments = directions.moments
    classes = [f"{name}/{side}" for name in directions.names for side in ("positive", "negative")]
    write_arrays(
        out / "moments.npz",
        {
            "class": np.array(classes),
            "count": moments.count,
            "mean": moments.mean,
            "scatter": moments.scatter,
        },
    )
    norms = np.linalg.norm(directions.values.astype(np.float64), axis=-1)
    counts = moments.count.reshape(-1, 2)
    return {
        name: VectorSummary(n_positive=int(p), n_negative=int(q), norm=tuple(norm.tolist()))
        for name, (p, q), norm in zip(directions.names, counts, norms, strict=True)
    }


def write_steerability(
    out: Path,
    store: Store,
    sweep: Sweep,
    results: Mapping[str, Steerability],
    controls: Sequence[str],
) -> None:
    """Write `steerability.npz`: slopes of every sample, how good the fits are, the best layers.

    Args:
        out: the folder.
        store: whose samples they are.
        sweep: of the store.
        results: of `summarize`, by behavior, or `behavior@variant`.
        controls: names of the random direction sets.
    """
    first = next(iter(results.values()))
    layers = sweep.layers
    names = ("id", "behavior", "variant", "split", "letter")
    arrays: dict[str, np.ndarray] = {
        **{name: np.asarray(store[name], dtype=str) for name in names},
        "layer": layers,
        "multiplier": sweep.multipliers,
        "slope": first.slope,
        **asdict(fit_quality(sweep.propensity, sweep.multipliers)),
        "oracle_layer": layers[first.oracle_layer],
    }
    if first.cross_fitted_layer is not None:
        arrays["crossfit_layer"] = layers[first.cross_fitted_layer]
    for name in controls:
        arrays[f"{name}/slope"] = sweep.slopes(name)
    for behavior, steerability in results.items():
        arrays[f"{behavior}/fixed_layer"] = np.asarray(steerability.scores.fixed_layer)
        if "@" not in behavior:
            rows = store["behavior"] == behavior
            arrays[f"{behavior}/oracle_layer"] = layers[steerability.oracle_layer[rows]]
            if steerability.cross_fitted_layer is not None:
                chosen = steerability.cross_fitted_layer[rows]
                arrays[f"{behavior}/crossfit_layer"] = layers[chosen]
    write_arrays(out / "steerability.npz", arrays)
