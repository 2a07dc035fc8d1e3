"""From a store to a results folder: vectors, layers, sweep, predictors, and the report on them.

Stages run in order and each reads what the ones before it gave. Only the sweep needs the model, and
only then is torch imported.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from actcache.analysis.checks import check_analysis
from actcache.analysis.concepts.stage import fit_concepts
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    Directions,
    label_directions,
    pair_directions,
    two_labels,
)
from actcache.analysis.directions.planes import norm_sites
from actcache.analysis.files import typed, write_text
from actcache.analysis.layers import find_planes, score_layers
from actcache.analysis.names import L2S, control_set
from actcache.analysis.report.concept_pages import concepts_page
from actcache.analysis.report.pages import markdown_page
from actcache.analysis.report.verdicts import verdicts
from actcache.analysis.report_files import check_formats, write_results_report, write_samples
from actcache.analysis.results import (
    PREDICTORS,
    Results,
    results_folder,
    write_directions,
    write_planes,
    write_steerability,
    write_vectors,
)
from actcache.analysis.stats.units import MapUnits
from actcache.analysis.summary import SelfCheck, StoreSummary, Summary, SweepSummary
from actcache.analysis.sweep.comparison import compare_sets
from actcache.analysis.sweep.given import fit_pairs, given_sets, tensors_of
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.reuse import WantedSweep
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.sets import sets_of_analysis
from actcache.analysis.sweep.splits import score_splits, splits_of
from actcache.analysis.sweep.steerability import Steerability, summarize
from actcache.analysis.sweep.strategies import SplitScore, over_splits
from actcache.conventions import ATTENTION, NO_PRESET, STAGES, sweep_settings
from actcache.errors import MismatchError
from actcache.progress import AUTOMATIC, Progress
from actcache.settings import check_names
from actcache.store.storage.address import require_folder
from actcache.store.store import Store, open_store

if TYPE_CHECKING:  # torch comes in with these
    from collections.abc import Callable

    from actcache.analysis.predict.learned_vectors import LearnedVectors
    from actcache.engine.model import LanguageModel


def analyze(
    store: Store | str | Path,
    out: str | Path,
    *,
    config: AnalyzeConfig | None = None,
    model: "Callable[[], LanguageModel] | None" = None,
    progress: Progress = AUTOMATIC,
    device: str = "auto",
    overwrite: bool = False,
    check: bool = True,
    formats: Sequence[str] = ("png",),
    **settings: Any,
) -> Results:
    """Run the stages and write the results folder; the same as `actcache analyze`.

    Args:
        store: a finished store of residuals, or its path.
        out: the folder; made if it is not there. A sweep of the same settings in it is reused, an
            interrupted one is resumed.
        config: the settings; by default those of the store's preset.
        model: gives the model that the store was built with, called only if a sweep must run; by
            default it is loaded from where the build found it.
        progress: shows long loops, and what an encoder of prompts will cost before it is paid.
        device: where the model runs and predictors are trained: a torch device, or `auto` (cuda,
            else cpu). Not a setting: it changes nothing beyond rounding.
        overwrite: remove the results in the folder first; what analyze did not write stays.
        check: compare each block of the store with its checksum when it is first read.
        formats: of the pictures: png, svg, pdf.
        settings: fields of `AnalyzeConfig`, for example `stages=("vectors", "sweep")`.

    Raises:
        MismatchError: the store is no store of residuals, lacks what a stage reads, or the folder
            holds results of another store or a sweep of other settings.
        StoreExistsError: the folder is inside a store, or holds other files of the same names.
        FormatError: a block of the store is damaged: names shard, layer and rows.
        ActcacheError: another analysis is writing to the folder.

    Example:
        results = analyze("tidy.zarr", "out", controls=5)
        results.summary.behaviors["tidy"].fixed.slope
    """
    check_formats(formats)
    require_folder(out, "what analyze leaves")
    store = store if isinstance(store, Store) else open_store(store)
    check_names(AnalyzeConfig, settings)
    if config is None:
        preset = settings.pop("preset", store.config.get("preset", NO_PRESET))
        config = AnalyzeConfig(**sweep_settings(preset, settings))
    elif settings:
        config = replace(config, **settings)
    out = Path(out)
    left_out = check_analysis(store, config, device=device)
    with results_folder(out, store, overwrite=overwrite):
        return _run_stages(
            store.checked() if check else store,
            out,
            config,
            left_out=left_out,
            model=model,
            progress=progress,
            device=device,
            formats=formats,
            map_units=map,
        )


def _run_stages(
    store: Store,
    out: Path,
    config: AnalyzeConfig,
    *,
    left_out: tuple[str, ...],
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
    device: str,
    formats: Sequence[str],
    map_units: MapUnits,
) -> Results:
    """Run the stages on what was checked, and write what they give."""
    paired = not any(store["label"].tolist())
    train = (store["split"] == "train") & (store["variant"] == "base")
    summary = Summary(
        store=StoreSummary(
            path=str(store.path),
            n=store.n,
            n_layers=store.n_layers,
            d_model=store.d_model,
            provenance=store.provenance,
            certificate=store.certificate,
            build=store.config,
        ),
        config=config,
        left_out=left_out,
    )
    labels = None
    if paired:
        directions = pair_directions(store, rows=train, map_units=map_units)
    else:
        labels = two_labels(store, config.labels)
        directions = label_directions(
            store,
            rows=train,
            labels=labels,
            position=config.position,
            pooled=config.pooled,
            map_units=map_units,
        )
        summary = replace(summary, labels=labels)
        if "layers" in config.stages:
            scores = score_layers(store, directions, labels, train, config, map_units=map_units)
            summary = replace(summary, layers=scores)
    if "layers" in config.stages and norm_sites(store):
        try:
            planes = find_planes(
                store, directions.names, labels, train, config, map_units=map_units
            )
        except MismatchError as error:  # the other stages were asked for as much
            summary = replace(summary, left_out=(*left_out, f"layers: {error}"))
        else:
            write_planes(out, store, planes)
            scores_of = {name: plane.scores for name, plane in planes.items()}
            summary = replace(summary, planes=scores_of)
    if "vectors" in config.stages:
        summary = replace(summary, vectors=write_vectors(out, store, directions))
    fitted = fit_pairs(store, config, map_units=map_units) if paired else {}
    write_directions(out, store, tensors_of(fitted))
    concepts = None
    if "concepts" in config.stages and ATTENTION in store.sites:
        try:
            concepts, tensors = fit_concepts(
                store, labels=labels, config=config, progress=progress, map_units=map_units
            )
        except MismatchError as error:
            if tuple(config.stages) != STAGES:
                raise
            summary = replace(summary, left_out=(*summary.left_out, f"concepts: {error}"))
        else:
            write_directions(out, store, tensors)
            concepts.write(out)
    if paired and {"sweep", "predictors"} & set(config.stages):
        from actcache.build.replay import load_store_model

        load = model or (lambda: load_store_model(store, device=device))
        swept, given = given_sets(
            store, directions, config=config, fitted=fitted, train=train, map_units=map_units
        )
        summary = _run_sweep_stages(
            _Run(
                store=store,
                out=out,
                config=config,
                directions=swept,
                given=given,
                train=train,
                model=load,
                progress=progress,
                device=device,
                map_units=map_units,
            ),
            summary,
        )
        write_samples(out, store)
    summary = replace(summary, verdicts=verdicts(summary))
    summary.write(out / "summary.json")
    pages = [markdown_page(summary), concepts_page(concepts) if concepts else ""]
    if any(pages):
        write_text(out / "tables.md", "\n".join(filter(None, pages)))
    results = Results(out)
    write_results_report(results, formats=formats)  # made again by `actcache report`
    return results


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the stages that steer the model share."""

    store: Store
    out: Path
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


