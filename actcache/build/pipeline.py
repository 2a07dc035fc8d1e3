"""The whole build in one call: data files and a model's name in, a finished store out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.build.config import BuildConfig
from actcache.build.place import require_place
from actcache.cluster.session import Workers
from actcache.conventions import NO_PRESET, build_settings
from actcache.data.formats import read_samples
from actcache.data.personas import expand_variants, load_personas
from actcache.data.sources import Data
from actcache.progress import AUTOMATIC, Progress
from actcache.settings import check_names
from actcache.store.store import Store, open_store

if TYPE_CHECKING:
    from actcache.build.plan import BuildPlan

log = logging.getLogger("actcache")


def build_store(
    data: Data,
    path: str | Path,
    *,
    model: str | Path,
    preset: str = NO_PRESET,
    limit: int | None = None,
    split: str | None = None,
    map: Mapping[str, str] | None = None,
    personas: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    workers: int | None = None,
    cluster: str | None = None,
    gpus_per_worker: int | None = None,
    note: Callable[[str], None] | None = None,
    progress: Progress = AUTOMATIC,
    **settings: Any,
) -> Store:
    """Run a model once over rows of data, and keep its residuals in a store.

    All rows, the settings and the free disk space are checked before the model is loaded.

    Args:
        data: files of rows, each a behavior; or rows in memory: a list of mappings, a DataFrame, a
            `datasets.Dataset`; or a mapping of behaviors to any of these or to a list of prompts.
            See `read_samples`.
        path: where the store will be; until it is complete it is `PATH.partial`.
        model: Hub id or local folder.
        preset: whose conventions to use: none, steering-bench, repepo or caa. Settings that are
            given win over it.
        limit: only the first so many rows of each file.
        split: of data sets with several splits, which to read; by default `train`.
        map: for keys that have another name in the data, `{"prompt": "question"}`.
        personas: JSON of the persona sentences that variants need, see `load_personas`.
        resume: continue an interrupted build.
        overwrite: replace a store at `path`.
        reuse: stores of the same model; their rows of equal tokens are copied instead of run.
        workers: run the model in so many processes, on Ray; by default in this one.
        cluster: HOST:PORT of a running Ray cluster; by default Ray is started on this machine.
        gpus_per_worker: GPUs of each worker; by default 1 where there are GPUs.
        note: called with each sentence about rows left out, broken conditions and leaks; by default
            they are logged as warnings, which Python shows on stderr.
        progress: shows how many rows are done.
        **settings: fields of `BuildConfig`, for example `positions=("prompt",)`.

    Returns:
        The finished store, open for reading.

    Raises:
        ActcacheError: rows, settings, model or path cannot be used; says what to do.

    Example:
        `build_store("rows/*.jsonl", "tidy.zarr", model="gpt2", preset="caa", limit=100)`
        `build_store({"greetings": ["Hello.", "How are you?"]}, "greetings.zarr", model="gpt2")`
    """
    check_names(BuildConfig, settings)
    config = BuildConfig(**build_settings(preset, {"model": str(model), **settings}))
    on_cluster = (
        None if workers is None else Workers(n=workers, address=cluster, gpus=gpus_per_worker)
    )
    require_place(path, resume=resume, overwrite=overwrite)
    plan = plan_store(
        data, config, limit=limit, split=split, map=map, personas=personas, reuse=reuse
    )
    for sentence in plan.notes:
        if note is None:
            log.warning("actcache: %s", sentence)
        else:
            note(sentence)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "reuse": reuse}
    if on_cluster is not None:
        from actcache.build.workers import run_with_workers

        return run_with_workers(plan, path, on_cluster, progress=progress, **how)
    from actcache.build.run import run_build  # imports torch

    return run_build(plan, path, progress=progress, **how)


def plan_store(
    data: Data,
    config: BuildConfig,
    *,
    limit: int | None = None,
    split: str | None = None,
    map: Mapping[str, str] | None = None,
    personas: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
) -> "BuildPlan":
    """Read and check all rows and plan their build, as `build_store` does before it runs.

    `plan.notes` are the sentences that a user should read; `forecast_build` says what it will cost.
    """
    for store in reuse:
        open_store(store)
    notes: list[str] = []
    samples = expand_variants(
        read_samples(data, limit=limit, split=split, map=map, note=notes.append),
        config.variants,
        personas=load_personas(personas),
        separator=config.separator,
    )
    from actcache.build.plan import plan_build  # imports torch

    return plan_build(samples, config, reading_notes=notes)
