"""How long a build will take: one real batch is timed, and scaled by tokens × layers.

An estimate, and called so: it leaves out loading, files and checks, and takes attention's cost as
proportional to length. The analyses' estimate of a sweep uses the same clock.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from actcache.build.plan import BuildPlan
from actcache.build.run import load_planned, reader
from actcache.engine.batching import plan_batches

MOST_BYTES = 16_000_000_000
"""Weights over this size are not loaded for an estimate's sake: 16 GB take about half a minute."""

PATIENCE = 2.0
"""Seconds that the timed batch may take; it is run three times."""

FEW_ROWS = 4
"""Rows of the batch that warms up and says how many the timed one can have."""


@dataclass(frozen=True)
class TimeEstimate:
    """How long a run will take, or why that is not known."""

    seconds: float | None
    """Of all passes, without loading, files and checks; None where nothing could be timed."""

    basis: str
    """What it was scaled from, or what was missing, in one line."""


def estimate_build(plan: BuildPlan) -> TimeEstimate:
    """Load the plan's model if its weights are here and small enough, and time one batch.

    Raises:
        ModelError: the model cannot be loaded, or its blocks lack a site.
    """
    config = plan.config
    refusal = why_not_loaded(config.model, revision=config.revision)
    if refusal is not None:
        return TimeEstimate(None, refusal)
    start = time.perf_counter()
    model = load_planned(config)
    read = reader(config)
    loading = time.perf_counter() - start

    def run(rows: Int64[np.ndarray, " _"]) -> None:
        found = read(
            model,
            [plan.rendered[row] for row in rows],
            positions=plan.positions,
            answer=config.answer,
            sites=config.sites,
        )
        for each in found.values():
            each.cpu()

    return scaled(
        plan.costs,
        plan.costs,
        budget=config.batch_tokens,
        run=run,
        place=str(model.device),
        loading=loading,
    )


def why_not_loaded(name: str, *, revision: str | None = None) -> str | None:
    """Why a model is not loaded for an estimate's sake; None where it may be."""
    n_bytes = weights_here(name, revision=revision)
    if n_bytes is None:
        return f"none: the weights of '{name}' are not on this machine, and are not fetched for it"
    if n_bytes > MOST_BYTES:
        return (
            f"none: the weights of '{name}' are {n_bytes / 1e9:.0f} GB, over the "
            f"{MOST_BYTES / 1e9:.0f} GB that are loaded for it"
        )
    return None


def weights_here(name: str, *, revision: str | None = None) -> int | None:
    """Bytes of a model's weights on this machine; None unless all of them are here.

    Args:
        name: local folder, or an id whose files may lie in the Hub's cache.
        revision: branch, tag or commit on the Hub.
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
    sizes = [
        path.stat().st_size for kind in ("safetensors", "bin") for path in folder.glob(f"*.{kind}")
    ]
    return sum(sizes) or None


def scaled(
    costs: Sequence[int],
    work: Sequence[int],
    *,
    budget: int,
    run: Callable[[Int64[np.ndarray, " _"]], None],
    place: str,
    loading: float,
) -> TimeEstimate:
    """Time rows of the batch in the middle, and scale to all batches.

    Args:
        costs: tokens of each row, by which batches are planned.
        work: what a row costs, in any unit, for example tokens or token-layers; a batch costs its
            rows × its dearest row, since it is padded to that.
        budget: tokens of a batch.
        run: runs the rows of these numbers, to the end (a device is waited for).
        place: the device, for the words.
        loading: seconds that loading took, for the words.

    Returns:
        The estimate: of the batch that holds the median row as many rows as `PATIENCE` allows.
    """
    batches = plan_batches(costs, budget=budget)
    middle = batches[int(np.searchsorted(np.cumsum([len(b) for b in batches]), len(costs) / 2))]
    rows, took = time_rows(run, middle)
    each = np.asarray(work, np.float64)
    whole = sum(len(batch) * each[batch].max() for batch in batches)
    seconds = took / (len(rows) * each[rows].max()) * whole
    return TimeEstimate(
        float(f"{seconds:.3g}"),
        f"{len(rows)} rows of up to {max(costs[row] for row in rows)} tokens took {took:.3g} s on "
        f"{place}; scaled by tokens × layers, padding included. Loading ({loading:.2g} s here), "
        "files and checks come on top.",
    )


def time_rows(
    run: Callable[[Int64[np.ndarray, " _"]], None], rows: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " _"], float]:
    """The rows that were timed, as many as fit into `PATIENCE`, and their seconds (median of 3)."""
    few = rows[:FEW_ROWS]
    run(few)
    once = _clock(lambda: run(few))
    if once >= PATIENCE:
        return few, once
    chosen = rows[: max(len(few), int(len(few) * PATIENCE / once))]
    return chosen, statistics.median(_clock(lambda: run(chosen)) for _ in range(3))


def _clock(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
