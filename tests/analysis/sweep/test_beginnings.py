"""Sweeps of rows that share a system message: what runs, what comes out, what a dry run counts."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.sweep import grid as sweep_grid
from actcache.analysis.sweep.forecast import forecast_analysis
from actcache.analysis.sweep.run import run_sweep
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.replay import rendered_pairs
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from actcache.engine.model import load_model
from actcache.engine.steered_scores import score_grid
from tests.reference.engine import naive_propensity
from tests.support.tiny import lettered_rows, save

pytestmark = pytest.mark.model
MULTIPLIERS = (-1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Forty rows, of which two in three have a system message of 38 tokens."""
    folder = tmp_path_factory.mktemp("sharing")
    save(folder / "model")
    rows = lettered_rows(40, np.random.default_rng(0))
    text = "\n".join(map(json.dumps, rows))
    (folder / "calm.jsonl").write_text(text, encoding="utf-8")
    samples = [
        replace(sample, system="Answer as someone who is calm would." if i % 3 else None)
        for i, sample in enumerate(read_samples([folder / "calm.jsonl"]))
    ]
    config = BuildConfig(model=str(folder / "model"))
    return run_build(plan_build(samples, config), folder / "s.zarr")


@pytest.fixture(scope="module")
def model(store):
    loaded = load_model(store.provenance["model"]["name"])
    assert loaded.can_share_beginnings
    return loaded


def test_it_equals_full_passes_and_a_dry_run_counts_it(store, model, tmp_path, monkeypatch):
    directions = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)
    rows = rendered_pairs(store)
    settings: dict[str, Any] = {"multipliers": MULTIPLIERS, "batch_tokens": 500}
    config = AnalyzeConfig(controls=0, **settings)
    facts = forecast_analysis(store, None, config=config, model=lambda: model)
    sizes = []

    def counted(model, rows, **rest):
        sizes.append(len(rows))
        return score_grid(model, rows, **rest)

    monkeypatch.setattr(sweep_grid, "score_grid", counted)
    sweep = run_sweep(store, {"d": directions}, out=tmp_path / "w.zarr", model=model, **settings)

    assert facts["passes"] == len(sizes) - 2  # two of the check before it
    assert facts["tokens shared"] > 20 * 38
    for i in (0, 1, 2, 38, 39):
        for layer in range(4):
            slow = naive_propensity(
                model.hf,
                model.anatomy.blocks,
                rows[i],
                torch.from_numpy(directions[layer]),
                1.0,
                layer,
                first_steered="fork",
                score="letter",
            )
            np.testing.assert_allclose(
                sweep.propensity_of("d")[i, layer, 2], slow, rtol=1e-5, atol=1e-5
            )


def test_broken_and_resumed_equals_uninterrupted(store, model, tmp_path, monkeypatch):
    directions = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)
    settings: dict[str, Any] = {
        "sets": {"d": directions},
        "multipliers": MULTIPLIERS,
        "model": model,
        "batch_tokens": 500,
        "shard_rows": 16,
    }
    whole = run_sweep(store, out=tmp_path / "whole.zarr", **settings)
    calls = []

    def breaks(*args, **rest):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("the model broke")
        return score_grid(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_grid, "score_grid", breaks)
        with pytest.raises(RuntimeError, match="broke"):
            run_sweep(store, out=tmp_path / "w.zarr", **settings)
    assert (tmp_path / "w.zarr.partial").exists()

    resumed = run_sweep(store, out=tmp_path / "w.zarr", **settings)

    np.testing.assert_array_equal(resumed.propensity_of("d"), whole.propensity_of("d"))
