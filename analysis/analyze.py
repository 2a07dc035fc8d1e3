"""From a store to a results folder: vectors, layers, sweep, and what they say.

Stages run in order and each reads what the ones before it gave. `sweep` alone needs the model, and
only then is torch imported. See README for what lies in the folder.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from actcache.analysis.directions import random_directions, unit
from actcache.analysis.layers import LayerScores, layer_scores, project
from actcache.analysis.plots import plot_grid, plot_layers, plot_steerability
from actcache.analysis.results import plain, write_arrays, write_aside, write_json, write_tensors
from actcache.analysis.steerability import Steerability, summarize
from actcache.analysis.vectors import (
    BATCH_ROWS,
    Directions,
    label_codes,
    label_directions,
    pair_directions,
    two_labels,
)
from actcache.errors import ActcacheError, MismatchError
from actcache.presets import NAMES, NONE
from actcache.store import Store

if TYPE_CHECKING:  # torch comes in with these
    from actcache.model import LanguageModel
    from actcache.steering import SteeringRule

STAGES = ("vectors", "layers", "sweep")
METHOD = "difference_of_means"
CONTROL = "random"

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a bar of a title and a total; what it yields moves the bar on."""


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """The settings of one analysis; recorded with its results."""

    stages: Sequence[str] = STAGES
    """Of `STAGES`. Labelled prompts have no sweep, pairs no discriminative layers."""

    multipliers: Sequence[float] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    """Factors λ on the directions."""

    first_steered: str = "fork"
    """First token that is steered; see `actcache.steering`."""

    score: str = "letter"
    """What propensity is made of; see `actcache.steering`."""

    preset: str = NONE
    """Whose conventions these are. It sets nothing here; `presets.sweep_settings` does."""

    layers: Sequence[int] | None = None
    """Layers that the sweep steers; all by default."""

    labels: Sequence[str] | None = None
    """The positive and the negative label, where the data has more than two or another order."""

    normalize: bool = False
    """Project residuals of norm 1 for discriminative layers, as Selective Steering's code does."""

    controls: int = 1
    """Sets of random directions, as long as the behaviors' own, that are swept beside them."""

    draws: int = 1000
    """Bootstrap draws of every interval."""

    batch_tokens: int = 8192
    """Tokens in a pass of the sweep, joined rows included."""

    seed: int = 0
    """Of random directions and bootstrap."""

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise ActcacheError(
                f"stages are {list(self.stages)}, expected some of {', '.join(STAGES)}. "
                "Pass them separated by commas."
            )
        if self.preset not in NAMES:
            raise ActcacheError(
                f"preset is '{self.preset}', expected {', '.join(NAMES)}. Pass one of them."
            )
        if len(set(self.multipliers)) != len(self.multipliers) or len(self.multipliers) < 2:
            raise ActcacheError(
                f"multipliers are {list(self.multipliers)}, expected two or more, each once. "
                "Pass START:STOP:STEP or a list, for example -1.5:1.5:0.5."
            )


def analyze(
    store: Store,
    out: str | Path,
    *,
    config: AnalyzeConfig,
    model: "Callable[[], LanguageModel] | None" = None,
    progress: Progress,
) -> dict[str, Any]:
    """Run the stages and write the results folder.

    Args:
        store: a finished store of residuals.
        out: the folder; made if it is not there. A sweep of the same settings in it is reused, one
            that was interrupted is gone on with.
        config: the settings.
        model: gives the model that the store was built with; called only if a sweep must run.
        progress: shows long loops.

    Returns:
        The summary, as `summary.json` holds it.

    Raises:
        MismatchError: the store is no store of residuals, lacks what a stage reads, or the folder
            holds a sweep of other settings.
    """
    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals. Pass what build wrote."
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paired = not any(store["label"].tolist())
    summary: dict[str, Any] = {
        "store": {
            "path": str(store.path),
            "n": store.n,
            "n_layers": store.n_layers,
            "d_model": store.d_model,
            "provenance": store.provenance,
            "certificate": store.certificate,
        },
        "config": plain(config),
    }
    train = (store["split"] == "train") & (store["variant"] == "base")
    if paired:
        found = pair_directions(store, rows=train)
    else:
        labels = two_labels(store, config.labels)
        found = label_directions(store, rows=train, labels=labels)
    if "vectors" in config.stages:
        summary["vectors"] = _write_vectors(out, store, found)
    if "layers" in config.stages and not paired:
        scores = _layers(store, found, labels, config)
        summary["layers"] = {found.names[0]: plain(scores)}
        write_aside(
            out / "layers.png",
            lambda path: plot_layers(path, scores, positive=labels[0], negative=labels[1]),
        )
    if "sweep" in config.stages and paired:
        summary["sweep"] = _sweep(out, store, found, train, config, model, progress)
    write_json(out / "summary.json", summary)
    return summary


def _write_vectors(out: Path, store: Store, found: Directions) -> dict[str, Any]:
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


def _layers(
    store: Store, found: Directions, labels: tuple[str, str], config: AnalyzeConfig
) -> LayerScores:
    """Discriminative layers and their scores, on the samples that made no direction."""
    code = label_codes(store, labels)
    held_out = (store["split"] != "train") & (code >= 0)
    batches = store.resid("prompt").batches(rows=BATCH_ROWS, select=held_out)
    projections = project((resid for _, resid in batches), found.values[0])
    return layer_scores(
        projections,
        1 - code[held_out],  # 1 is the positive class
        rng=np.random.default_rng(config.seed),
        normalize=config.normalize,
        draws=config.draws,
    )


