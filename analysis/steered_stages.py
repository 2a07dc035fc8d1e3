"""The stages that steer the model: one sweep of all sets, its scores, predictors trained on it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import Directions
from actcache.analysis.files import typed
from actcache.analysis.names import L2S, control_set
from actcache.analysis.results import write_steerability
from actcache.analysis.results_folder import PREDICTORS
from actcache.analysis.stats.units import MapUnits
from actcache.analysis.summary import SelfCheck, Summary, SweepSummary
from actcache.analysis.sweep.comparison import compare_sets
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.reuse import SweepRequest
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.sets import sets_of_analysis
from actcache.analysis.sweep.splits import score_splits, splits_of
from actcache.analysis.sweep.steerability import Steerability, summarize
from actcache.analysis.sweep.strategies import SplitScore, over_splits
from actcache.errors import MismatchError
from actcache.progress import Progress
from actcache.store.store import Store
from actcache.store.writing.partial import destination_of

if TYPE_CHECKING:  # torch comes in with these
    from collections.abc import Callable

    from actcache.analysis.predict.learned_vectors import LearnedVectors
    from actcache.engine.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class SteeredRun:
    """What the stages that steer the model share."""

    store: Store
    out: Path
    sweep_store: str | Path
    """Where the sweep lies, or will lie."""

    config: AnalyzeConfig
    directions: Directions
    """The difference of means as it is swept."""

    given: dict[str, RowDirections]
    """Further sets to sweep, by name."""

    train: Bool[np.ndarray, " n"]
    model: "Callable[[], LanguageModel]"
    progress: Progress
    device: str
    map_units: MapUnits
    shared: bool
    """Whether units write shards of the sweep themselves."""


def run_sweep_stages(run: SteeredRun, summary: Summary) -> Summary:
    """The stages `sweep` and `predictors`, after one sweep of all that they read."""
    from actcache.analysis.predict.learned_vectors import LearnedVectors
    from actcache.analysis.predict.selections import BehaviorRows, predictor_rows
    from actcache.analysis.predict.stage import run_predictors

    config = run.config
    behaviors: dict[str, BehaviorRows] | None = None
    if "predictors" in config.stages:
        try:
            behaviors = predictor_rows(run.store, vectors=config.vectors)
        except MismatchError as error:  # the other stages were asked for as much
            summary = replace(summary, left_out=(*summary.left_out, f"predictors: {error}"))
    learned = None
    if behaviors is not None and L2S in config.vectors:
        layers = config.layers or range(run.store.n_layers)
        learned = LearnedVectors(
            run.store,
            behaviors,
            layers=sorted(set(layers)),
            config=config,
            map_units=run.map_units,
        )
    sweep = _sweep(run, learned)
    if "sweep" in config.stages:
        summary = replace(summary, sweep=_score_sweep(run, sweep))
    if behaviors is None:
        return summary
    scores = run_predictors(
        run.out,
        run.store,
        behaviors,
        sweep=sweep,
        learned=learned,
        config=config,
        progress=run.progress,
        device=run.device,
        map_units=run.map_units,
    )
    return replace(summary, predictors=scores)


def _sweep(run: SteeredRun, learned: "LearnedVectors | None") -> Sweep:
    """The sweep: run, resumed, or as it is; before it the networks of L2S are trained."""
    from actcache.analysis.sweep.run import run_sweep
    from actcache.engine.steered_scores import SteeringRule

    config, path = run.config, run.sweep_store
    sets = sets_of_analysis(
        run.store,
        run.directions,
        config=config,
        others={**(learned.sets if learned else {}), **run.given},
        map_units=run.map_units,
    )
    if destination_of(path).finished():  # refused before minutes of training
        rule = SteeringRule(first_steered=config.first_steered, score=config.score)
        request = SweepRequest.of(
            run.store,
            sets,
            multipliers=config.multipliers,
            rule=asdict(rule),
            layers=config.layers,
        )
        request.open(path)
    if learned is not None:
        learned.train(
            run.out / PREDICTORS,
            progress=run.progress,
            device=run.device,
            map_units=run.map_units,
        )
    return run_sweep(
        run.store,
        sets,
        multipliers=config.multipliers,
        out=path,
        model=run.model,
        first_steered=config.first_steered,
        score=config.score,
        layers=config.layers,
        batch_tokens=config.batch_tokens,
        progress=run.progress,
        map_units=run.map_units,
        shared=run.shared,
    )


def _score_sweep(run: SteeredRun, sweep: Sweep) -> SweepSummary:
    """Steerability of every behavior and variant that has test samples."""
    from actcache.engine.steered_scores import SteeringRule

    store, config = run.store, run.config
    controls = [control_set(i) for i in range(config.controls)]
    control = np.stack([sweep.propensity_of(name) for name in controls]) if controls else None
    layers = sweep.layers.tolist()
    propensity = sweep.propensity
    results: dict[str, Steerability] = {}
    means = {}
    of_splits = score_splits(sweep, splits_of(store, config)) if config.splits > 1 else {}
    for behavior in run.directions.names:
        rows = store["behavior"] == behavior
        test = rows & (store["split"] == "test")
        if test.any():  # [layer, multiplier]
            means[behavior] = tuple(map(tuple, propensity[test].mean(0).tolist()))
        for variant in dict.fromkeys(store["variant"][test].tolist()):
            results[behavior if variant == "base" else f"{behavior}@{variant}"] = summarize(
                propensity,
                sweep.multipliers,
                train=run.train & rows,
                test=test & (store["variant"] == variant),
                rng=np.random.default_rng(config.seed),
                letters=store["letter"],
                control=control,
                layers=layers,
                draws=config.draws,
            )
        if behavior in results and behavior in of_splits:
            results[behavior] = _with_splits(results[behavior], of_splits[behavior])
    write_steerability(run.out, store, sweep, results, [*controls, *run.given])
    compared = None
    if run.given:
        compared = compare_sets(
            store,
            sweep,
            list(run.given),
            norm=config.norm,
            train=run.train,
            seed=config.seed,
            draws=config.draws,
        )
    return SweepSummary(
        layers=tuple(layers),
        multipliers=tuple(sweep.multipliers.tolist()),
        unit=SteeringRule(first_steered=config.first_steered, score=config.score).unit,
        self_check=typed(SelfCheck, sweep.certificate),
        behaviors={name: result.scores for name, result in results.items()},
        mean_propensity=means,
        compared=compared,
    )


def _with_splits(result: Steerability, splits: tuple[SplitScore, ...]) -> Steerability:
    fixed = over_splits(result.scores.fixed, [splits])
    return replace(result, scores=replace(result.scores, fixed=fixed, splits=splits))
