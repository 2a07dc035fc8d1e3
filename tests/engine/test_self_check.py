"""The checks before a build and a sweep: what they record, allow and stop."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actcache.analysis.sweep import grid
from actcache.analysis.sweep import run as sweep
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.engine import beginnings
from actcache.engine.model import adopt_model, load_model
from actcache.engine.self_check import batches_to_check, check_capture, check_sites
from actcache.engine.steered_scores import score_grid
from actcache.engine.tree_capture import capture, capture_head
from actcache.errors import ModelError
from actcache.prompts.beginnings import find_beginnings
from tests.support.tiny import make, marked_rows, rows_of_three_lengths

pytestmark = pytest.mark.model


def test_the_check_before_the_build_is_recorded(store):
    check = store.certificate["self_check"]

    assert check["bound"] == 1e-3
    assert 0 < check["largest_relative_error"] < 1e-5
    for site in store.sites:
        assert store.certificate["sites"][site] < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_allows_the_rounding_of_half_precision(dtype):
    model = adopt_model(make("gemma2", dtype=dtype), name="half")

    check = check_capture(
        model,
        rows_of_three_lengths(),
        read=capture,
        positions=["prompt", "fork", "positive", "negative"],
        sites=["resid_post", "attn_out"],
        answer="last",
    )

    assert check.bound == 0.1
    assert check.largest_relative_error < 0.05


def test_a_wrong_capture_stops_the_build_before_it_begins(samples, config, tmp_path):
    def wrong(*args, **settings):
        values = capture(*args, **settings)
        values["resid_post"][:, 2] *= 1.01
        return values

    with pytest.raises(ModelError, match=r"off by 0.01 .* expected at most 0.001"):
        run_build(plan_build(samples, config), tmp_path / "s.zarr", read=wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_what_rows_share_stops_the_build_before_it_begins(
    samples, config, tmp_path, monkeypatch
):
    """The shortest and the middle row share nothing here; most of the others do."""
    system = "Answer as someone who is calm and kind to everybody would."
    rows = [replace(row, system=system if i % 3 else None) for i, row in enumerate(samples)]
    plan = plan_build(rows, config)
    few, alike = batches_to_check(plan.rendered, positions=plan.positions, shares=True)
    assert [len(few), len(alike)] == [2, 2]
    heads = [capture_head(row, positions=plan.positions) for row in alike.values()]
    assert find_beginnings(heads).n_saved > 10
    join = beginnings._ContinuedLayer._join

    def wrong(self, part, rows):
        states = join(self, part, rows)
        # The probe that decides whether a family can share has four tokens in common.
        return states * 1.1 if part and self.get_seq_length() > 4 else states

    monkeypatch.setattr(beginnings._ContinuedLayer, "_join", wrong)
    with pytest.raises(ModelError, match=r"off by .* expected at most 0.001"):
        run_build(plan, tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_share_nothing_are_checked_in_one_batch():
    rows = rows_of_three_lengths()
    batches = batches_to_check(rows, positions=["prompt"], shares=True)
    assert [len(batch) for batch in batches] == [2]
    assert batches == batches_to_check(rows, positions=["prompt"], shares=False)


def test_rows_of_equal_tokens_are_not_a_shared_batch():
    short, *_, long = sorted(rows_of_three_lengths(), key=lambda row: row.length)
    assert len(batches_to_check([short, long, long, long], positions=["prompt"], shares=True)) == 1


def test_a_wrong_sweep_stops_before_it_begins(store, config, tmp_path, monkeypatch):
    def wrong(*args, **settings):
        return score_grid(*args, **settings) * 1.01

    monkeypatch.setattr(grid, "score_grid", wrong)
    values = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)

    with pytest.raises(ModelError, match=r"a steered cell is off by .* from two full passes"):
        sweep.run_sweep(
            store,
            {"random": values[0]},
            multipliers=[-1.0, 4.0],
            out=tmp_path / "sweep.zarr",
            model=lambda: load_model(config.model),
        )


def test_wrong_attention_masses_are_refused():
    model = adopt_model(make("llama"), name="llama")
    settings: dict[str, Any] = {"positions": ["prompt"], "sites": ["attention"], "answer": "first"}

    def wrong(*args, **kwargs):
        return {"attention": capture(*args, **kwargs)["attention"] * 1.02}

    check_capture(model, marked_rows(), read=capture, **settings)
    with pytest.raises(ModelError, match="batched attention at 'prompt' is off by"):
        check_capture(model, marked_rows(), read=wrong, **settings)


def test_sites_that_do_not_add_up_to_the_residual_are_refused():
    model = adopt_model(make("llama"), name="llama")
    row = rows_of_three_lengths()[0]
    check_sites(model, row, ["attn_out", "mlp_out", "resid_mid"])
    block = model.anatomy.blocks[2]
    # Like a family that scales its MLP in a way that TransformerLens does not know of.
    block.register_forward_hook(lambda _m, args, out: args[0] + 2 * (out - args[0]))

    with pytest.raises(ModelError, match=r"mlp_out are not what the block adds"):
        check_sites(model, row, ["mlp_out"])
    check_sites(model, row, ["resid_post", "heads"])  # these need not add up
