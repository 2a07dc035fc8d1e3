"""Stages whose units run elsewhere and in any order leave the folder of a plain loop, byte for byte."""

import json
from functools import partial

import numpy as np
import pytest

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.pipeline import analyze, run_stages
from actcache.analysis.predict import learned_vectors, stage
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.stats.units import UnitSteps
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from actcache.progress import SILENT
from tests.analysis.concepts.test_stage import concept_store
from tests.support import tiny
from tests.support.stores import file_bytes
from tests.support.units import ShuffledMap


def assert_same_folder(store, folder, config, *, at_least):
    """Run the stages both ways; `at_least` units are to run in some calls of the map."""
    out = folder / "out"  # the report names it
    analyze(store, out, config=config, device="cpu")
    out.rename(folder / "alone")
    out.mkdir()
    elsewhere = ShuffledMap()
    run_stages(
        store.checked(),
        out,
        config,
        left_out=(),
        model=None,
        progress=SILENT,
        device="cpu",
        formats=("png",),
        map_units=elsewhere,
        shared=True,
    )
    alone, together = file_bytes(folder / "alone"), file_bytes(out)

    assert alone.keys() == together.keys()
    assert [name for name in alone if alone[name] != together[name]] == []
    counts = [len(order) for order in elsewhere.orders]
    for n_units in set(at_least):
        assert counts.count(n_units) >= at_least.count(n_units), counts


def test_layers_planes_and_concepts(tmp_path):
    rng = np.random.default_rng(1)

    def with_norms(arrays):
        values = arrays["resid_post/template_-1"]
        for site in ("ln1", "ln2"):
            noise = rng.normal(size=values.shape).astype(np.float32)
            arrays[f"{site}/template_-1"] = values + noise

    store = concept_store(tmp_path / "s.zarr", concepts=("bees", "snow"), change=with_norms)
    config = AnalyzeConfig(
        stages=("vectors", "layers", "concepts"), methods=("mean", "ridge"), draws=20
    )

    assert_same_folder(store, tmp_path, config, at_least=[2, 2, 2])  # each of the three


@pytest.fixture
def small(monkeypatch):
    """Networks of a few units and epochs."""
    w2s = partial(W2SSettings, widths=(8,), depths=(1,), decays=(0.01,), epochs=(3,), folds=2)
    l2s = partial(L2SSettings, hidden=4, rates=(1e-2,), components=(8,), epochs=4)
    monkeypatch.setattr(stage, "W2SSettings", w2s)
    monkeypatch.setattr(learned_vectors, "L2SSettings", l2s)


@pytest.mark.model
@pytest.mark.slow
def test_vectors_fits_sweep_and_predictors(tmp_path, small):
    rng = np.random.default_rng(0)
    for name in ("tidy", "calm"):
        lines = "\n".join(map(json.dumps, tiny.lettered_rows(36, rng)))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    samples = read_samples([tmp_path / "tidy.jsonl", tmp_path / "calm.jsonl"])
    plan = plan_build(samples, BuildConfig(model=tiny.save(tmp_path / "model")))
    store = run_build(plan, tmp_path / "s.zarr", shard_rows=1)  # two groups of shards
    config = AnalyzeConfig(
        multipliers=(-1.0, -0.5, 0.5, 1.0),
        methods=("mean", "ridge"),
        norm="residual",
        splits=2,
        draws=20,
        seeds=2,
        top=(1,),
        context_layers=(0,),
        encoders=("cache", "cache:1"),
    )

    # Groups of two passes; fits, norms and networks of two behaviors; their folds; the predictors
    # of four sets and of another encoder.
    assert_same_folder(store, tmp_path, config, at_least=[2] * 5 + [10, 10])


def test_a_bar_moves_within_units_here_and_after_those_that_ran_elsewhere():
    def bar(map_units):
        moves: list[int] = []
        steps = UnitSteps(moves.append, of_unit=3)
        for _ in map_units(partial(two_of_three, steps), range(2)):
            steps.finish_unit()
        return moves

    assert bar(map) == [2, 1, 2, 1]
    assert bar(ShuffledMap()) == [3, 3]


def two_of_three(steps, _unit):
    steps(2)
