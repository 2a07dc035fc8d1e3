"""One sweep of many sets, each on rows of its own: equal to sweeps of each set by itself."""

import json
from functools import partial

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.sweep.grid import SweepCheck
from actcache.analysis.sweep.row_directions import shared_directions
from actcache.analysis.sweep.run import run_sweep
from actcache.analysis.sweep.sets import (
    SweepSet,
    control_rows,
    rows_of_sets,
    rows_read,
    sets_of_analysis,
)
from actcache.data.personas import Persona, expand_variants
from actcache.engine.model import load_model
from actcache.engine.steered_scores import score_grid
from actcache.errors import MismatchError
from actcache.exchange import export
from actcache.exchange.archive import read_archive
from actcache.store.copies.fill import fill_store
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.stores import file_bytes
from tests.support.tiny import save

pytestmark = pytest.mark.model
MULTIPLIERS = (-1.0, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from actcache.build.config import BuildConfig
    from actcache.build.plan import plan_build
    from actcache.build.run import run_build
    from actcache.data import read_samples

    folder = tmp_path_factory.mktemp("sets")
    for behavior in ("kind", "bold"):
        rows = [
            {
                "prompt": f"{behavior} " + "x" * (i % 5) + f"{i}?",
                "positive": " (A)" if i % 2 else " (B)",
                "negative": " (B)" if i % 2 else " (A)",
            }
            for i in range(20)
        ]
        (folder / f"{behavior}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    samples = expand_variants(
        read_samples([folder / "kind.jsonl", folder / "bold.jsonl"]),
        ("base", "user_neg"),
        personas=dict.fromkeys(("kind", "bold"), Persona("Yes.", "No.")),
    )
    config = BuildConfig(model=save(folder / "model"))
    return run_build(plan_build(samples, config), folder / "s.zarr")


@pytest.fixture(scope="module")
def model(store):
    return load_model(store.provenance["model"]["name"])


@pytest.fixture
def sets(store):
    """A set for all rows, one for some that also the third has, one for others."""
    rng = np.random.default_rng(0)
    row = np.arange(store.n)

    def directions():
        values = rng.standard_normal((store.n, 4, 32)).astype(np.float32)
        return shared_directions(values, row)

    return {
        "all": SweepSet(directions=directions(), rows=row >= 0),
        "few-rows": SweepSet(directions=directions(), rows=row % 3 == 0),
        "few": SweepSet(directions=directions(), rows=row % 2 == 0, control=True),
    }


def sweep(store, model, path, sets, **settings):
    settings = {"multipliers": MULTIPLIERS, "batch_tokens": 600, **settings}
    return run_sweep(store, sets, out=path, model=model, **settings)


def test_each_set_has_what_a_sweep_of_it_alone_has_and_nan_elsewhere(store, model, sets, tmp_path):
    one = sweep(store, model, tmp_path / "one.zarr", sets)

    for name, steered in sets.items():
        whole = sweep(store, model, tmp_path / f"{name}.zarr", {name: steered.directions})
        rows = steered.rows
        together, alone = one.propensity_of(name), whole.propensity_of(name)
        np.testing.assert_allclose(together[rows], alone[rows], rtol=1e-5, atol=1e-5)
        assert np.isnan(together[~rows]).all()
        np.testing.assert_array_equal(one.rows(name), rows)
        np.testing.assert_allclose(one.slopes(name)[rows], whole.slopes(name)[rows], atol=1e-5)
        assert np.isnan(one.slopes(name)[~rows]).all()
        assert whole.rows(name).all()


def test_rows_that_no_set_steers_are_not_run(store, model, sets, tmp_path, monkeypatch):
    from actcache.analysis.sweep import grid as module

    ran = []

    def counted(model, rows, *, directions, **settings):
        ran.append(len(rows) * len(directions))
        return score_grid(model, rows, directions=directions, **settings)

    monkeypatch.setattr(module, "score_grid", counted)
    monkeypatch.setattr(
        module.SweepGrid, "check", lambda *_: SweepCheck(device="cpu", certificate={})
    )
    few = {name: sets[name] for name in ("few-rows", "few")}
    sweep(store, model, tmp_path / "s.zarr", few)

    assert sum(ran) == sum(int(sweep_set.rows.sum()) for sweep_set in few.values())


def test_an_interrupted_sweep_of_parts_has_the_bytes_of_a_whole_one(
    store, model, sets, tmp_path, monkeypatch
):
    whole = sweep(store, model, tmp_path / "whole.zarr", sets, shard_rows=16)
    from actcache.analysis.sweep import grid as module

    calls = []

    def breaks(*args, **settings):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return score_grid(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(module, "score_grid", breaks)
        with pytest.raises(KeyboardInterrupt):
            sweep(store, model, tmp_path / "s.zarr", sets, shard_rows=16)
    assert 0 < actcache.open_store(tmp_path / "s.zarr", partial=True).n < store.n
    again = sweep(store, model, tmp_path / "s.zarr", sets, shard_rows=16)

    assert file_bytes(again.store.path) == file_bytes(whole.store.path)


def test_an_interrupted_sweep_of_other_rows_is_not_continued(
    store, model, sets, tmp_path, monkeypatch
):
    from actcache.analysis.sweep import grid as module

    def breaks(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.SweepGrid, "sweep", breaks)
        with pytest.raises(KeyboardInterrupt):
            sweep(store, model, tmp_path / "s.zarr", sets)
    other = {**sets, "few": SweepSet(directions=sets["few"].directions, rows=~sets["few"].rows)}

    with pytest.raises(MismatchError, match=r"columns\.swept\[0\]"):
        sweep(store, model, tmp_path / "s.zarr", other)


def test_a_finished_sweep_serves_part_of_its_sets_and_rows_and_shows_no_more(
    store, model, sets, tmp_path
):
    whole = sweep(store, model, tmp_path / "s.zarr", sets)
    rows = np.arange(store.n) % 6 == 0
    part = {"few": SweepSet(directions=sets["few"].directions, rows=rows)}

    served = sweep(store, None, tmp_path / "s.zarr", part)

    assert served.names == ["few"]
    np.testing.assert_array_equal(served.rows("few"), rows)
    expected = np.where(rows[:, None, None], whole.propensity_of("few"), np.nan)
    np.testing.assert_array_equal(served.propensity, expected)


def test_a_finished_sweep_that_lacks_sets_or_rows_is_refused_with_names(
    store, model, sets, tmp_path
):
    few = {name: sets[name] for name in ("few-rows", "few")}
    sweep(store, model, tmp_path / "s.zarr", few)

    with pytest.raises(MismatchError, match=r"sets few-rows, few, but .* all too.*--overwrite"):
        sweep(store, model, tmp_path / "s.zarr", sets)
    more = SweepSet(directions=sets["few"].directions, rows=sets["all"].rows)
    with pytest.raises(MismatchError, match=r"no propensities of 40 of the 80 rows .* 'few'"):
        sweep(store, model, tmp_path / "s.zarr", {"few": more})


def test_an_archive_of_a_sweep_of_parts_comes_back_byte_for_byte(store, model, sets, tmp_path):
    done = sweep(store, model, tmp_path / "s.zarr", sets, shard_rows=32)
    export(done.store.path, tmp_path / "a.zarr", to="archive")

    again = read_archive(tmp_path / "a.zarr", partial(fill_store, tmp_path / "t.zarr"))

    assert file_bytes(again.path) == file_bytes(done.store.path)
    np.testing.assert_array_equal(
        analysis.open_sweep(again.path).rows("few"), open_store(done.store.path)["swept"][:, 2]
    )


def test_train_rows_are_of_base_prompts_and_validation_rows_are_not_read(store):
    read = rows_read(store, AnalyzeConfig())

    for row in range(store.n):
        split, variant = store["split"][row], store["variant"][row]
        assert read[row] == (split == "test" or (split == "train" and variant == "base"))
    assert rows_read(store, AnalyzeConfig(all_rows=True)).all()


def store_of(path, n):
    """A store of so many rows of one behavior, half of them framed, four in ten to train on."""
    columns = {
        "behavior": ["tidy"] * n,
        "variant": ["base"] * (n // 2) + ["user_neg"] * (n // 2),
        "split": (["train"] * 4 + ["validation"] + ["test"] * 5) * (n // 10),
    }
    array = RowArray("resid_post/prompt", 1, 1, "float32")
    contents = StoreContents(
        kind="residuals", n=n, arrays=[array], columns=columns, config={}, provenance={}
    )
    with Writer.create(path, contents) as writer:
        while writer.committed < n:
            rows = writer.next_rows
            values = np.zeros((rows.stop - rows.start, 1, 1), np.float32)
            writer.commit({array.name: values})
        writer.finish()
    return open_store(path)


@pytest.mark.parametrize(
    ("n", "settings", "of_test"),
    [
        (2000, {}, 64),
        (200, {}, 50),
        (2000, {"control_rows": 30}, 30),
        (2000, {"all_rows": True}, 500),
    ],
)
def test_controls_have_all_train_rows_and_a_part_of_test_drawn_with_the_seed(
    tmp_path, n, settings, of_test
):
    store, config = store_of(tmp_path / "s.zarr", n), AnalyzeConfig(**settings)
    read = rows_read(store, config)

    drawn = control_rows(store, read, config)

    assert not (drawn & ~read).any()
    np.testing.assert_array_equal(
        drawn & (store["split"] != "test"), read & (store["split"] != "test")
    )
    for variant in ("base", "user_neg"):
        test = (store["split"] == "test") & (store["variant"] == variant)
        assert (drawn & test).sum() == of_test
    np.testing.assert_array_equal(drawn, control_rows(store, read, config))
    if of_test < n / 4:
        assert (drawn != control_rows(store, read, AnalyzeConfig(**settings, seed=1))).any()


def test_the_sets_of_an_analysis_are_named_with_their_rows_before_there_are_directions(store):
    config = AnalyzeConfig(controls=2, control_rows=16)
    directions = analysis.difference_of_means(store)
    given = {"given": np.ones((store.n_layers, store.d_model), np.float32)}

    sets = sets_of_analysis(store, directions, config=config, others=given)
    rows = rows_of_sets(store, config, ["given"])

    assert list(sets) == list(rows) == ["difference_of_means", "given", "random", "random_1"]
    for name, steered in sets.items():
        np.testing.assert_array_equal(steered.rows, rows[name])
        assert steered.control == name.startswith("random")
