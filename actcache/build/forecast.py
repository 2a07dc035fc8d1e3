"""Forecasts of a build: passes and bytes from its plan, and time from one real batch.

The time is an estimate: one batch is timed and scaled by tokens × layers. It leaves out loading,
files and checks, and treats attention's cost as proportional to length. The forecast of a sweep
uses the same functions.
"""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from actcache.build.plan import BuildPlan
from actcache.build.run import load_planned, reader
from actcache.build.runs import shards_of_a_run
from actcache.engine.batching import Heads, n_shared, plan_batches
from actcache.engine.model import LanguageModel
from actcache.engine.self_check import CaptureFunction
from actcache.store.schema import shard_rows
from actcache.store.storage.address import bucket_address

MAX_BYTES = 16_000_000_000
"""Larger weights are not loaded for an estimate: 16 GB take about half a minute."""

MAX_SECONDS = 2.0
"""How long the timed batch may take; it runs three times."""

N_WARM_UP = 4
"""Rows of the first batch, which warms up and decides how many rows the timed batch has."""

Clock = Callable[[], float]
RunRows = Callable[[Int64[np.ndarray, " _"]], None]
"""Runs the rows of these numbers to the end: the device has finished when it returns."""


@dataclass(frozen=True)
class TimeEstimate:
    """How long a run will take, or why that is not known."""

    seconds: float | None
    """Of all passes, without loading, files and checks; None if nothing could be timed."""

    basis: str
    """What was timed, or what was missing, in one line."""


def forecast_build(plan: BuildPlan, path: str | Path) -> dict[str, Any]:
    """Forecast what a build at `path` costs: rows, tokens, passes, bytes and seconds.

    `tokens shared` are those that a pass need not run, since another of its rows begins with them.
    """
    in_bucket = bucket_address(path) is not None
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    config = plan.config
    refusal = why_not_loaded(config.model, revision=config.revision)
    start = time.perf_counter()
    model = None if refusal is not None else load_planned(config)
    loading = time.perf_counter() - start
    heads = plan.heads(range(plan.n))
    if model is not None and not model.can_share_beginnings:
        heads = None
    a_shard, _ = shard_rows(plan.arrays, plan.n)
    batching: dict[str, Any] = {
        "budget": config.batch_tokens,
        "heads": heads,
        "run_rows": a_shard * shards_of_a_run(plan.arrays, a_shard),
    }
    batches = plan_batches(plan.costs, **batching)
    n_saved = sum(n_shared(batch, heads) for batch in batches)
    if model is None:
        estimate = TimeEstimate(None, str(refusal))
    else:
        run = partial(_run, plan, model, reader(config))
        place = str(model.device)
        estimate = scaled(plan.costs, plan.costs, run=run, place=place, loading=loading, **batching)
    n_tokens = sum(plan.costs)
    return {
        "rows": plan.n,
        "left out": len(plan.left_out),
        "tokens": n_tokens,
        "tokens shared": n_saved,
        "passes": len(batches),
        "token-layers": (n_tokens - n_saved) * plan.model_config.num_hidden_layers,
        "bytes on disk": plan.n_bytes,
        **({} if in_bucket else {"bytes free": shutil.disk_usage(folder).free}),
        "estimated seconds": estimate.seconds,
        "estimate": estimate.basis,
    }


def _run(
    plan: BuildPlan, model: LanguageModel, read: CaptureFunction, rows: Int64[np.ndarray, " _"]
) -> None:
    residuals = read(model, [plan.rendered[row] for row in rows], **plan.reading)
    for values in residuals.values():
        values.cpu()  # waits for the device


def why_not_loaded(
    name: str, *, revision: str | None = None, max_bytes: int = MAX_BYTES
) -> str | None:
    """Explain why a model is not loaded for an estimate; None if it may be."""
    n_bytes = local_weights(name, revision=revision)
    if n_bytes is None:
        return (
            f"none: the weights of '{name}' are not on this machine, and an estimate "
            "does not fetch them"
        )
    if n_bytes > max_bytes:
        return (
            f"none: the weights of '{name}' are {n_bytes / 1e9:.0f} GB, over the "
            f"{max_bytes / 1e9:.0f} GB that an estimate loads"
        )
    return None


def local_weights(name: str, *, revision: str | None = None) -> int | None:
    """Count the bytes of a model's weights, in its folder or in the Hub's cache.

    None unless all of them are on this machine.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError):  # not in the cache; not an id
            return None
    for index in folder.glob("*.index.json"):
        files = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if not all((folder / file).is_file() for file in files):
            return None
    paths = [path for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")]
    return sum(path.stat().st_size for path in paths) or None


def scaled(
    costs: Sequence[int],
    work: Sequence[int],
    *,
    budget: int,
    run: RunRows,
    place: str,
    loading: float,
    heads: Heads = None,
    a_token: int = 1,
    run_rows: int | None = None,
    clock: Clock = time.perf_counter,
) -> TimeEstimate:
    """Time rows of the batch that holds the median row, and scale to all batches.

    Args:
        costs: tokens of each row, by which batches are planned.
        work: what a row costs, in any unit, for example token-layers; a batch costs its number of
            rows × its longest row, since all are padded to that.
        budget: tokens of a batch.
        run: runs the rows that are timed.
        place: the device, for the basis.
        loading: seconds that loading took, for the basis.
        heads: what rows may share; see `plan_batches`.
        a_token: what a shared token costs, in the unit of `work`.
        run_rows: rows of a run; a batch holds rows of one run.
        clock: tells the time in seconds.
    """
    batches = plan_batches(costs, budget=budget, heads=heads, run_rows=run_rows)
    middle = batches[int(np.searchsorted(np.cumsum([len(b) for b in batches]), len(costs) / 2))]
    rows, took = _time_rows(run, middle, clock)
    row_work = np.asarray(work, np.float64)

    def work_of(batch: Int64[np.ndarray, " _"]) -> float:
        return float(len(batch) * row_work[batch].max() - a_token * n_shared(batch, heads))

    seconds = took / work_of(rows) * sum(map(work_of, batches))
    return TimeEstimate(
        float(f"{seconds:.3g}"),
        f"{len(rows)} rows of up to {max(costs[row] for row in rows)} tokens took {took:.3g} s on "
        f"{place}; scaled by tokens × layers, padding included. Loading ({loading:.2g} s here), "
        "files and checks come on top.",
    )


def _time_rows(
    run: RunRows, rows: Int64[np.ndarray, " n"], clock: Clock
) -> tuple[Int64[np.ndarray, " _"], float]:
    """Time as many rows as fit into `MAX_SECONDS`; return them and the median of three runs."""

    def seconds(timed: Int64[np.ndarray, " _"]) -> float:
        start = clock()
        run(timed)
        return clock() - start

    first = rows[:N_WARM_UP]
    run(first)
    once = seconds(first)
    if once >= MAX_SECONDS:
        return first, once
    timed = rows[: max(len(first), int(len(first) * MAX_SECONDS / once))]
    return timed, statistics.median(seconds(timed) for _ in range(3))
