"""Builds from rows to store: values, resuming after a kill, refusals, rows that are left out."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import actcache
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.engine.batching import plan_batches
from actcache.engine.model import load_model
from actcache.engine.reference import reference_capture
from actcache.engine.tree_capture import capture
from actcache.errors import MismatchError, NotFiniteError, StoreExistsError
from tests.support.processes import kill_after

pytestmark = pytest.mark.model


def test_each_row_is_stored_as_it_is_alone(samples, config, tmp_path):
    plan = plan_build(samples, config)
    store = run_build(plan, tmp_path / "s.zarr")
    model = load_model(config.model)

    assert store.n == 60
    assert store.complete
    for row in (0, 17, 59):
        for position in plan.positions:
            alone = reference_capture(model, plan.rendered[row], position=position, answer="first")
            np.testing.assert_allclose(
                store.resid(position)[row], alone.numpy(), rtol=1e-5, atol=1e-5
            )
        token = plan.rendered[row].prompt[-1]
        embedded = model.hf.get_input_embeddings()(torch.tensor(token)).numpy()
        np.testing.assert_array_equal(store.resid("prompt", site="embed")[row, 0], embedded)


def test_samples_are_stored_beside_the_residuals(samples, config, tmp_path):
    store = run_build(plan_build(samples, config), tmp_path / "s.zarr")

    assert store["id"].tolist() == [sample.id for sample in samples]
    assert store["prompt"].tolist() == [sample.prompt for sample in samples]
    assert (store["behavior"] == "calm").sum() == 30
    assert set(store["letter"].tolist()) == {"A", "B"}
    assert set(store["split"].tolist()) == {"train", "validation", "test"}
    tokens = store.ragged("prompt_tokens")
    assert [len(tokens[i]) for i in range(60)] == [len("U: \nA:") + len(s.prompt) for s in samples]


def test_provenance_records_where_the_numbers_come_from(samples, config, tmp_path):
    store = run_build(plan_build(samples, config), tmp_path / "s.zarr")
    provenance = store.provenance

    assert provenance["model"]["weights_sha256"] == load_model(config.model).digest
    assert provenance["model"]["n_layers"] == store.n_layers == 4
    assert provenance["versions"]["torch"] == torch.__version__
    assert len(store.certificate["largest_relative_error"]) == 4
    assert max(store.certificate["largest_relative_error"]) < 1e-5  # fp32 rounding


class Bar:
    """Progress that remembers its one bar."""

    def __init__(self):
        self.steps_done = []

    @contextmanager
    def steps(self, title, total):
        self.title, self.total = title, total
        yield self.steps_done.append

    def cost(self, estimate):
        raise AssertionError(estimate)


KILLED = """
import sys
from actcache.build import BuildConfig, plan_build, run_build
from actcache.data.formats import read_samples
folder, out = sys.argv[1:]
samples = read_samples([folder + "/calm.jsonl", folder + "/bold.jsonl"])
config = BuildConfig(model=folder + "/model", batch_tokens=300, sites=("resid_post", "embed"))
run_build(plan_build(samples, config), out, shard_rows=8)
"""


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_equals_uninterrupted(folder, samples, config, tmp_path):
    whole = run_build(plan_build(samples, config), tmp_path / "whole.zarr", shard_rows=8)
    path = tmp_path / "killed.zarr"
    kill_after(24, KILLED, folder, path)

    with pytest.raises(actcache.errors.IncompleteStoreError, match="--resume"):
        actcache.open_store(path)
    assert 24 <= actcache.open_store(path, partial=True).n < 60
    bar = Bar()
    resumed = run_build(plan_build(samples, config), path, resume=True, progress=bar)

    assert (bar.title, bar.total) == ("build", 60)
    assert bar.steps_done[0] >= 24
    assert sum(bar.steps_done) == 60
    for name in whole.arrays:
        np.testing.assert_array_equal(resumed.array(name)[:], whole.array(name)[:])
    for name in whole.columns:
        np.testing.assert_array_equal(resumed[name], whole[name])
    assert resumed.certificate == whole.certificate
    assert resumed.provenance == whole.provenance


def interrupted(samples, config, path):
    """Leave a build that broke after its first shard."""
    calls = []

    def breaks(*args, **settings):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("the model broke")
        return capture(*args, **settings)

    with pytest.raises(RuntimeError, match="broke"):
        run_build(plan_build(samples, config), path, shard_rows=8, read=breaks)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batch_tokens": 200}, "batch_tokens"),
        ({"seed": 1}, "seed"),
        ({"answer": "last"}, "answer"),
        ({"space": "add"}, "space"),
        ({"sites": ("resid_post",)}, "embed"),
    ],
)
def test_resume_refuses_other_settings_and_names_the_field(
    samples, config, tmp_path, change, field
):
    interrupted(samples, config, tmp_path / "s.zarr")

    def never():
        raise AssertionError("the model was loaded")

    plan = plan_build(samples, replace(config, **change))
    with pytest.raises(MismatchError, match=field):
        run_build(plan, tmp_path / "s.zarr", resume=True, model=never)


def test_resume_refuses_other_weights_and_other_data(samples, config, tmp_path):
    interrupted(samples, config, tmp_path / "s.zarr")
    model = load_model(config.model)
    with torch.no_grad():
        next(model.hf.parameters())[0, 0] += 1

    with pytest.raises(MismatchError, match="weights_sha256"):
        run_build(plan_build(samples, config), tmp_path / "s.zarr", resume=True, model=model)
    other = [replace(samples[0], prompt="Other?"), *samples[1:]]
    with pytest.raises(MismatchError, match=r"data|prompt"):
        run_build(plan_build(other, config), tmp_path / "s.zarr", resume=True)


def test_a_finished_store_is_not_built_over(samples, config, tmp_path):
    plan = plan_build(samples[:4], config)
    run_build(plan, tmp_path / "s.zarr")

    with pytest.raises(StoreExistsError):
        run_build(plan, tmp_path / "s.zarr")
    run_build(plan, tmp_path / "s.zarr", overwrite=True)


def test_rows_over_the_context_are_left_out_and_named(samples, config, tmp_path):
    long = replace(samples[0], id="long", prompt="x" * 500)
    store = run_build(plan_build([*samples[:6], long], config), tmp_path / "s.zarr")

    assert store.n == 6
    assert "long" not in store["id"].tolist()
    left_out = store.left_out
    assert [(row["id"], row["context"]) for row in left_out] == [("long", 128)]
    assert left_out[0]["tokens"] > 500


def test_labelled_prompts_are_read_at_the_prompt_alone(samples, config, tmp_path):
    labelled = [
        replace(sample, positive=None, negative=None, label=f"l{i % 2}", letter="")
        for i, sample in enumerate(samples[:8])
    ]
    store = run_build(plan_build(labelled, config), tmp_path / "s.zarr")

    assert list(store.positions) == ["prompt"]
    assert store["label"].tolist() == ["l0", "l1"] * 4


def test_bfloat16_is_kept_bit_for_bit(samples, config, tmp_path):
    half = replace(config, dtype="bfloat16")
    plan = plan_build(samples[:4], half)
    store = run_build(plan, tmp_path / "s.zarr")
    model = load_model(config.model, dtype="bfloat16")

    stored = store.resid("fork")
    assert stored.dtype == "bfloat16"
    alone = reference_capture(model, plan.rendered[2], position="fork", answer="first")
    # Rounded to 8 bits at every step, in another order: equal to a few units of the last place.
    np.testing.assert_allclose(stored[2], alone.float().numpy(), rtol=0.1, atol=0.1)
    bits = stored.bits[2].astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32), stored[2])


def test_residuals_that_overflow_the_store_stop_the_build(samples, config, tmp_path):
    model = load_model(config.model)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight.mul_(1e6)

    with pytest.raises(NotFiniteError, match=r"layer 0"):
        run_build(
            plan_build(samples[:4], replace(config, store_dtype="float16")),
            tmp_path / "s.zarr",
            model=model,
        )
    assert not (tmp_path / "s.zarr").exists()


def test_batches_hold_every_row_once_within_the_budget():
    costs = [5, 1, 9, 3, 3, 30, 2]
    batches = plan_batches(costs, budget=12)

    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    for batch in batches:
        longest = max(costs[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= 12
    assert costs[batches[0][0]] == 30
