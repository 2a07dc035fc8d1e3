"""The sweep of a store: equal to the naive loop, resumed after a kill, refused where it must be."""

import json
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import actcache
import actcache.demo
from actcache import analysis
from actcache.analysis.sweep.row_directions import shared_directions
from actcache.analysis.sweep.run import run_sweep
from actcache.build.replay import rendered_rows
from actcache.engine.model import load_model
from actcache.errors import MismatchError
from actcache.progress import Silent
from tests.reference.engine import naive_propensity
from tests.support.tiny import save

pytestmark = pytest.mark.model
MULTIPLIERS = (-1.0, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    rows = [
        {
            "prompt": "x" * (1 + i % 7) + f"{i}?",
            "positive": " (A)" if i % 2 else " (B), yes",
            "negative": " (B)" if i % 2 else " (A), no",
        }
        for i in range(20)
    ]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = save(folder / "model", "mistral")
    return actcache.build_store(folder / "d.jsonl", folder / "s.zarr", model=model)


@pytest.fixture(scope="module")
def model(store):
    return load_model(store.provenance["model"]["name"])


@pytest.fixture
def sets(store):
    rng = np.random.default_rng(0)
    one = shared_directions(
        rng.standard_normal((1, 4, 32)).astype(np.float32), np.zeros(store.n, np.int64)
    )
    by_row = shared_directions(
        rng.standard_normal((store.n, 4, 32)).astype(np.float32), np.arange(store.n)
    )
    return {"one": one, "by_row": by_row}


class Watch(Silent):
    """Keeps what a run tells."""

    def __init__(self):
        self.bars, self.steps_done = [], []

    @contextmanager
    def steps(self, title, total):
        self.bars.append((title, total))
        yield self.steps_done.append


def never():
    raise AssertionError


def sweep(store, model, path, sets, **changes):
    settings = {"multipliers": MULTIPLIERS, "score": "logprob", "batch_tokens": 600}
    return run_sweep(store, sets, out=path, model=model, **{**settings, **changes})


def test_equals_a_full_pass_for_every_cell(store, model, sets, tmp_path):
    done = sweep(store, model, tmp_path / "sweep.zarr", sets)

    rows = rendered_rows(store)
    for name, steering in sets.items():
        propensity = done.propensity_of(name)
        assert propensity.shape == (20, 4, 4)
        for i in (0, 7, 19):
            for layer in range(4):
                for m, x in enumerate(MULTIPLIERS):
                    naive = naive_propensity(
                        model.hf,
                        model.anatomy.blocks,
                        rows[i],
                        torch.from_numpy(steering.rows(np.array([i]))[0, layer]),
                        x,
                        layer,
                        first_steered="fork",
                        score="logprob",
                    )
                    np.testing.assert_allclose(propensity[i, layer][m], naive, rtol=1e-5, atol=1e-5)


def test_tells_rows_layers_multipliers_and_settings(store, model, sets, tmp_path):
    done = sweep(store, model, tmp_path / "sweep.zarr", sets, layers=[3, 1])

    np.testing.assert_array_equal(done.ids, store["id"])
    assert done.layers.tolist() == [1, 3]
    assert done.multipliers.tolist() == list(MULTIPLIERS)
    assert done.store.config["rule"] == {"first_steered": "fork", "score": "logprob"}
    assert done.certificate["naive_error"] < 1e-5
    assert done.certificate["noise_floor"] < 1e-5


def test_the_results_open_in_plain_zarr(store, model, sets, tmp_path):
    import zarr

    done = sweep(store, model, tmp_path / "sweep.zarr", sets)
    group: Any = zarr.open_group(tmp_path / "sweep.zarr", mode="r")

    np.testing.assert_array_equal(group["one/propensity"][:], done.propensity_of("one"))
    assert group["one/propensity"].dtype == np.float32
    np.testing.assert_array_equal(group["multiplier"][:], MULTIPLIERS)
    np.testing.assert_array_equal(group["layer"][:], [0, 1, 2, 3])
    assert group["id"][:].tolist() == store["id"].tolist()


def test_an_interrupted_sweep_is_resumed_and_equals_a_whole_one(
    store, model, sets, tmp_path, monkeypatch
):
    whole = sweep(store, model, tmp_path / "whole.zarr", sets, shard_rows=6)
    from actcache.engine.steered_scores import score_grid

    calls = []

    def breaks(*args, **settings):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return score_grid(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("actcache.analysis.sweep.grid.score_grid", breaks)
        with pytest.raises(KeyboardInterrupt):
            sweep(store, model, tmp_path / "sweep.zarr", sets, shard_rows=6)
    assert not (tmp_path / "sweep.zarr").exists()
    begun = actcache.open_store(tmp_path / "sweep.zarr", partial=True).n
    assert 0 < begun < 20
    watch = Watch()
    done = sweep(store, model, tmp_path / "sweep.zarr", sets, shard_rows=6, progress=watch)

    assert watch.bars == [("sweep", 20)]
    assert watch.steps_done[0] == begun
    assert sum(watch.steps_done) == 20
    for name in whole.names:
        np.testing.assert_array_equal(done.propensity_of(name), whole.propensity_of(name))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"multipliers": (0.0, 1.0)}, "multipliers"),
        ({"score": "letter"}, "rule.score"),
        ({"layers": [0]}, "layers"),
    ],
)
def test_results_of_other_settings_are_never_mixed(store, model, sets, tmp_path, change, field):
    sweep(store, model, tmp_path / "sweep.zarr", sets)

    with pytest.raises(MismatchError, match=field):
        sweep(store, model, tmp_path / "sweep.zarr", sets, **change)


