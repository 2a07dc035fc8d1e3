"""Run one stage in its own process, for `benchmarks.memory`; print its memory and time.

The floor is measured first: the same process after loading what the stage needs and running one
batch. Then comes the stage. Memory is the process's peak: resident (mapped files included) and,
where /proc has it, anonymous (which the kernel cannot drop and read again).
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTE = 1e6
STATUS = Path("/proc/self/status")
SAMPLE_EVERY = 0.005
"""Seconds between two samples of anonymous memory, whose peak the kernel does not keep."""

BATCH_ROWS = 256
"""Rows of the one batch that is the floor of `moments`."""


Parts = tuple[Callable[[], None], Callable[[], int], Callable[[], int]]
"""Runs the floor; returns the bytes of texts and tokens; runs the stage and returns shard rows."""


class Watch:
    """Peak of anonymous memory so far, sampled by a thread."""

    def __init__(self) -> None:
        self.peak = 0.0
        if STATUS.exists():
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, megabytes("RssAnon"))
            time.sleep(SAMPLE_EVERY)


def megabytes(field: str) -> float:
    """Read one line of /proc/self/status (`RssAnon`, `VmHWM`, …); 0 where there is no /proc."""
    if not STATUS.exists():
        return 0.0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MEGABYTE


def peak_resident() -> float:
    """Return the largest resident megabytes of this process so far."""
    # Linux hands ru_maxrss on to a child that runs another program, so it may be the parent's.
    if STATUS.exists():
        return megabytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def deep_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Count the bytes of a Python object and all that it holds, each object once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set)):
        inner = list(value)
    elif hasattr(value, "__dict__"):
        inner = [vars(value)]
    return sys.getsizeof(value) + sum(deep_bytes(item, seen) for item in inner)


def build(args: dict[str, Any]) -> Parts:
    import torch

    from actcache.build.config import BuildConfig
    from actcache.build.plan import BuildPlan, plan_build
    from actcache.build.run import run_build
    from actcache.data.formats import read_samples
    from actcache.engine.batching import plan_batches
    from actcache.engine.model import load_model
    from actcache.engine.tree_capture import capture

    torch.set_num_threads(args["threads"])
    config = BuildConfig(
        model=args["model"],
        dtype="float32",
        device="cpu",
        template=args["template"],
        batch_tokens=args["batch_tokens"],
    )
    model = load_model(args["model"], dtype="float32", device="cpu")
    model.digest  # noqa: B018  # hashed once a model

    def floor() -> None:
        plan = plan_build(read_samples(args["data"], limit=args["floor_rows"]), config)
        batch = plan_batches(plan.costs, budget=config.batch_tokens)[0]
        rows = [plan.rendered[i] for i in batch]
        capture(model, rows, positions=plan.positions, answer="first", sites=config.sites)

    plan: BuildPlan

    def rows() -> int:
        nonlocal plan
        plan = plan_build(read_samples(args["data"], limit=args["n"]), config)
        return deep_bytes([*plan.samples, *plan.rendered])

    def stage() -> int:
        store = run_build(plan, args["store"], model=model)
        return store.shard_rows

    return floor, rows, stage


def sweep(args: dict[str, Any]) -> Parts:
    import torch

    from actcache.analysis.sweep.grid import sweep_costs
    from actcache.analysis.sweep.run import run_sweep
    from actcache.build.replay import rendered_pairs
    from actcache.engine.batching import plan_batches
    from actcache.engine.model import load_model
    from actcache.engine.steered_scores import SteeringRule, score_grid
    from actcache.store.store import open_store

    torch.set_num_threads(args["threads"])
    model = load_model(args["model"], dtype="float32", device="cpu")
    model.digest  # noqa: B018  # hashed once a model
    store, rule = open_store(args["store"]), SteeringRule(score="logprob")
    multipliers, layers = [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], list(range(model.n_layers))
    shape = (1, model.n_layers, model.d_model)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def floor() -> None:
        rows = rendered_pairs(store)[: args["floor_rows"]]
        costs = sweep_costs(rows, rule, n_cells=len(layers) * (len(multipliers) - 1))
        batch = plan_batches(costs, budget=args["batch_tokens"])[0]
        score_grid(
            model,
            [rows[i] for i in batch],
            directions=torch.from_numpy(values),
            multipliers=multipliers,
            rule=rule,
            layers=layers,
        )

    def rows() -> int:
        return deep_bytes(rendered_pairs(store))  # as the sweep keeps them

    def stage() -> int:
        done = run_sweep(
            store,
            {"random": values[0]},
            multipliers=multipliers,
            out=Path(args["store"]).with_suffix(".sweep"),
            model=model,
            score=rule.score,
            batch_tokens=args["batch_tokens"],
        )
        return done.store.shard_rows

    return floor, rows, stage


def moments(
    args: dict[str, Any],
) -> Parts:
    from actcache.analysis.directions.difference_of_means import pair_directions
    from actcache.store.store import open_store

    store = open_store(args["store"])

    def floor() -> None:
        pair_directions(store, rows=np.arange(store.n) < BATCH_ROWS)

    def stage() -> int:
        pair_directions(store, rows=np.ones(store.n, np.bool_))
        return store.shard_rows

    return floor, lambda: 0, stage


STAGES = {"build": build, "sweep": sweep, "moments": moments}
"""Sets each stage up, in a process that has loaded nothing yet."""


def main(argv: Sequence[str] | None = None) -> None:
    args = json.loads((sys.argv[1:] if argv is None else argv)[0])
    watch = Watch()
    floor, rows, stage = STAGES[args["stage"]](args)
    floor()
    figures = {"floor": peak_resident(), "floor anonymous": watch.peak}
    figures["rows"] = rows() / MEGABYTE
    start = time.perf_counter()
    figures["shard rows"] = stage()
    figures["seconds"] = time.perf_counter() - start
    print(json.dumps({**figures, "peak": peak_resident(), "peak anonymous": watch.peak}))


if __name__ == "__main__":
    main()
