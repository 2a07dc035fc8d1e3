"""From a store to a results folder: vectors, layers, sweep, and what they say.

Stages run in order and each reads what the ones before it gave. `sweep` alone needs the model, and
only then is torch imported. See README for what lies in the folder.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    BATCH_ROWS,
    Directions,
    label_codes,
    label_directions,
    pair_directions,
    random_directions,
    two_labels,
)
from actcache.analysis.directions.discriminative import LayerScores, layer_scores, project
from actcache.analysis.report.files import (
    CONTROL,
    METHOD,
    draw,
    numbers,
    require_same_store,
    write_steerability,
    write_vectors,
)
from actcache.analysis.report.plots import plot_layers
from actcache.analysis.report.predictor_tables import predictor_tables
from actcache.analysis.report.tables import markdown
from actcache.analysis.results import plain, write_aside, write_json, write_text
from actcache.analysis.sweep.steerability import Steerability, summarize
from actcache.conventions import STAGES
from actcache.encoders import parse_encoder
from actcache.errors import MismatchError
from actcache.progress import SILENT, Progress
from actcache.store.copies.selection import require_all_layers
from actcache.store.storage.atomic import make_folder, os_errors_explained
from actcache.store.store import Store

if TYPE_CHECKING:  # torch comes in with these
    from actcache.engine.model import LanguageModel
    from actcache.engine.steered_scores import SteeringRule


def analyze(
    store: Store,
    out: str | Path,
    *,
    config: AnalyzeConfig,
    model: "Callable[[], LanguageModel] | None" = None,
    progress: Progress = SILENT,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run the stages and write the results folder.

    Args:
        store: a finished store of residuals.
        out: the folder; made if it is not there. A sweep of the same settings in it is reused, one
            that was interrupted is gone on with.
        config: the settings.
        model: gives the model that the store was built with; called only if a sweep must run.
        progress: shows long loops, and what an encoder of prompts will cost before it is paid.
        device: where predictors are trained: a torch device, or `auto` (cuda, else cpu). No setting
            of the analysis: it changes nothing beyond rounding.

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
    require_all_layers(store)  # what follows knows layers by their place
    out = Path(out)
    paired = not any(store["label"].tolist())
    left_out = stages_left_out(store, config.stages)
    if paired and "predictors" in config.stages:
        _require_predictable(store, config)
    require_same_store(out, store)
    with os_errors_explained(f"'{out}' cannot be written"):
        make_folder(out.absolute())
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
        **({"left_out": left_out} if left_out else {}),
    }
    train = (store["split"] == "train") & (store["variant"] == "base")
    if paired:
        found = pair_directions(store, rows=train)
    else:
        labels = two_labels(store, config.labels)
        found = label_directions(store, rows=train, labels=labels)
    if "vectors" in config.stages:
        summary["vectors"] = write_vectors(out, store, found)
    if "layers" in config.stages and not paired:
        scores = _layers(store, found, labels, config)
        summary["layers"] = {found.names[0]: plain(scores)}
        write_aside(
            out / "layers.png",
            lambda path: plot_layers(path, scores, positive=labels[0], negative=labels[1]),
        )
    if paired and {"sweep", "predictors"} & set(config.stages):
        from actcache.engine.steered_scores import SteeringRule

        rule = SteeringRule(first_steered=config.first_steered, score=config.score)
        load = None if model is None else cache(model)  # one load for both sweeps
        swept = _swept(out, store, found, config, load, progress)
        if "sweep" in config.stages:
            summary["sweep"] = _sweep(out, store, found, train, config, rule, swept)
        if "predictors" in config.stages:
            summary["predictors"] = _predictors(
                out, store, swept, config, rule, load, progress, device
            )
    write_json(out / "summary.json", summary)
    return summary


def stages_left_out(store: Store, stages: Sequence[str]) -> list[str]:
    """Which stages cannot run on a store's rows: asked before any of them takes time.

    Args:
        store: pairs or labelled prompts.
        stages: of `STAGES`.

    Returns:
        A sentence, where `sweep` or `predictors` were asked for by name and rows have labels; else
        nothing: all stages means all that there are.

    Raises:
        MismatchError: none of them can run, or a split that one reads has no rows.
    """
    paired = not any(store["label"].tolist())
    unfit = ("layers",) if paired else ("sweep", "predictors")
    have, need = ("pairs", "labels") if paired else ("labels", "pairs")
    left = [stage for stage in stages if stage in unfit]
    said = f"{' and '.join(left)}: the rows of '{store.path}' have {have}, expected {need}"
    if len(left) == len(stages):
        fit = ",".join(stage for stage in STAGES if stage not in unfit)
        raise MismatchError(f"no stage can run on {said}. Pass --stages {fit}.")
    if not paired:
        return [said] if left and tuple(stages) != STAGES else []
    if "sweep" in stages and "test" not in store["split"].tolist():
        raise MismatchError(
            f"'{store.path}' has no rows of the split 'test', which the stage sweep reads. Build "
            "from more rows, give rows a split, or pass --stages vectors."
        )
    return []


def _require_predictable(store: Store, config: AnalyzeConfig) -> None:
    """Refuse before the sweep what predictors would refuse after it."""
    from actcache.analysis.predict.selections import predictor_rows

    for text in config.encoders:
        parse_encoder(text)
    if tuple(config.stages) != STAGES:  # else they are left out, and it is said
        predictor_rows(store, vectors=config.vectors)


def _predictors(
    out: Path,
    store: Store,
    swept: Store,
    config: AnalyzeConfig,
    rule: "SteeringRule",
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
    device: str,
) -> dict[str, Any]:
    """Layer and vector predictors, and their tables; or why they were left out."""
    from actcache.analysis.predict.adamw_stack import training_device
    from actcache.analysis.predict.selections import predictor_rows
    from actcache.analysis.predict.stage import run_predictors

    try:
        behaviors = predictor_rows(store, vectors=config.vectors)
    except MismatchError as error:
        if tuple(config.stages) != STAGES:
            raise
        return {"left_out": str(error)}  # the other stages were asked for as much
    assert model is not None  # the sweep asked for one
    found = run_predictors(
        out,
        store,
        behaviors,
        swept=swept,
        config=config,
        rule=rule,
        model=model,
        progress=progress,
        device=training_device(device),
    )
    tables = markdown(predictor_tables(found))
    said = "".join(f"- {sentence}\n" for sentence in found["words"])
    write_text(out / "tables.md", f"# Predictors\n\n{said}\n{tables}")
    return found


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
    rule: "SteeringRule",
    swept: Store,
) -> dict[str, Any]:
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
                layers=layers,
                draws=config.draws,
            )
    if not results:
        raise MismatchError(
            "no behavior has test samples, so there is nothing to report; expected rows of the "
            "split 'test'. Build from more rows, or give rows a split."
        )
    write_steerability(out, store, swept, results, names)
    mean = {
        behavior: own[(store["behavior"] == behavior) & (store["split"] == "test")].mean(0)
        for behavior in found.names
    }
    draw(out, results, mean, multipliers, layers=layers, unit=rule.unit)
    return {
        "layers": layers,
        "multipliers": multipliers.tolist(),
        "self_check": swept.certificate,
        "behaviors": {name: numbers(each, layers) for name, each in results.items()},
        "mean_propensity": {name: grid.tolist() for name, grid in mean.items()},
    }


def _swept(
    out: Path,
    store: Store,
    found: Directions,
    config: AnalyzeConfig,
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
) -> Store:
    """The sweep's results: run, gone on with, or as they are."""
    from actcache.analysis.sweep.row_directions import shared_directions
    from actcache.analysis.sweep.run import run_sweep

    if model is None:
        raise MismatchError(
            "the sweep runs the model, and none was given. Pass one, or leave the stage out: "
            "--stages vectors,layers."
        )
    of = np.searchsorted(list(found.names), store["behavior"]).astype(np.int64)
    rng = np.random.default_rng(config.seed)
    # [control, behavior, layer, d]
    random = [random_directions(values, rng, count=config.controls) for values in found.values]
    sets = {METHOD: shared_directions(found.values, of)}
    for i in range(config.controls):
        name = CONTROL if i == 0 else f"{CONTROL}_{i}"
        sets[name] = shared_directions(np.stack([each[i] for each in random]), of)
    return run_sweep(
        store,
        sets,
        multipliers=config.multipliers,
        out=out / "sweep.zarr",
        model=model,
        first_steered=config.first_steered,
        score=config.score,
        layers=config.layers,
        batch_tokens=config.batch_tokens,
        progress=progress,
    ).store
