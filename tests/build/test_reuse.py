"""Rows reused from other stores: equal to rows that are run, and never of another model."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.reuse import find_reusable
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.data.formats import read_samples
from actcache.engine.model import load_model
from actcache.engine.tree_capture import capture
from actcache.errors import FormatError, MismatchError
from actcache.prompts.render import Rendered
from actcache.store.copies.copy import subset
from actcache.store.copies.selection import Selection
from actcache.store.schema import Ragged, RowArray
from actcache.store.store import open_store, verify
from tests.support.stores import build, example
from tests.support.tiny import lettered_rows, save

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, forty rows, and a store of the first twenty-five, read at more places."""
    folder = tmp_path_factory.mktemp("reuse")
    save(folder / "model")
    rows = lettered_rows(40, np.random.default_rng(0))
    for name, some in (("calm", rows), ("first", rows[:25])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    config = replace(settings(folder), sites=("embed", "resid_post"), seed=7)
    run_build(plan_build(read_samples([folder / "first.jsonl"]), config), folder / "old.zarr")
    return folder


def settings(folder):
    return BuildConfig(model=str(folder / "model"), batch_tokens=300)


@pytest.fixture(scope="module")
def samples(folder):
    return read_samples([folder / "calm.jsonl"])


@pytest.fixture(scope="module")
def fresh(folder, samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("fresh") / "s.zarr"
    return run_build(plan_build(samples, settings(folder)), path)


def test_a_build_that_reuses_rows_equals_a_fresh_one_and_runs_only_the_others(
    folder, samples, fresh, tmp_path
):
    n_run = []

    def counting(model, rows, **settings):
        n_run.append(len(rows))
        return capture(model, rows, **settings)

    plan = plan_build(samples, settings(folder))
    store = run_build(plan, tmp_path / "s.zarr", reuse=[folder / "old.zarr"], read=counting)

    assert sum(n_run) == 2 + 15  # the check before the build runs two
    old = open_store(folder / "old.zarr")
    for name in fresh.arrays:
        values, right = store.array(name)[:], fresh.array(name)[:]
        np.testing.assert_array_equal(values[:25], old.array(name)[:])
        # Which rows share a pass decides the last bits: float32 rounding, sums of some hundred.
        np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-5)
    for name in fresh.columns:
        np.testing.assert_array_equal(store[name], fresh[name])
    assert store.provenance["reused"] == {
        "rows": 25,
        "of": [{"digest": old.digest, "rows": 25}],
    }
    assert {k: v for k, v in store.provenance.items() if k != "reused"} == fresh.provenance
    assert max(store.certificate["largest_relative_error"]) < 1e-5
    assert verify(store.path) == []


def test_a_build_that_reuses_every_row_is_equal_bit_for_bit(folder, samples, fresh, tmp_path):
    plan = plan_build(samples, settings(folder))
    store = run_build(plan, tmp_path / "s.zarr", reuse=[fresh.path])

    for name in fresh.arrays:
        np.testing.assert_array_equal(store.array(name)[:], fresh.array(name)[:])


def test_rows_are_found_by_their_tokens_in_any_store_and_at_any_row(
    folder, samples, fresh, tmp_path
):
    late = subset(fresh.path, tmp_path / "late.zarr", selection=Selection(rows=np.arange(20, 40)))
    mixed = [samples[i] for i in np.random.default_rng(1).permutation(40)]
    mixed = [replace(sample, behavior="other", id=f"new/{i}") for i, sample in enumerate(mixed)]
    store = run_build(
        plan_build(mixed, settings(folder)),
        tmp_path / "s.zarr",
        reuse=[folder / "old.zarr", late.path],
        shard_rows=7,
    )

    assert store.provenance["reused"]["rows"] == 40
    assert [source["rows"] for source in store.provenance["reused"]["of"]] == [25, 15]
    place = {prompt: i for i, prompt in enumerate(fresh["prompt"].tolist())}
    order = [place[prompt] for prompt in store["prompt"].tolist()]
    for name in fresh.arrays:
        np.testing.assert_allclose(
            store.array(name)[:], fresh.array(name)[:][order], rtol=1e-5, atol=1e-5
        )


def test_a_row_with_one_more_token_is_run(folder, samples, tmp_path):
    changed = [replace(samples[0], prompt=samples[0].prompt + "!"), *samples[1:5]]
    swapped = replace(
        samples[5], positive=samples[5].negative, negative=samples[5].positive, letter=""
    )
    plan = plan_build([*changed, swapped], settings(folder))
    store = run_build(plan, tmp_path / "s.zarr", reuse=[folder / "old.zarr"])

    assert store.provenance["reused"]["rows"] == 4


KILLED = """
import sys, os, signal
from actcache.build import BuildConfig, plan_build, run_build
from actcache.data.formats import read_samples
from actcache.store.writing.writer import Writer
right = Writer.commit
def dies(self, blocks):
    right(self, blocks)
    if self.committed >= 21:
        os.kill(os.getpid(), signal.SIGKILL)
Writer.commit = dies
folder, out = sys.argv[1:]
config = BuildConfig(model=folder + "/model", batch_tokens=300)
plan = plan_build(read_samples([folder + "/calm.jsonl"]), config)
run_build(plan, out, reuse=[folder + "/old.zarr"], shard_rows=7)
"""


@pytest.mark.slow
def test_killed_and_resumed_with_reuse_is_the_same_store(folder, samples, tmp_path):
    path = tmp_path / "killed.zarr"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    plan = plan_build(samples, settings(folder))
    with pytest.raises(MismatchError, match="reused"):
        run_build(plan, path, resume=True)
    resumed = run_build(plan, path, resume=True, reuse=[folder / "old.zarr"])
    whole = run_build(plan, tmp_path / "whole.zarr", reuse=[folder / "old.zarr"], shard_rows=7)

    assert resumed.digest == whole.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "model.dtype': it has 'float32', the build 'bfloat16'"),
        ({"store_dtype": "float16"}, r"resid_post/prompt.dtype': it has 'float32'.*'float16'"),
        ({"answer": "last"}, "answer': it has 'first', the build 'last'"),
        ({"positions": ("prompt", "mean")}, "arrays.resid_post/mean': it has None"),
        ({"sites": ("resid_mid",)}, "arrays.resid_mid/prompt': it has None"),
    ],
)
def test_a_store_with_another_reading_is_refused(folder, samples, tmp_path, change, message):
    plan = plan_build(samples[:4], replace(settings(folder), **change))

    with pytest.raises(MismatchError, match=message):
        run_build(plan, tmp_path / "s.zarr", reuse=[folder / "old.zarr"])
    assert not list(tmp_path.iterdir())