def _run_sweep_stages(run: _Run, summary: Summary) -> Summary:
    """The stages `sweep` and `predictors`, after one sweep of all that they read."""
    from actcache.analysis.predict.adamw_stack import training_device
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
        device=training_device(run.device),
        map_units=run.map_units,
    )
    return replace(summary, predictors=scores)


def _sweep(run: _Run, learned: "LearnedVectors | None") -> Sweep:
    """The sweep: run, resumed, or as it is; before it the networks of L2S are trained."""
    from actcache.analysis.predict.adamw_stack import training_device
    from actcache.analysis.sweep.run import run_sweep
    from actcache.engine.steered_scores import SteeringRule

    config, path = run.config, run.out / "sweep.zarr"
    sets = sets_of_analysis(
        run.store,
        run.directions,
        config=config,
        others={**(learned.sets if learned else {}), **run.given},
        map_units=run.map_units,
    )
    if path.exists():  # refused before minutes of training
        rule = SteeringRule(first_steered=config.first_steered, score=config.score)
        wanted = WantedSweep.of(
            run.store,
            sets,
            multipliers=config.multipliers,
            rule=asdict(rule),
            layers=config.layers,
        )
        wanted.open(path)
    if learned is not None:
        device = training_device(run.device)
        learned.train(
            run.out / PREDICTORS, progress=run.progress, device=device, map_units=run.map_units
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
    )


def _score_sweep(run: _Run, sweep: Sweep) -> SweepSummary:
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
        behaviors={name: each.scores for name, each in results.items()},
        mean_propensity=means,
        compared=compared,
    )


def _with_splits(result: Steerability, splits: tuple[SplitScore, ...]) -> Steerability:
    fixed = over_splits(result.scores.fixed, [splits])
    return replace(result, scores=replace(result.scores, fixed=fixed, splits=splits))
