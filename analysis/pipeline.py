"""From a store to a results folder: vectors, layers, sweep, predictors, and the report on them.

Stages run in order and each reads what the ones before it gave. Only the sweep needs the model, and
only then is torch imported.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.analysis.checks import check_analysis, steers
from actcache.analysis.concepts.stage import fit_concepts
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import (
    label_directions,
    pair_directions,
    two_labels,
)
from actcache.analysis.directions.planes import norm_sites
from actcache.analysis.files import write_text
from actcache.analysis.layers import find_planes, score_layers
from actcache.analysis.report.concept_pages import concepts_page
from actcache.analysis.report.pages import markdown_page
from actcache.analysis.report.verdicts import verdicts
from actcache.analysis.report_files import check_formats, write_results_report, write_samples
from actcache.analysis.results import (
    Results,
    write_directions,
    write_planes,
    write_vectors,
)
from actcache.analysis.results_folder import SWEEP, require_place_of_sweep, results_folder
from actcache.analysis.stats.units import MapUnits
from actcache.analysis.steered_stages import SteeredRun, run_sweep_stages
from actcache.analysis.summary import StoreSummary, Summary
from actcache.analysis.sweep.given import fit_pairs, given_sets, tensors_of
from actcache.analysis.workers import units_on
from actcache.cluster.session import Workers
from actcache.conventions import ATTENTION, NO_PRESET, STAGES, sweep_settings
from actcache.errors import MismatchError
from actcache.progress import AUTOMATIC, Progress
from actcache.settings import check_names
from actcache.store.storage.address import require_folder
from actcache.store.store import Store, open_store

if TYPE_CHECKING:  # torch comes in with it
    from collections.abc import Callable

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
    workers: int | None = None,
    cluster: str | None = None,
    gpus_per_worker: int | None = None,
    sweep_store: str | Path | None = None,
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
        workers: compute in so many processes, on Ray; by default in this one. The results are the
            same. Where workers run on other machines, these must reach the store and the sweep's.
        cluster: HOST:PORT of a running Ray cluster; by default Ray is started on this machine.
        gpus_per_worker: GPUs of each worker; by default 1 where there are GPUs.
        sweep_store: where the sweep's store lies, a folder or `s3://bucket/sweep.zarr`; by default
            where the results in `out` say, else `OUT/sweep.zarr`. A finished one in a bucket is
            never replaced.
        settings: fields of `AnalyzeConfig`, for example `stages=("vectors", "sweep")`.

    Raises:
        MismatchError: the store is no store of residuals, lacks what a stage reads, or the folder
            holds results of another store or a sweep of other settings.
        StoreExistsError: the folder is inside a store, or holds other files of the same names.
        FormatError: a block of the store is damaged: names shard, layer and rows.
        ActcacheError: another analysis is writing to the folder; or the cluster or the bucket
            cannot be used.

    Example:
        results = analyze("tidy.zarr", "out", controls=5)
        results.summary.behaviors["tidy"].fixed.slope
    """
    check_formats(formats)
    require_folder(out, "what analyze leaves")
    on_cluster = (
        None if workers is None else Workers(n=workers, address=cluster, gpus=gpus_per_worker)
    )
    store = store if isinstance(store, Store) else open_store(store)
    check_names(AnalyzeConfig, settings)
    if config is None:
        preset = settings.pop("preset", store.config.get("preset", NO_PRESET))
        config = AnalyzeConfig(**sweep_settings(preset, settings))
    elif settings:
        config = replace(config, **settings)
    out = Path(out)
    left_out = check_analysis(store, config, device=device)
    if not steers(store, config):
        sweep_store = None
    elif sweep_store is not None:
        require_place_of_sweep(out, sweep_store, overwrite=overwrite)
    with (
        units_on(on_cluster, device=device) as map_units,
        results_folder(out, store, overwrite=overwrite, sweep_store=sweep_store) as place,
    ):
        return run_stages(
            store.checked() if check else store,
            out,
            config,
            left_out=left_out,
            model=model,
            progress=progress,
            device=device,
            formats=formats,
            map_units=map_units,
            shared=on_cluster is not None,
            sweep_store=place,
        )


def run_stages(
    store: Store,
    out: Path,
    config: AnalyzeConfig,
    *,
    left_out: tuple[str, ...],
    model: "Callable[[], LanguageModel] | None",
    progress: Progress,
    device: str,
    formats: Sequence[str],
    map_units: MapUnits = map,
    shared: bool = False,
    sweep_store: str | Path | None = None,
) -> Results:
    """Run the stages on what was checked, and write what they give.

    Arguments as `analyze`; `map_units` runs the units of the stages, and with `shared` whoever
    sweeps a shard writes it.
    """
    sweep_store = out / SWEEP if sweep_store is None else sweep_store
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
        sweep_store=None if sweep_store == out / SWEEP else str(sweep_store),
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
    if steers(store, config):
        from actcache.build.replay import load_store_model

        load = model or partial(load_store_model, store, device=device)
        swept, given = given_sets(
            store, directions, config=config, fitted=fitted, train=train, map_units=map_units
        )
        summary = run_sweep_stages(
            SteeredRun(
                store=store,
                out=out,
                sweep_store=sweep_store,
                config=config,
                directions=swept,
                given=given,
                train=train,
                model=load,
                progress=progress,
                device=device,
                map_units=map_units,
                shared=shared,
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
