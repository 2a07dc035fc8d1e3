"""The build on a cluster: workers compute runs of shards, this process keeps the store.

Workers write the objects of shards, each create-only, and leave receipts. This process alone begins
the store, appends its records in order, and seals it. So a worker may die, or do what another one
has done, and another process may take this one's place.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from actcache.build.certify import certify, rows_of_certificate
from actcache.build.config import BuildConfig
from actcache.build.place import require_place
from actcache.build.plan import BuildPlan
from actcache.build.provenance import ModelFacts, model_identity, require_storable, versions
from actcache.build.run import load_planned, plan_contents, reader
from actcache.build.runs import RUN_ROWS, Run, Runs
from actcache.cluster.pool import Pool
from actcache.cluster.session import Workers, connect
from actcache.cluster.task import Loaded, Task
from actcache.engine.model import LanguageModel
from actcache.engine.self_check import (
    CaptureCheck,
    CaptureFunction,
    batches_to_check,
    check_batches,
)
from actcache.errors import ActcacheError
from actcache.progress import SILENT, Progress
from actcache.prompts.render import Rendered
from actcache.store.array import Residuals
from actcache.store.copies.copy import open_source
from actcache.store.layout import Layout, record_name
from actcache.store.shard_maps import ShardMaps
from actcache.store.storage.atomic import os_errors_explained
from actcache.store.storage.protocol import Storage
from actcache.store.store import Store, open_store
from actcache.store.writing.partial import require_room
from actcache.store.writing.receipts import Receipt, Receipts, write_shard
from actcache.store.writing.writer import Writer


def run_with_workers(
    plan: BuildPlan,
    path: str | Path,
    workers: Workers,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    progress: Progress = SILENT,
) -> Store:
    """Build a store as `run_build` does, with the same bytes, on the workers of a cluster.

    Args:
        plan: from `plan_build`.
        path: where the store will be; workers on other machines must reach it too.
        workers: how many, and where.
        resume: continue an interrupted build of the same plan.
        overwrite: replace a finished store at `path`.
        reuse: stores of the same model whose rows of equal tokens are copied instead of run.
        progress: shows how many rows all workers have written.

    Raises:
        ActcacheError: as `run_build`; or the cluster cannot be used; or a worker that started has
            another model, dtype, device or version than the first one.
    """
    require_place(path, resume=resume, overwrite=overwrite, config=plan.config.recorded())
    require_room(path, plan.n_bytes)
    require_storable(plan, reused=[open_source(store).digest for store in reuse])
    with (
        connect(workers) as session,
        Pool(session, LoadModel(config=plan.config)) as pool,
    ):
        return run_in_pool(
            plan,
            path,
            pool,
            resume=resume,
            overwrite=overwrite,
            reuse=reuse,
            progress=progress,
        )


def run_in_pool(
    plan: BuildPlan,
    path: str | Path | Storage,
    pool: Pool,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    progress: Progress = SILENT,
    shard_rows: int | None = None,
    run_rows: int = RUN_ROWS,
) -> Store:
    """Build a store in a pool whose workers have loaded the model of the plan with `LoadModel`.

    Arguments as `run_build`; `path` may be a storage, which is pickled to the workers.
    """
    with progress.steps("build", plan.n) as advance:
        facts, check = pool.ask(
            _Check(
                batches=batches_to_check(
                    plan.rendered, positions=plan.positions, shares=plan.shares_beginnings
                ),
                sites=plan.config.sites,
                reading=plan.reading,
            )
        )
        contents, reused = plan_contents(
            plan,
            facts,
            reused_stores=[open_source(store) for store in reuse],
            shard_rows=shard_rows,
        )
        begin = Writer.resume if resume else Writer.create
        with begin(path, contents, overwrite=overwrite and not resume, shared=True) as writer:
            runs = Runs.of(
                plan,
                contents.arrays,
                shard_rows=writer.shard_rows,
                reused=reused,
                run_rows=run_rows,
            )
            _write_shards(pool, runs, writer, advance)
            rows = rows_of_certificate(plan.n, seed=plan.config.seed, checked=check.alone)
            certificate = pool.ask(
                _Certify(
                    path=path,
                    rows={i: plan.rendered[i] for i in rows},
                    alone=check.alone,
                    reading=plan.reading,
                )
            )
            writer.finish({**certificate, "self_check": check.recorded()})
    return open_store(path)


@dataclass(frozen=True, kw_only=True)
class WorkerModel:
    """What a worker of a build holds."""

    model: LanguageModel
    read: CaptureFunction


@dataclass(frozen=True, kw_only=True)
class LoadModel:
    """Loads the model of a build in a worker, and states what decides its values."""

    config: BuildConfig

    def __call__(self) -> Loaded:
        """Load it."""
        model = load_planned(self.config)
        return Loaded(
            value=WorkerModel(model=model, read=reader(self.config)),
            statement={
                **model_identity(model),
                "device": kind_of_device(model.device),
                "threads": torch.get_num_threads(),
                "versions": versions(),
            },
        )


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Checks the capture on a few rows, and tells what the store says about the model."""

    batches: Sequence[Mapping[int, Rendered]]
    sites: Sequence[str]
    reading: Mapping[str, Any]

    def __call__(self, worker: WorkerModel) -> tuple[ModelFacts, CaptureCheck]:
        check = check_batches(worker.model, self.batches, read=worker.read, **self.reading)
        return ModelFacts.of(worker.model, self.sites), check


