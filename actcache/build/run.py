"""The build: a plan and a model in, a finished store out, run by run."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int64

from actcache.build.certify import certify, rows_of_certificate
from actcache.build.config import BuildConfig
from actcache.build.place import require_place
from actcache.build.plan import BuildPlan
from actcache.build.provenance import (
    MODE,
    ModelFacts,
    build_contents,
    provenance,
    require_storable,
)
from actcache.build.reuse import Reusable, find_reusable
from actcache.build.runs import RUN_ROWS, Blocks, Runs, read_rows
from actcache.conventions import MASS_SITES
from actcache.engine.batching import Budget
from actcache.engine.model import LanguageModel, load_model
from actcache.engine.self_check import CaptureFunction, check_capture
from actcache.engine.tree_capture import capture
from actcache.progress import SILENT, Progress
from actcache.store.copies.copy import open_source
from actcache.store.schema import Dtype, RowArray
from actcache.store.store import Store, open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.partial import require_room
from actcache.store.writing.writer import Writer


def run_build(
    plan: BuildPlan,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    model: LanguageModel | Callable[[], LanguageModel] | None = None,
    progress: Progress = SILENT,
    shard_rows: int | None = None,
    run_rows: int = RUN_ROWS,
    read: CaptureFunction | None = None,
) -> Store:
    """Build a store as planned, and certify it.

    Args:
        plan: from `plan_build`.
        path: where the store will be; until it is complete it is `PATH.partial`.
        resume: continue an interrupted build of the same plan.
        overwrite: replace a finished store at `path`.
        reuse: stores of the same model whose rows of equal tokens are copied instead of run. They
            equal rows that are run up to rounding: the rows that share a pass decide the last bits.
        model: an already loaded model, or a function that loads it, which is called once all that
            can fail without it is checked; by default the config's is loaded.
        progress: shows how many rows are committed.
        shard_rows: rows of a shard; by default as `schema.shard_rows` chooses.
        run_rows: rows that are computed together, about; an interrupted build of another number is
            resumed with other last bits.
        read: reads the residuals of a batch; by default what the config's engine names.

    Raises:
        StoreExistsError: a store, or an interrupted one, is at `path`.
        MismatchError: `resume`, and the interrupted build had other settings, data or weights; or a
            store to `reuse` has another model, or lacks what is read.
        NotFiniteError: a residual is not finite in the store's dtype.
        ModelError: the family is not handled, or the first rows differ from a plain forward pass.
        ActcacheError: the disk has no room for the store.
    """
    config = plan.config
    # Everything that can fail without the model comes before it is loaded.
    require_place(path, resume=resume, overwrite=overwrite, config=config.recorded())
    require_room(path, plan.n_bytes)
    reused_stores = [open_source(store) for store in reuse]
    require_storable(plan, shard_rows=shard_rows, reused=[store.digest for store in reused_stores])
    with progress.steps("build", plan.n) as advance:
        if not isinstance(model, LanguageModel):
            model = load_planned(config) if model is None else model()
        read = read or reader(config)
        shares = plan.shares_beginnings
        check = check_capture(model, plan.rendered, read=read, shares=shares, **plan.reading)
        contents, reused = plan_contents(
            plan,
            ModelFacts.of(model, config.sites),
            reused_stores=reused_stores,
            shard_rows=shard_rows,
        )
        begin = Writer.resume if resume else Writer.create
        with (
            begin(
                path,
                contents,
                overwrite=overwrite and not resume,
            ) as writer,
            ThreadPoolExecutor(1) as committer,
        ):
            first_missing = writer.committed
            advance(first_missing)
            runs = Runs.of(
                plan,
                contents.arrays,
                shard_rows=writer.shard_rows,
                reused=reused,
                run_rows=run_rows,
            )
            pending: Future[None] | None = None

            def read_earlier(rows: Int64[np.ndarray, " k"]) -> Mapping[str, np.ndarray]:
                if pending is not None:
                    pending.result()
                return read_rows(open_store(path, partial=True), rows)

            budget = Budget(config.batch_tokens)
            for number in runs.left(first_missing):
                shards = runs[number].compute(
                    model, read=read, read_earlier=read_earlier, budget=budget
                )
                # All of an interrupted run is computed again, so that its rows share the passes
                # that they would have shared.
                missing = deque(shard for shard in shards if shard[0].start >= first_missing)
                advance(sum(len(rows) for rows, _ in missing))
                # The last run is written while the next one is computed.
                if pending is not None:
                    pending.result()
                pending = committer.submit(_commit, writer, missing)
            if pending is not None:
                pending.result()
            certificate = certify(
                open_store(path, partial=True),
                model,
                {
                    i: plan.rendered[i]
                    for i in rows_of_certificate(plan.n, seed=config.seed, checked=check.alone)
                },
                alone=check.alone,
                **plan.reading,
            )
            writer.finish({**certificate, "self_check": check.recorded()})
    return open_store(path)


def reader(config: BuildConfig) -> CaptureFunction:
    """Choose the function that reads residuals: `capture`, or its slow reference."""
    if config.engine == "transformer-lens":
        from actcache.engine.reference import BridgeCapture

        return BridgeCapture(load_planned(config).hf)
    return capture


def load_planned(config: BuildConfig) -> LanguageModel:
    """Load the model that the settings name."""
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
    )


def _commit(writer: Writer, shards: deque[tuple[range, Blocks]]) -> None:
    """Write shards in order; each is freed once it is written."""
    while shards:
        writer.commit(shards.popleft()[1])


def plan_contents(
    plan: BuildPlan,
    facts: ModelFacts,
    *,
    reused_stores: Sequence[Store],
    shard_rows: int | None,
) -> tuple[StoreContents, Reusable | None]:
    """Put together all of the store but its values, and find the rows that can be reused."""
    config, arrays = plan.config, _row_arrays(plan, facts)
    recorded = provenance(plan, facts)
    reused: Reusable | None = None
    if reused_stores:
        reused = find_reusable(
            reused_stores,
            rows=plan.rendered,
            arrays=arrays,
            model=facts.identity,
            mode=MODE,
            answer=config.answer,
        )
        recorded["reused"] = reused.recorded()
    return build_contents(plan, arrays, recorded, shard_rows=shard_rows), reused


def _row_arrays(plan: BuildPlan, facts: ModelFacts) -> list[RowArray]:
    """List the row arrays of the store: one per site and position."""
    config, model = plan.config, facts.identity
    store_dtype = model["dtype"] if config.store_dtype == "auto" else config.store_dtype
    return [
        RowArray(
            f"{site}/{position}",
            n_layers=1 if site == "embed" else model["n_layers"],
            width=facts.widths[site],
            dtype=cast("Dtype", "float32" if site in MASS_SITES else store_dtype),  # it checks them
            dimension_names=("n", "layer", "head" if site in MASS_SITES else "d_model"),
        )
        for site in config.sites
        for position in plan.positions
    ]
