"""Analyses on Ray: the results folder and sweep equal those of one machine, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from unittest import mock

import numpy as np

from actcache import demo
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.pipeline import analyze, run_stages
from actcache.analysis.predict import learned_vectors, stage
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.run import run_sweep
from actcache.analysis.workers import LoadUnits, PoolMap, units_on
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.cluster.pool import Pool
from actcache.cluster.session import Workers
from actcache.data.formats import read_samples
from actcache.progress import SILENT
from actcache.store.store import open_store
from tests.cluster.faults import SLOW_SECONDS, Folder, shards_with_receipts
from tests.support.cluster import tree
from tests.support.processes import ROOT

SHARD_ROWS, N_SHARDS = 8, 9


@dataclass(frozen=True)
class FaultyDirection:
    """A direction for all rows that logs the shards asked for; the caller may fail as ordered."""

    values: np.ndarray
    orders: Folder

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if rows.size > 1:  # one is the check before the sweep
            self._log_and_fail(rows[0] // SHARD_ROWS)
        return np.repeat(self.values[None], rows.size, axis=0)

    def _log_and_fail(self, shard: int) -> None:
        with (self.orders.path / "log").open("a") as file:
            file.write(f"{shard}\n")
        fault = self.orders.take(())
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while fault == "hang" and not (self.orders.path / "healed").exists():
            time.sleep(0.1)
        while self.orders.held() is not None:
            (self.orders.path / f"worker {os.getpid()}").touch()
            time.sleep(0.1)
            if shard != N_SHARDS - 1:
                break

    def shards(self) -> list[int]:
        """Return the shards that were asked for since the last call."""
        log = self.orders.path / "log"
        lines = log.read_text().splitlines()
        log.unlink()
        return sorted({int(line) for line in lines})


def built(folder):
    """Two behaviors of the demo in 72 shards: two groups."""
    samples = [
        replace(sample, split=("train", "train", "validation", "test")[i // 2 % 4])
        for i, sample in enumerate(read_samples(demo.row_files("tidy", "thrifty"), limit=36))
    ]
    config = BuildConfig(model=str(demo.model_path()), batch_tokens=300)
    return run_build(plan_build(samples, config), folder / "s.zarr", shard_rows=1)


def units_are_run_with_the_results_of_one_machine(session, folder):
    store = built(folder)
    with Pool(session, LoadUnits(device="cpu")) as pool:
        compare_folders(store, folder, PoolMap(session, pool))


def compare_folders(store, folder, units):
    """Analyze both ways; the settings of networks are made here, and travel to the workers."""
    config = AnalyzeConfig(
        multipliers=(-1.0, 0.0, 1.0),
        methods=("mean", "ridge"),
        draws=20,
        seeds=2,
        top=(1,),
        context_layers=(0,),
    )
    w2s = partial(W2SSettings, widths=(8,), depths=(1,), decays=(0.01,), epochs=(3,), folds=2)
    l2s = partial(L2SSettings, hidden=4, rates=(1e-2,), components=(8,), epochs=4)
    out = folder / "out"  # the report names it
    with (
        mock.patch.object(stage, "W2SSettings", w2s),
        mock.patch.object(learned_vectors, "L2SSettings", l2s),
    ):
        analyze(store, out, config=config, device="cpu")
        out.rename(folder / "alone")
        out.mkdir()
        run_stages(
            store.checked(),
            out,
            config,
            left_out=(),
            model=None,
            progress=SILENT,
            device="cpu",
            formats=("png",),
            map_units=units,
            shared=True,
        )
    alone, together = tree(folder / "alone"), tree(out)
    assert alone.keys() == together.keys()
    assert [name for name in alone if alone[name] != together[name]] == []
    assert "predictors.npz" in alone


def faulty_sweep(store, orders):
    """A sweep of a store in several shards, and its direction."""
    values = np.random.default_rng(0).normal(size=(store.n_layers, store.d_model))
    direction = FaultyDirection(values.astype(np.float32), orders)
    sets = {"d": RowDirections(rows=direction, digest="0" * 64)}
    run = partial(
        run_sweep,
        store,
        sets,
        multipliers=(-1.0, 1.0),
        shard_rows=SHARD_ROWS,
        score="logprob",
        batch_tokens=600,
    )
    return run, direction


def coordinate_sweep(store, orders, out, address):
    """Sweep in a separate process, which the test kills."""
    run, _ = faulty_sweep(open_store(store), Folder(orders))
    with units_on(Workers(n=2, address=address), device="cpu") as units:
        run(out=out, map_units=units, shared=True)


def kill_coordinator(store, orders, out, address):
    """Start `coordinate_sweep`, which never ends its last shard, and kill it."""
    orders.hold(())
    code = (
        "import sys; from tests.cluster.analyses import coordinate_sweep as run; run(*sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, store, orders.path, out, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            while len(shards_with_receipts(out)) < 3:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()
    orders.wait_for_the_end_of_workers()
    orders.release()


def a_sweep_ends_with_the_bytes_of_one_machine_whatever_dies(session, folder):
    store, orders = built(folder), Folder(folder / "orders")
    run, direction = faulty_sweep(store, orders)
    run(out=folder / "alone.zarr")
    run(out=folder / "other.zarr", batch_tokens=200)
    array = "d/propensity/c.0.0.0"
    alone = tree(folder / "alone.zarr")
    assert tree(folder / "other.zarr")[array] != alone[array]  # batching shows

    resumed = folder / "resumed.zarr"
    kill_coordinator(store.path, orders, resumed, session.ray.get_runtime_context().gcs_address)
    shards = shards_with_receipts(resumed)
    direction.shards()
    with Pool(session, LoadUnits(device="cpu")) as pool:

        def require_same(out):
            run(out=out, map_units=PoolMap(session, pool), shared=True)
            assert tree(out) == alone
            assert not out.with_name(f"{out.name}.partial.receipts").exists()

        require_same(resumed)
        assert direction.shards() == sorted(set(range(N_SHARDS)) - shards)
        assert 3 <= len(shards) < N_SHARDS
        orders.order("kill")
        require_same(folder / "kill.zarr")
        orders.order("hang")
        with mock.patch.object(pool, "_slow_seconds", SLOW_SECONDS):
            require_same(folder / "hang.zarr")
        assert orders.take(()) == ""  # somebody had it
        orders.heal()


def the_command_line_analyzes_on_a_cluster(session, folder):
    store = built(folder).path
    address = session.ray.get_runtime_context().gcs_address
    command = ["analyze", store, "-o", folder / "out", "--stages", "vectors,layers", "--json"]
    command = [str(word) for word in command]
    code, out, error = call_main(*command)
    assert (code, error) == (0, "")
    (folder / "out").rename(folder / "alone")
    more = ("--workers", "1", "--cluster", address)
    done = subprocess.run(
        [*(sys.executable, "-W", "error", "-m", "actcache", *command), *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == json.loads(out)
    assert tree(folder / "out") == tree(folder / "alone")


def call_main(*command):
    """Call the command line in this process; return its exit code, stdout and stderr."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as error:
        code = main([*command])
    return code, out.getvalue(), error.getvalue()


ANALYSIS_CASES = [
    units_are_run_with_the_results_of_one_machine,
    a_sweep_ends_with_the_bytes_of_one_machine_whatever_dies,
    the_command_line_analyzes_on_a_cluster,
]
