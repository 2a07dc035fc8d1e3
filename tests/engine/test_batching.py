"""When the device runs out of memory: batches are split, the run continues, results stay the same."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actcache.analysis.sweep import grid
from actcache.analysis.sweep import run as sweep
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import load_model
from actcache.engine.steered_scores import score_grid
from actcache.engine.tree_capture import capture
from actcache.errors import ModelError
from tests.support.tiny import save

costs = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(costs, st.integers(1, 500), st.integers(50, 200))
def test_every_row_runs_once_and_no_pass_exceeds_the_memory(costs, budget, room):
    ran = []

    def run(batch):
        if max(costs[i] for i in batch) * len(batch) > room:
            raise torch.OutOfMemoryError
        ran.extend(batch.tolist())

    run_batches(costs, budget=Budget(budget), run=run)

    assert sorted(ran) == list(range(len(costs)))


def test_the_budget_stays_halved_and_a_warning_says_so(caplog):
    budget, sizes = Budget(64), []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError

    with caplog.at_level(logging.WARNING, "actcache"):
        run_batches([4] * 20, budget=budget, run=run)
        run_batches([4] * 20, budget=budget, run=run)

    assert sizes == [16, 8, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert budget.tokens == 16
    assert [record.getMessage() for record in caplog.records] == [
        f"actcache: the device is out of memory with {n} tokens in a pass; continuing with at most "
        f"{n // 2} (--batch-tokens)"
        for n in (64, 32)
    ]


def test_a_batch_far_below_the_budget_is_split_too():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError

    run_batches([5, 5], budget=Budget(1 << 20), run=run)

    assert sizes == [2, 1, 1]


def test_a_row_that_does_not_fit_alone_is_an_error_that_says_what_to_do():
    def run(_batch):
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match=r"single row of 7 tokens .*--device-map auto"):
        run_batches([7, 3], budget=Budget(100), run=run)


def test_other_errors_are_not_mistaken_for_a_lack_of_memory():
    def run(_batch):
        raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="broke"):
        run_batches([7, 3], budget=Budget(100), run=run)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A plan of sixteen pairs, and its store, built with enough memory."""
    folder = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": "".join(rng.choice(list("abcdef "), rng.integers(3, 40))) + f"{i}?",
            "positive": "(A)",
            "negative": "(B)",
        }
        for i in range(16)
    ]
    (folder / "calm.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = BuildConfig(model=save(folder / "model"))
    plan = plan_build(read_samples([folder / "calm.jsonl"]), config)
    return plan, run_build(plan, folder / "s.zarr")


@pytest.mark.model
def test_a_build_short_of_memory_gives_the_same_store(built, tmp_path, caplog):
    plan, whole = built
    sizes = []

    def tight(model, rows, **settings):
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return capture(model, rows, **settings)

    with caplog.at_level(logging.WARNING, "actcache"):
        store = run_build(plan, tmp_path / "s.zarr", read=tight)

    assert max(sizes) == 16
    assert "out of memory" in caplog.text
    for name in whole.arrays:
        # fp32: other rows in the batch, another order of summation.
        np.testing.assert_allclose(store.array(name)[:], whole.array(name)[:], rtol=1e-4, atol=1e-5)


@pytest.mark.model
def test_a_sweep_short_of_memory_gives_the_same_propensities(built, tmp_path, monkeypatch, caplog):
    plan, store = built
    values = np.random.default_rng(1).normal(size=(1, 4, 32)).astype(np.float32)
    settings: dict[str, Any] = {
        "model": lambda: load_model(plan.config.model),
        "sets": {"random": values[0]},
        "multipliers": [-1.0, 0.0, 1.0],
    }
    whole = sweep.run_sweep(store, out=tmp_path / "roomy.zarr", **settings)
    sizes = []

    def tight(model, rows, **rest):
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return score_grid(model, rows, **rest)

    monkeypatch.setattr(grid, "score_grid", tight)
    with caplog.at_level(logging.WARNING, "actcache"):
        split = sweep.run_sweep(store, out=tmp_path / "tight.zarr", **settings)

    assert max(sizes) > 5
    assert "out of memory" in caplog.text
    # fp32: logits of size 10 carry 1e-6 each.
    np.testing.assert_allclose(split.propensity, whole.propensity, rtol=1e-4, atol=1e-4)
