"""Cases of an analysis on Ray: the folder and the sweep of one machine, whatever dies."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
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
from actcache.analysis.workers import LoadUnits, PoolMap
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.cluster.pool import Pool
from actcache.data.formats import read_samples
from actcache.progress import SILENT
from tests.support.cluster import tree
from tests.support.processes import ROOT


@dataclass(frozen=True)
class Deadly:
    """A direction for all rows that kills the first process which asks for it, once."""

    values: np.ndarray
    alive: Path
    """While this file is there, nobody is killed."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if rows.size > 1 and not self.alive.exists():
            self.alive.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.repeat(self.values[None], rows.size, axis=0)


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
        units = PoolMap(session, pool)
        compare_folders(store, folder, units)
        compare_sweeps(store, folder, units)


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


def compare_sweeps(store, folder, units):
    """Sweep in 9 shards, one machine and workers, one of which is killed within a shard."""
    values = np.random.default_rng(0).normal(size=(store.n_layers, store.d_model))
    deadly = Deadly(values.astype(np.float32), folder / "alive")
    run = partial(
        run_sweep,
        store,
        {"d": RowDirections(rows=deadly, digest="0" * 64)},
        multipliers=(-1.0, 1.0),
        shard_rows=8,
        score="logprob",
    )
    deadly.alive.touch()
    run(out=folder / "alone.zarr", batch_tokens=600)
    run(out=folder / "other.zarr", batch_tokens=200)
    array = "d/propensity/c.0.0.0"
    alone = tree(folder / "alone.zarr")
    assert tree(folder / "other.zarr")[array] != alone[array]  # batching shows
    deadly.alive.unlink()
    run(out=folder / "swept.zarr", batch_tokens=600, map_units=units, shared=True)
    assert deadly.alive.exists()  # somebody died
    assert tree(folder / "swept.zarr") == alone
    assert not (folder / "swept.zarr.partial.receipts").exists()


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
    the_command_line_analyzes_on_a_cluster,
]