def test_a_finished_sweep_needs_no_model_and_serves_any_size_of_batch(store, model, sets, tmp_path):
    sweep(store, model, tmp_path / "sweep.zarr", sets)

    again = sweep(store, never, tmp_path / "sweep.zarr", sets, batch_tokens=77)
    assert again.store.config["batch_tokens"] == 600
    assert again.n == 20


def test_results_of_other_directions_are_never_mixed(store, model, sets, tmp_path):
    sweep(store, model, tmp_path / "sweep.zarr", sets)
    of = np.zeros(store.n, np.int64)
    other = {**sets, "one": shared_directions(2 * sets["one"].rows(of[:1]), of)}

    with pytest.raises(MismatchError, match=r"sets\.one"):
        sweep(store, model, tmp_path / "sweep.zarr", other)


def test_refuses_another_model_than_the_stores(store, sets, tmp_path):
    other = load_model(store.provenance["model"]["name"])
    with torch.no_grad():
        next(other.hf.parameters())[0, 0] += 1

    with pytest.raises(MismatchError, match="weights_sha256"):
        sweep(store, other, tmp_path / "sweep.zarr", sets)
    assert not list(tmp_path.iterdir())


def test_the_model_may_be_a_function_that_loads_it_or_be_left_to_the_store(
    store, model, sets, tmp_path
):
    given = sweep(store, model, tmp_path / "given.zarr", sets)
    for name, other in (("function", lambda: model), ("store", None)):
        again = sweep(store, other, tmp_path / f"{name}.zarr", sets)
        np.testing.assert_array_equal(again.propensity_of("one"), given.propensity_of("one"))


def test_from_a_store_to_directions_to_slopes_in_two_lines(store, model, tmp_path):
    directions = analysis.difference_of_means(store, rows=store["split"] == "train")
    swept = analysis.run_sweep(
        store, {"caa": directions}, multipliers=(-1, 0, 1), out=tmp_path / "sweep.zarr"
    )

    assert swept.slopes("caa").shape == (20, 4)
    assert swept.propensity.shape == (20, 4, 3)
    assert analysis.open_sweep(tmp_path / "sweep.zarr").names == ["caa"]


def test_a_score_that_is_read_before_anything_is_steered_is_refused(store, tmp_path):
    rows = [{"prompt": f"{i}?", "positive": "yes", "negative": "no"} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    name = store.provenance["model"]["name"]
    other = actcache.build_store(tmp_path / "d.jsonl", tmp_path / "s", model=name, space="none")
    directions = {"one": np.ones((4, 32), np.float32)}

    def run(score, first_steered, **changes):
        return run_sweep(
            other,
            directions,
            multipliers=MULTIPLIERS,
            out=tmp_path / f"{score}.zarr",
            score=score,
            first_steered=first_steered,
            **changes,
        )

    with pytest.raises(MismatchError, match=r"20 of 20 samples .* Pass --first-steered fork"):
        run("letter", "completion", model=never)
    assert np.ptp(run("logprob", "completion").propensity, axis=-1).min() > 0
    assert np.ptp(run("letter", "fork").propensity, axis=-1).min() > 0


def test_out_of_memory_in_one_shard_changes_no_other(tmp_path, monkeypatch, caplog):
    """On the demo model, whose values show which rows shared a pass."""
    from actcache.analysis.sweep import grid as module
    from actcache.engine.steered_scores import score_grid

    model = load_model(str(actcache.demo.model_path()))
    store = actcache.build_store(
        actcache.demo.row_files("tidy"), tmp_path / "s.zarr", model=model.name, limit=24
    )
    direction = np.random.default_rng(0).normal(size=(store.n_layers, store.d_model))
    n_passes = 0

    def short_of_memory(model, rows, **rest):
        nonlocal n_passes
        n_passes += 1
        if n_passes == 3:  # two are the check before the sweep
            raise torch.OutOfMemoryError
        return score_grid(model, rows, **rest)

    def swept(name, batch_tokens=600):
        sets = {"d": direction.astype(np.float32)}
        sweep = run_sweep(
            store, sets, multipliers=MULTIPLIERS, out=tmp_path / name, model=model, shard_rows=12,
            batch_tokens=batch_tokens, score="logprob",
        )  # fmt: skip
        return sweep.propensity

    whole, halved = swept("whole.zarr"), swept("halved.zarr", 300)
    monkeypatch.setattr(module, "score_grid", short_of_memory)
    tight = swept("tight.zarr")

    assert "out of memory" in caplog.text
    np.testing.assert_array_equal(tight[12:], whole[12:])
    assert (halved[12:] != whole[12:]).any()  # had the second shard shared the budget


def test_a_set_whose_name_cannot_be_stored_is_refused_before_the_model_is_loaded(
    store, sets, tmp_path
):
    def never():
        raise AssertionError("the model was loaded")

    settings: dict[str, Any] = {"multipliers": MULTIPLIERS, "model": never}
    with pytest.raises(actcache.errors.FormatError, match="Choose another name"):
        run_sweep(store, {"a:b": sets["one"]}, out=tmp_path / "s.zarr", **settings)
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_sweep(store, {"a": sets["one"]}, out=tmp_path / "s.zarr", **settings)
