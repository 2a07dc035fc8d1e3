"""What lies in a results folder: which arrays, which pictures, which numbers, under which names.

Called by `analyze`, which decides what is computed; how a file is written safely is `results`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from actcache.analysis.directions.difference_of_means import Directions, unit
from actcache.analysis.report.plots import plot_grid, plot_steerability
from actcache.analysis.results import plain, write_arrays, write_aside, write_tensors
from actcache.analysis.stats.slopes import fit_quality, slopes
from actcache.analysis.sweep.steerability import Steerability
from actcache.errors import FormatError
from actcache.identity import IDENTITY, require_same
from actcache.store.store import Store

METHOD = "difference_of_means"
"""What the behaviors' own directions are called in files."""

CONTROL = "random"
"""What random directions are called; further sets are `random_1`, …"""


SAME = ("data_sha256", "tokenizer")
"""Besides the model's identity and the shape, what a results folder's store must agree on."""


def require_same_store(out: Path, store: Store) -> None:
    """Is what lies in a folder of this store? Asked before anything in it is replaced.

    Raises:
        MismatchError: it is of another; names what differs.
        FormatError: `summary.json` is no document of ours.
    """
    path = out / "summary.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["store"]
        found, stored = _identity(plain(store.provenance)), _identity(before["provenance"])
        shape = {name: before[name] for name in ("n", "n_layers", "d_model")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(
            f"'{path}' is not what analyze writes, expected its summary. Choose another folder "
            "with -o, or pass --overwrite."
        ) from None
    require_same(
        {"n": store.n, "n_layers": store.n_layers, "d_model": store.d_model, **found},
        {**shape, **stored},
        what=f"'{store.path}' and the store that the results in '{out}' are of",
        remedy="Choose another folder with -o, or pass --overwrite.",
    )


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    model = provenance["model"]
    return {
        **{name: provenance.get(name) for name in SAME},
        "model": {name: model.get(name) for name in IDENTITY},
    }


def write_vectors(out: Path, store: Store, found: Directions) -> dict[str, Any]:
    """`directions.safetensors` (as they are and of norm 1) and `moments.npz`.

    Returns:
        For the summary: samples of both sides and the direction's norm at each layer, by name.
    """
    tensors = {}
    for name, values in zip(found.names, found.values, strict=True):
        tensors[f"{name}/{METHOD}"] = values
        tensors[f"{name}/{METHOD}_unit"] = unit(values)
    about = {
        "layer": "output of the decoder block, from 0",
        "weights_sha256": str(store.provenance["model"]["weights_sha256"]),
        "model": str(store.provenance["model"]["name"]),
    }
    write_tensors(out / "directions.safetensors", tensors, about=about)
    moments = found.moments
    classes = [f"{name}/{side}" for name in found.names for side in ("positive", "negative")]
    write_arrays(
        out / "moments.npz",
        {
            "class": np.array(classes),
            "count": moments.count,
            "mean": moments.mean,
            "scatter": moments.scatter,
        },
    )
    norms = np.linalg.norm(found.values.astype(np.float64), axis=-1)
    counts = moments.count.reshape(-1, 2)
    return {
        name: {"n_positive": int(p), "n_negative": int(q), "norm": norm.tolist()}
        for name, (p, q), norm in zip(found.names, counts, norms, strict=True)
    }


def write_steerability(
    out: Path,
    store: Store,
    swept: Store,
    results: Mapping[str, Steerability],
    controls: Sequence[str],
) -> None:
    """`steerability.npz`: slopes of every sample, how good the fits are, and the best layers.

    Args:
        out: the folder.
        store: whose samples they are.
        swept: the sweep's results.
        results: what `summarize` found, by behavior, or `behavior@variant`.
        controls: names of the random direction sets.
    """
    any_result = next(iter(results.values()))
    own = swept.array(f"{METHOD}/propensity")[:]
    layers = np.asarray(swept["layer"])
    arrays: dict[str, np.ndarray] = {
        "id": np.asarray(store["id"], dtype=str),
        "behavior": np.asarray(store["behavior"], dtype=str),
        "variant": np.asarray(store["variant"], dtype=str),
        "split": np.asarray(store["split"], dtype=str),
        "letter": np.asarray(store["letter"], dtype=str),
        "layer": layers,
        "multiplier": np.asarray(swept["multiplier"]),
        "slope": any_result.slope,
        **asdict(fit_quality(own, swept["multiplier"])),
        "oracle_layer": layers[any_result.oracle_layer],
    }
    if any_result.crossfit_layer is not None:
        arrays["crossfit_layer"] = layers[any_result.crossfit_layer]
    for name in controls:
        propensity = swept.array(f"{name}/propensity")[:]
        arrays[f"{name}/slope"] = slopes(propensity, swept["multiplier"])
    for behavior, each in results.items():
        arrays[f"{behavior}/fixed_layer"] = layers[each.choice.fixed_layer]
        if "@" not in behavior:
            mine = store["behavior"] == behavior
            arrays[f"{behavior}/oracle_layer"] = layers[each.oracle_layer[mine]]
            if each.crossfit_layer is not None:
                arrays[f"{behavior}/crossfit_layer"] = layers[each.crossfit_layer[mine]]
    write_arrays(out / "steerability.npz", arrays)


def draw(
    out: Path,
    results: Mapping[str, Steerability],
    mean: Mapping[str, Float[np.ndarray, "layer m"]],
    multipliers: Float[np.ndarray, " m"],
    *,
    layers: Sequence[int],
    unit: str,
) -> None:
    """The two pictures: steerability by layer with its interval, and layer × multiplier."""
    base = {name: each for name, each in results.items() if "@" not in name}
    write_aside(
        out / "steerability.png",
        lambda path: plot_steerability(
            path,
            {name: each.choice for name, each in base.items()},
            control=[control for each in base.values() for control in each.control[:1]],
            layers=layers,
            unit=f"{unit} per unit multiplier",
        ),
    )
    fixed = {name: each.choice.fixed_layer for name, each in base.items()}
    write_aside(
        out / "grid.png",
        lambda path: plot_grid(
            path, mean, multipliers, layers=layers, fixed_layers=fixed, unit=unit
        ),
    )


def numbers(found: Steerability, layers: Sequence[int]) -> dict[str, Any]:
    """What the tables show of one behavior; layers by their own number, not by their place."""

    def named(choice: dict[str, Any]) -> dict[str, Any]:
        for key in ("fixed_layer", "best_on_test_layer"):
            choice[key] = layers[choice[key]]
        return choice

    at = found.choice.fixed_layer
    return {
        **named(plain(found.choice)),
        "control_at_fixed": {
            "slope": [float(each.mean[at]) for each in found.control],
            "share": [float(each.share_steerable[at]) for each in found.control],
        },
        "by_letter": {letter: named(plain(each)) for letter, each in found.by_letter.items()},
        "control": [named(plain(each)) for each in found.control],
        "comparison": plain(found.comparison),
        "exceeds": found.exceeds,
        "verdict": found.verdict,
        "letter_warning": found.letter_warning,
    }


def remove_results(out: Path) -> None:
    """Remove what `analyze` left in a folder, and nothing else."""
    for name in ("sweep.zarr", "sweep.zarr.partial", "predictors"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (
        *("summary.json", "directions.safetensors", "moments.npz", "steerability.npz"),
        *("steerability.png", "grid.png", "layers.png"),
        *("predictors.npz", "tables.md", "embeddings.png"),
    ):
        (out / name).unlink(missing_ok=True)