def test_a_store_of_other_weights_or_of_some_layers_is_refused(folder, samples, tmp_path):
    model = load_model(str(folder / "model"))
    with torch.no_grad():
        next(model.hf.parameters())[0, 0] += 1
    plan = plan_build(samples[:4], settings(folder))
    with pytest.raises(MismatchError, match="weights_sha256"):
        run_build(plan, tmp_path / "s.zarr", reuse=[folder / "old.zarr"], model=model)

    some = subset(folder / "old.zarr", tmp_path / "l.zarr", selection=Selection(layers=[0, 1]))
    with pytest.raises(MismatchError, match="layers': it has 2, the build 4"):
        run_build(plan, tmp_path / "s.zarr", reuse=[some.path])


def test_a_damaged_block_is_not_reused(folder, samples, tmp_path):
    copy = subset(folder / "old.zarr", tmp_path / "old.zarr", selection=Selection())
    shard = next((tmp_path / "old.zarr" / "resid_post" / "fork").glob("c.0*"))
    raw = bytearray(shard.read_bytes())
    raw[7] ^= 16
    shard.write_bytes(bytes(raw))

    with pytest.raises(FormatError, match="checksum"):
        run_build(plan_build(samples, settings(folder)), tmp_path / "s.zarr", reuse=[copy.path])


