"""A build whose workers log the rows they run, and fail when a test orders it."""

import json
import os
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from actcache import demo
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.workers import LoadModel
from actcache.cluster.task import Loaded
from actcache.data.formats import read_samples
from actcache.engine.self_check import batches_to_check

SHARD_ROWS, RUN_ROWS = 8, 24
SIZES: dict[str, Any] = {"shard_rows": SHARD_ROWS, "run_rows": RUN_ROWS}
SLOW_SECONDS = 3.0
"""Where a twin is wanted. Elsewhere the pool's own: on a busy machine any task may take this long."""

REPEATS = {20: 3, 30: 2, 31: 26, 50: 7, 51: 49, 75: 29, 80: 52}
"""Rows of the plan, and the earlier ones that they repeat."""


def demo_plan():
    """Plan 88 rows of the demo: four runs of three shards, the last of them shorter."""
    samples = read_samples(demo.row_files("tidy"))
    chosen = [
        replace(samples[REPEATS.get(i, i)], id=f"row {i}", behavior=f"b{i // 20}")
        for i in range(88)
    ]
    config = BuildConfig(model=str(demo.model_path()), batch_tokens=300)
    return plan_build(chosen, config)


def shards_with_receipts(path):
    receipts = path.with_name(f"{path.name}.partial.receipts")
    return {int(file.stem) for file in receipts.glob("*.json")}


class Folder:
    """Folder in which workers log, and look up the faults that a test orders."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(exist_ok=True)

    def order(self, fault, rows=()):
        """Order one fault (kill, hang, oom) in a run of these rows, or in any run."""
        (self.path / "fault").write_text("\n".join([fault, *map(key, rows)]))

    def take(self, rows):
        """Return the ordered fault if it is for these rows, once; else an empty string."""
        try:
            fault, *keys = (self.path / "fault").read_text().splitlines()
            if keys and not set(keys) & set(map(key, rows)):
                return ""
            (self.path / "fault").rename(self.path / "taken")
        except FileNotFoundError:
            return ""
        return fault

    def heal(self):
        """End what hangs."""
        (self.path / "healed").touch()

    def hold(self, rows):
        """Slow workers down, and stop passes over these rows until `release`."""
        (self.path / "held").write_text("\n".join(map(key, rows)))

    def release(self):
        """End `hold`: workers run at full speed."""
        (self.path / "held").unlink(missing_ok=True)

    def held(self):
        """Return the keys of the held rows; None if nothing is held."""
        try:
            return set((self.path / "held").read_text().splitlines())
        except FileNotFoundError:
            return None

    def wait_for_the_end_of_workers(self):
        """Wait until all workers that have loaded have ended, and so write nothing more."""
        for file in self.path.glob("worker *"):
            while is_alive(int(file.name.split()[1])):
                time.sleep(0.02)
            file.unlink()

    def log(self, rows):
        with (self.path / "log").open("a") as file:
            file.write(json.dumps([key(row) for row in rows]) + "\n")

    def rows_run(self, plan):
        """Count how often each row was run since the last call, without the check."""
        log = self.path / "log"
        numbers: dict[str, int] = {}
        for i, row in enumerate(plan.rendered):
            numbers.setdefault(key(row), i)
        counts = [0] * plan.n
        lines = log.read_text().splitlines() if log.exists() else []
        for row in (row for line in lines for row in json.loads(line)):
            counts[numbers[row]] += 1
        log.unlink(missing_ok=True)
        checked = batches_to_check(plan.rendered, positions=plan.positions, shares=True)
        for row in chain.from_iterable(batch.values() for batch in checked):
            counts[numbers[key(row)]] -= 1
        return counts


def key(row):
    """Return the key of a row: rows of equal tokens share it, and are run once."""
    return str([list(row.prompt), list(row.positive)])


def is_alive(pid):
    """Tell whether a process runs or sleeps; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@dataclass(frozen=True)
class LoadFaulty:
    """Loads the model of a build so that it logs its passes and fails as ordered."""

    config: BuildConfig
    path: str

    def __call__(self) -> Loaded:
        loaded = LoadModel(config=self.config)()
        folder, right = Folder(self.path), loaded.value.read
        (folder.path / f"worker {os.getpid()}").touch()

        def read(model, rows, **settings):
            folder.log(rows)
            if len(rows) <= 2:  # the check before the build
                return right(model, rows, **settings)
            fault = folder.take(rows)
            if fault == "kill":
                os.kill(os.getpid(), 9)
            if fault == "oom":
                raise torch.OutOfMemoryError
            while fault == "hang" and not (folder.path / "healed").exists():
                time.sleep(0.1)
            while (held := folder.held()) is not None:
                time.sleep(0.15)
                if not held & set(map(key, rows)):
                    break
            return right(model, rows, **settings)

        return replace(loaded, value=replace(loaded.value, read=read))


@dataclass(frozen=True)
class LoadOtherDtype:
    """Loads the model in float16, and in float32 in each worker but the first, which hangs.

    The others load it once the first one has a task, and so has stated its dtype.
    """

    config: BuildConfig
    path: str

    def __call__(self) -> Loaded:
        at_work = Path(self.path) / "at work"
        try:
            (Path(self.path) / "first").mkdir()
        except FileExistsError:
            while not at_work.exists():
                time.sleep(0.1)
            return LoadModel(config=replace(self.config, dtype="float32"))()
        loaded = LoadModel(config=self.config)()
        right = loaded.value.read

        def read(model, rows, **settings):
            at_work.touch()
            if len(rows) > 2:  # the other one may take long to load
                time.sleep(3600)
            return right(model, rows, **settings)

        return replace(loaded, value=replace(loaded.value, read=read))