@dataclass(frozen=True, kw_only=True)
class _WriteRun:
    """Computes a run, writes those of its shards that are missing, and leaves their receipts."""

    run: Run
    missing: frozenset[int]
    layout: Layout

    def __call__(self, worker: WorkerModel) -> list[Receipt]:
        layout, receipts = self.layout, Receipts(self.layout)
        written = []
        with os_errors_explained(
            f"'{layout.storage.location}' cannot be written", committed="written"
        ):
            for rows, blocks in self.run.compute(
                worker.model, read=worker.read, read_earlier=self._read_earlier
            ):
                number = rows.start // layout.root.shard_rows
                if number in self.missing:
                    require_begun(layout)
                    receipt = write_shard(layout, number, blocks)
                    receipts.write(receipt)
                    written.append(receipt)
        return written

    def _read_earlier(self, rows: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """Read rows of shards that are written, whether or not they have a record yet."""
        maps, root = ShardMaps(self.layout, check=False), self.layout.root
        return {
            name: Residuals(maps, array, n=root.n, batch_rows=root.shard_rows).stored[rows]
            for name, array in self.layout.arrays.items()
        }


@dataclass(frozen=True, kw_only=True)
class _Certify:
    """Runs a few rows again, and compares them with the store."""

    path: str | Path | Storage
    rows: Mapping[int, Rendered]
    alone: Mapping[int, Mapping[str, Tensor]]
    """Values of the rows that the check ran alone."""

    reading: Mapping[str, Any]

    def __call__(self, worker: WorkerModel) -> dict[str, Any]:
        store = open_store(self.path, partial=True)
        return certify(store, worker.model, self.rows, alone=self.alone, **self.reading)


def _write_shards(pool: Pool, runs: Runs, writer: Writer, advance: Callable[[int], None]) -> None:
    """Let workers write the shards that have no receipt, and append the records of all."""
    root = writer.layout.root
    receipts = {
        shard: receipt
        for shard, receipt in writer.receipts.read().items()
        if shard * writer.shard_rows >= writer.committed
    }
    advance(writer.committed + sum(len(root.rows_of(shard)) for shard in receipts))
    _accept(writer, receipts)
    for _, written in pool.run(list(_tasks(runs, writer, receipts))):
        advance(sum(len(root.rows_of(receipt.shard)) for receipt in written))
        receipts |= {receipt.shard: receipt for receipt in written}
        _accept(writer, receipts)


def _tasks(runs: Runs, writer: Writer, receipts: Mapping[int, Receipt]) -> Iterator[Task]:
    """Make a task of each run of which shards are missing."""
    # The checksums of what is committed would travel with each task, and no task needs them.
    begun = replace(writer.layout, checksums=(), last_record=writer.layout.first_record)
    size = writer.shard_rows
    for number in runs.left(writer.committed):
        rows = runs.rows(number)
        shards = range(max(rows.start, writer.committed) // size, -(-rows.stop // size))
        missing = frozenset(shards) - receipts.keys()
        if missing:
            yield Task(
                name=_name(rows),
                work=_WriteRun(run=runs[number], missing=missing, layout=begun),
                needs=frozenset(_name(runs.rows(needed)) for needed in runs.needs(number)),
            )


def _name(rows: range) -> str:
    return f"rows {rows.start} to {rows.stop - 1}"


def _accept(writer: Writer, receipts: dict[int, Receipt]) -> None:
    """Append the records whose turn it is."""
    while (receipt := receipts.pop(writer.committed // writer.shard_rows, None)) is not None:
        writer.accept(receipt)


def require_begun(layout: Layout) -> None:
    """Refuse a folder that this machine does not share, or whose store is finished."""
    storage = layout.storage
    if not storage.exists(record_name(0)):
        raise ActcacheError(
            f"the worker on '{socket.gethostname()}' sees no store at '{storage.location}', "
            "expected the one that was begun. Write to a folder that all machines share, or "
            "to a bucket."
        )


def kind_of_device(device: torch.device) -> str:
    """Name what computes, as far as it decides the last bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
