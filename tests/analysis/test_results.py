"""The front door: from a store to results in one call, and what they hold in a notebook."""

import json

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.analysis import AnalyzeConfig, Interval, Summary
from actcache.conventions import Stage
from actcache.errors import FormatError, StoreNotFoundError
from tests.support import tiny

pytestmark = pytest.mark.model

STAGES: tuple[Stage, ...] = ("vectors", "sweep")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    rows = tiny.lettered_rows(24, np.random.default_rng(0))
    (folder / "tidy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = tiny.save(folder / "model")
    return actcache.build_store(folder / "tidy.jsonl", folder / "s.zarr", model=model)


@pytest.fixture(scope="module")
def results(store, tmp_path_factory):
    """No model is given: the one that the store names is loaded."""
    out = tmp_path_factory.mktemp("out")
    return analysis.analyze(store, out, stages=STAGES, multipliers=(-1.0, -0.5, 0.5, 1.0), draws=20)


def test_results_hold_directions_sweep_and_summary(store, results):
    direction = results.directions["tidy"]
    assert direction.shape == (store.n_layers, store.d_model)
    assert direction.dtype == np.float32
    sweep = results.sweep
    assert sweep.propensity.shape == (store.n, store.n_layers, 4)
    assert sweep.names == ["difference_of_means", "random"]
    np.testing.assert_array_equal(sweep.ids, store["id"])
    np.testing.assert_array_equal(sweep.layers, np.arange(store.n_layers))
    np.testing.assert_array_equal(sweep.multipliers, [-1, -0.5, 0.5, 1])

    tidy = results.summary.behaviors["tidy"]
    assert isinstance(tidy.fixed.slope, Interval)
    rows = store["split"] == "test"
    mean = sweep.slopes()[rows, tidy.fixed_layer].mean()
    assert tidy.fixed.slope.value == pytest.approx(mean)
    with np.load(results.path / "steerability.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["slope"], sweep.slopes())
        np.testing.assert_array_equal(arrays["random/slope"], sweep.slopes("random"))


def test_what_was_left_is_opened_again(store, results, monkeypatch):
    opened = analysis.open_results(str(results.path))
    assert opened.summary == results.summary == Summary.read(results.path / "summary.json")

    def loaded(*_args, **_settings):
        raise AssertionError("a finished sweep needs no weights")

    monkeypatch.setattr("actcache.build.replay.load_store_model", loaded)
    config = AnalyzeConfig(stages=STAGES, multipliers=(-1.0, -0.5, 0.5, 1.0))
    again = analysis.analyze(store.path, results.path, config=config, draws=20)
    assert again.summary == results.summary


def test_a_notebook_shows_the_verdict_of_every_behavior(results):
    page = results._repr_html_()
    assert page.startswith("<p><b>Results</b>")
    for verdict in results.summary.verdicts:
        assert verdict.word in page


def test_parts_that_are_not_there_say_which_stage_makes_them(results, tmp_path):
    (tmp_path / "summary.json").write_bytes((results.path / "summary.json").read_bytes())
    opened = analysis.open_results(tmp_path)
    with pytest.raises(StoreNotFoundError, match="Run the stage vectors"):
        _ = opened.directions
    with pytest.raises(StoreNotFoundError):
        _ = opened.sweep
    (tmp_path / "directions.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="is damaged"):
        _ = opened.directions