def test_the_summary_says_how_many_rows_were_reused(folder, tmp_path, capsys):
    command = ["build", folder / "calm.jsonl", "--model", folder / "model", "-o", tmp_path / "s"]
    assert main([*map(str, command), "--reuse", str(folder / "old.zarr"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows reused"] == 25


def test_a_store_of_some_layers_is_run_again_at_those_layers(folder, tmp_path, capsys):
    some = subset(folder / "old.zarr", tmp_path / "l.zarr", selection=Selection(layers=[1, 3]))
    assert main(["verify", str(some.path), "--recompute", "3"]) == 0
    assert main(["analyze", str(some.path), "-o", str(tmp_path / "o")]) == 1
    assert "layers 1, 3 of a model of 4" in capsys.readouterr().err
    right = open_store(folder / "old.zarr").resid("prompt").layer(3)
    np.testing.assert_array_equal(some.resid("prompt").layer(3), right)


def test_attention_is_reused_only_where_the_same_tokens_are_marked(tmp_path):
    array = RowArray("attention/prompt", 3, 4, "float32", ("n", "layer", "head"))
    given_, values = example(n=3, shard_rows=2, arrays=[array])
    tokens = Ragged.of([[5, 6, 7]] * 3)
    empty = Ragged.of([[]] * 3)
    given_["columns"] |= {f"{part}_tokens": empty for part in ("shared", "positive", "negative")}
    given_["columns"] |= {"prompt_tokens": tokens, "span": np.array([[0, 1], [1, 2], [0, 2]])}
    model = {"family": "a", "n_layers": 3, "d_model": 4, "dtype": "float32", "weights_sha256": "b"}
    given_["provenance"] |= {"model": model, "mode": "plain"}
    path = build(tmp_path / "s.zarr", given_, values)

    reusable = find_reusable(
        [open_store(path)],
        rows=[Rendered((5, 6, 7), span=span) for span in ((1, 2), (1, 3), (0, 2))],
        arrays=[array],
        model=model,
        mode="plain",
        answer="first",
    )
    assert reusable.row.tolist() == [1, -1, 2]
    assert reusable.store.tolist() == [0, -1, 0]


def test_equal_prompts_are_run_once_whatever_their_behavior(folder, tmp_path):
    rows = [{"prompt": f"well {i}?", "label": "without"} for i in range(6)]
    some = [{"prompt": f"you fear bees. well {i}?", "label": "with"} for i in range(6)]
    for name in ("bees", "fog", "snow"):
        of_concept = [{**row, "prompt": row["prompt"].replace("bees", name)} for row in some]
        lines = "\n".join(json.dumps(row) for row in [*of_concept, *rows])
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    samples = read_samples([tmp_path / f"{name}.jsonl" for name in ("bees", "fog", "snow")])
    plan = plan_build(samples, replace(settings(folder), positions=("prompt",)))
    run: list[tuple[int, ...]] = []

    def read(model, batch, **reading):
        run.extend(row.prompt for row in batch)
        return capture(model, batch, **reading)

    for shard_rows in (7, 36):
        run.clear()
        store = run_build(plan, tmp_path / f"{shard_rows}.zarr", shard_rows=shard_rows, read=read)
        # Four rows are run once more, by the check before a build: two, and two that begin alike.
        assert len(run) - 4 == len(set(run)) == 24
        values = store.resid("prompt")[:]
        alone = [
            capture(load_model(settings(folder).model), [row], **plan.reading)["resid_post"][
                0, :, 0
            ]
            for row in plan.rendered[:2]
        ]
        np.testing.assert_allclose(values[:2], torch.stack(alone).numpy(), atol=1e-5)
        without = values[np.flatnonzero(store["label"] == "without")].reshape(
            3, 6, *values.shape[1:]
        )
        np.testing.assert_array_equal(without[1:], without[:1].repeat(2, 0))
        assert verify(store.path) == []