def _sweep(
    out: Path,
    store: Store,
    found: Directions,
    train: Bool[np.ndarray, " n"],
    config: AnalyzeConfig,
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
) -> dict[str, Any]:
    from actcache.steering import SteeringRule

    rule = SteeringRule(first_steered=config.first_steered, score=config.score)
    swept = _swept(out, store, found, config, rule, model, progress)
    multipliers = swept["multiplier"]
    names = [CONTROL if i == 0 else f"{CONTROL}_{i}" for i in range(config.controls)]
    own = swept.array(f"{METHOD}/propensity")[:]
    control = np.stack([swept.array(f"{name}/propensity")[:] for name in names]) if names else None
    layers = swept["layer"].tolist()

    results: dict[str, Steerability] = {}
    for behavior in found.names:
        for variant in dict.fromkeys(store["variant"].tolist()):
            mine = store["behavior"] == behavior
            tested = mine & (store["variant"] == variant) & (store["split"] == "test")
            if not tested.any():
                continue
            results[behavior if variant == "base" else f"{behavior}@{variant}"] = summarize(
                own,
                multipliers,
                train=train & mine,
                test=tested,
                rng=np.random.default_rng(config.seed),
                letters=store["letter"],
                control=control,
                draws=config.draws,
            )
    if not results:
        raise MismatchError(
            "no behavior has test samples, so there is nothing to report; expected rows of the "
            "split 'test'. Build from more rows, or give rows a split."
        )
    _write_steerability(out, store, swept, results, names)
    mean = {
        behavior: own[(store["behavior"] == behavior) & (store["split"] == "test")].mean(0)
        for behavior in found.names
    }
    _draw(out, results, mean, multipliers, unit=rule.unit)
    return {
        "layers": layers,
        "multipliers": multipliers.tolist(),
        "self_check": swept.certificate,
        "behaviors": {name: _numbers(each, layers) for name, each in results.items()},
        "mean_propensity": {name: grid.tolist() for name, grid in mean.items()},
    }


def _draw(
    out: Path,
    results: Mapping[str, Steerability],
    mean: Mapping[str, Float[np.ndarray, "layer m"]],
    multipliers: Float[np.ndarray, " m"],
    *,
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
            unit=f"{unit} per unit multiplier",
        ),
    )
    fixed = {name: each.choice.fixed_layer for name, each in base.items()}
    write_aside(
        out / "grid.png",
        lambda path: plot_grid(path, mean, multipliers, fixed_layers=fixed, unit=unit),
    )


def _swept(
    out: Path,
    store: Store,
    found: Directions,
    config: AnalyzeConfig,
    rule: "SteeringRule",
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
) -> Store:
    """The sweep's results: run, gone on with, or as they are."""
    from actcache.analysis.sweep import DirectionSet, run_sweep

    if model is None:
        raise MismatchError(
            "the sweep runs the model, and none was given. Pass one, or leave the stage out: "
            "--stages vectors,layers."
        )
    of = np.searchsorted(list(found.names), store["behavior"]).astype(np.int64)
    rng = np.random.default_rng(config.seed)
    # [control, behavior, layer, d]
    random = [random_directions(values, rng, count=config.controls) for values in found.values]
    sets = {METHOD: DirectionSet(found.values, of)}
    for i in range(config.controls):
        name = CONTROL if i == 0 else f"{CONTROL}_{i}"
        sets[name] = DirectionSet(np.stack([each[i] for each in random]), of)
    with progress("sweep", store.n) as on_rows:
        return run_sweep(
            store,
            out / "sweep.zarr",
            model=model,
            sets=sets,
            multipliers=config.multipliers,
            rule=rule,
            layers=config.layers,
            batch_tokens=config.batch_tokens,
            on_rows=on_rows,
        )


def _write_steerability(
    out: Path,
    store: Store,
    swept: Store,
    results: Mapping[str, Steerability],
    controls: Sequence[str],
) -> None:
    from actcache.analysis.fits import slopes

    any_result = next(iter(results.values()))
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


def _numbers(found: Steerability, layers: Sequence[int]) -> dict[str, Any]:
    """What the tables show of one behavior; layers by their own number, not by their place."""

    def named(choice: dict[str, Any]) -> dict[str, Any]:
        for key in ("fixed_layer", "hindsight_layer"):
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


def parse_multipliers(text: str) -> tuple[float, ...]:
    """`-1.5:1.5:0.5` (both ends in) or `-1,0,1` as numbers.

    Raises:
        ActcacheError: it is neither.
    """
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        start, stop, step = (float(part) for part in text.split(":"))
        n_steps = round((stop - start) / step)
    except (ValueError, ZeroDivisionError):
        n_steps, start, stop, step = -1, 0.0, 0.0, 0.0
    if n_steps < 1 or abs(start + n_steps * step - stop) > 1e-9:
        raise ActcacheError(
            f"multipliers are '{text}', expected START:STOP:STEP with whole steps or a list of "
            "numbers. For example -1.5:1.5:0.5."
        )
    return tuple(round(start + i * step, 12) for i in range(n_steps + 1))


def remove_results(out: Path) -> None:
    """Remove what `analyze` left in a folder, and nothing else."""
    for name in ("sweep.zarr", "sweep.zarr.partial"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (
        *("summary.json", "directions.safetensors", "moments.npz", "steerability.npz"),
        *("steerability.png", "grid.png", "layers.png"),
    ):
        (out / name).unlink(missing_ok=True)
