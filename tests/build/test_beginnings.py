"""Builds whose rows share a system message: what runs, what is stored, what a dry run counts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actcache.build.forecast import forecast_build
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.engine.model import load_model
from actcache.engine.reference import reference_capture
from actcache.engine.tree_capture import capture, tokens_run

pytestmark = pytest.mark.model
SYSTEMS = ("Answer as someone who is calm would.", "Answer as a bold man would do it.", None)
CHECKS = 2
"""Passes of the check before the build: one that shares no beginning, and one that does."""


@pytest.fixture(scope="module")
def plan(samples, config):
    """Sixty rows of two system messages and of none, in no order."""
    prompted = [replace(sample, system=SYSTEMS[i % 3]) for i, sample in enumerate(samples)]
    positions = ("prompt", "positive", "negative", "mean")
    return plan_build(prompted, replace(config, positions=positions, batch_tokens=500))


class CountedCapture:
    """`capture`, which counts its passes, the tokens it saves, and breaks after some passes."""

    def __init__(self, *, breaks_after=1000):
        self.n_passes = self.n_saved = 0
        self._entered, self._breaks_after = 0, breaks_after

    def __call__(self, model, rows, *, positions, sites, answer):
        if not self.n_passes:
            assert model.can_share_beginnings
            block = model.anatomy.blocks[0]
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
        if self.n_passes == self._breaks_after:
            raise RuntimeError("the model broke")
        self.n_passes += 1
        self._entered = 0
        values = capture(model, rows, positions=positions, sites=sites, answer=answer)
        longest = max(tokens_run(row, positions=positions, answer=answer) for row in rows)
        if self.n_passes > CHECKS:
            self.n_saved += len(rows) * longest - self._entered
        return values

    def _enter(self, _block, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        self._entered += value.shape[0] * value.shape[1]


def test_a_dry_run_counts_the_passes_and_tokens_that_run(plan, tmp_path):
    facts = forecast_build(plan, tmp_path / "s.zarr")
    read = CountedCapture()

    run_build(plan, tmp_path / "s.zarr", read=read)

    assert facts["passes"] == read.n_passes - CHECKS
    assert facts["tokens shared"] == read.n_saved
    assert facts["tokens"] == sum(plan.costs)
    # 40 rows share the 38 to 40 tokens of two messages, in a few batches each.
    assert facts["tokens shared"] > 30 * 38
    assert facts["token-layers"] == 4 * (facts["tokens"] - facts["tokens shared"])
    assert 0 < facts["estimated seconds"] < 60


def test_each_row_is_stored_as_it_is_alone(plan, tmp_path):
    store = run_build(plan, tmp_path / "s.zarr")
    model = load_model(plan.config.model)

    for row in (0, 1, 2, 30, 58):
        for position in plan.positions:
            alone = reference_capture(model, plan.rendered[row], position=position, answer="first")
            np.testing.assert_allclose(store.resid(position)[row], alone, rtol=1e-5, atol=1e-5)
    assert max(store.certificate["largest_relative_error"]) < 1e-5  # fp32 rounding
    assert store.certificate["self_check"]["largest_relative_error"] < 1e-5


def test_broken_and_resumed_equals_uninterrupted(plan, tmp_path):
    runs: dict[str, Any] = {"shard_rows": 16, "run_rows": 16}
    whole = run_build(plan, tmp_path / "whole.zarr", **runs)
    with pytest.raises(RuntimeError, match="broke"):
        run_build(plan, tmp_path / "s.zarr", read=CountedCapture(breaks_after=9), **runs)

    resumed = run_build(plan, tmp_path / "s.zarr", resume=True, run_rows=16)

    for name in whole.arrays:
        np.testing.assert_array_equal(resumed.array(name)[:], whole.array(name)[:])
    assert resumed.certificate == whole.certificate


def test_the_slow_engine_shares_nothing(plan, tmp_path):
    slow = replace(plan, config=replace(plan.config, engine="transformer-lens"))

    assert forecast_build(slow, tmp_path / "s.zarr")["tokens shared"] == 0
