"""Directions of files and of other methods are swept beside the difference of means."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import actcache
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.pipeline import analyze
from actcache.analysis.results import open_results
from actcache.analysis.sweep.comparison import _over_behaviors
from actcache.analysis.sweep.forecast import forecast_analysis
from actcache.errors import MismatchError
from actcache.exchange import export
from actcache.steering.steering import Steering
from tests.support.tiny import lettered_rows, save

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for name in ("tidy", "calm"):
        lines = "\n".join(map(json.dumps, lettered_rows(60, rng)))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    files = [folder / "tidy.jsonl", folder / "calm.jsonl"]
    return actcache.build_store(
        files, folder / "s.zarr", model=save(folder / "model"), note=lambda _s: None
    )


@pytest.fixture(scope="module")
def file(store, tmp_path_factory):
    """Three times the difference of means, as if it came from elsewhere; and random ones."""
    folder = tmp_path_factory.mktemp("file")
    out = analyze(store, folder / "out", stages=("vectors",))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, values in out.directions.items():
        tensors[f"{name}/copy"] = 3 * values
        tensors[f"{name}/noise"] = rng.normal(size=values.shape).astype(np.float32)
    save_file(tensors, folder / "d.safetensors")
    return str(folder / "d.safetensors")


SETTINGS: dict[str, Any] = {
    "stages": ("vectors", "sweep"),
    "multipliers": (-1.0, 0.0, 1.0),
    "draws": 50,
}


def compared_of(results):
    """The comparison of a sweep's sets."""
    compared: Any = results.summary.sweep.compared
    return compared


def test_a_longer_copy_of_the_difference_of_means_has_its_slopes_at_one_norm(store, file, tmp_path):
    results = analyze(store, tmp_path / "out", directions=(file,), **SETTINGS)

    sweep, compared = results.sweep, compared_of(results)
    assert set(sweep.names) == {"difference_of_means", "copy", "noise", "random"}
    np.testing.assert_allclose(sweep.slopes("copy"), sweep.slopes(), atol=1e-4)
    assert compared.sets["copy"].over_caa.value == pytest.approx(0, abs=1e-4)
    assert compared.sets["difference_of_means"].over_caa is None
    assert compared.sets["random"].over_random is None
    test = (store["split"] == "test") & ~np.isnan(sweep.slopes("noise")).any(1)
    means = [
        sweep.slopes("noise")[test & (store["behavior"] == b)].mean(0) for b in ("tidy", "calm")
    ]
    pooled = [slope.value for slope in compared.sets["noise"].by_layer]
    np.testing.assert_allclose(pooled, np.mean(means, 0), atol=1e-9)
    page = (tmp_path / "out" / "tables.md").read_text()
    assert "Direction sets at fixed layers" in page
    assert "intervals resample behaviors and samples" in page
    assert open_results(tmp_path / "out").summary == results.summary
    with np.load(tmp_path / "out" / "steerability.npz") as arrays:
        np.testing.assert_array_equal(arrays["noise/slope"], sweep.slopes("noise"))


@pytest.mark.usefixtures("no_report")
def test_raw_directions_are_as_long_as_they_are(store, file, tmp_path):
    results = analyze(store, tmp_path / "out", directions=(f"{file}:copy",), norm="raw", **SETTINGS)

    wide = {**SETTINGS, "multipliers": (-3.0, 0.0, 3.0), "controls": 0}
    true = analyze(store, tmp_path / "wide", **wide).sweep
    propensity = results.sweep.propensity_of("copy")
    np.testing.assert_allclose(propensity, true.propensity, atol=1e-4)


def test_other_methods_are_left_and_swept(store, tmp_path):
    results = analyze(store, tmp_path / "out", methods=("mean", "ridge"), **SETTINGS)

    assert "ridge" in results.sweep.names
    left = load_file(tmp_path / "out" / "directions.safetensors")
    assert {"tidy/ridge", "calm/ridge", "tidy/difference_of_means"} <= left.keys()
    np.testing.assert_allclose(np.linalg.norm(left["tidy/ridge"], axis=1), 1, atol=1e-5)
    assert compared_of(results).sets.keys() == {"difference_of_means", "ridge", "random"}


@pytest.mark.usefixtures("no_report")
def test_residual_norm_holds_for_the_difference_of_means_too(store, file, tmp_path):
    results = analyze(
        store, tmp_path / "out", directions=(f"{file}:copy",), norm="residual", **SETTINGS
    )
    np.testing.assert_allclose(results.sweep.slopes("copy"), results.sweep.slopes(), atol=1e-4)
    left = load_file(tmp_path / "out" / "directions.safetensors")
    means = results.directions["tidy"]
    np.testing.assert_array_equal(left["tidy/difference_of_means"], means)  # as it is


def test_directions_that_cannot_be_read_are_refused_before_the_sweep(store, file, tmp_path):
    with pytest.raises(MismatchError, match="no direction 'tidy/missing'"):
        analyze(store, tmp_path / "out", directions=(f"{file}:missing",), **SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_a_dry_run_counts_the_sets_that_the_sweep_has(store, file, tmp_path):
    settings = SETTINGS | {"controls": 2, "control_rows": 16}
    given: dict[str, Any] = {"directions": (file,), "methods": ("mean", "ridge")}
    plain, whole = (
        forecast_analysis(store, None, config=AnalyzeConfig(**words), model="not asked for")
        for words in (settings, settings | given)
    )

    sweep = analyze(store, tmp_path / "out", **settings, **given).sweep

    assert {"difference_of_means", "ridge", "copy", "noise", "random", "random_1"} == set(
        sweep.names
    )
    a_set = len(sweep.layers) * len(sweep.multipliers)
    rows = {name: int(sweep.rows(name).sum()) for name in sweep.names}
    assert whole["cells"] == sum(rows.values()) * a_set
    assert whole["cells"] - plain["cells"] == 3 * rows["difference_of_means"] * a_set
    assert rows["random"] < rows["copy"]


def test_a_dry_run_refuses_directions_that_cannot_be_read(store, tmp_path):
    config = AnalyzeConfig(stages=("sweep",), directions=(str(tmp_path / "nowhere"),))
    with pytest.raises(MismatchError, match="no file of directions"):
        forecast_analysis(store, None, config=config, model="not asked for")


def test_intervals_resample_behaviors_too():
    rng = np.random.default_rng(0)
    apart = [rng.normal(mean, 0.1, 200) for mean in (-1.0, 0.0, 1.0)]

    pooled = _over_behaviors(apart, seed=0, draws=2000)

    assert pooled.value == pytest.approx(np.mean([values.mean() for values in apart]))
    # The mean of three drawn from -1, 0 and 1 has a standard deviation of √(2/3)/√3.
    assert pooled.high - pooled.low == pytest.approx(2 * 1.96 * (2 / 9) ** 0.5, rel=0.2)
    same = [values - values.mean() for values in apart]
    narrow = _over_behaviors(same, seed=0, draws=2000)
    assert narrow.high - narrow.low < 0.05


@pytest.mark.usefixtures("no_report")
def test_other_directions_can_be_steered_with_and_exported(store, tmp_path):
    out = tmp_path / "out"
    results = analyze(store, out, methods=("mean", "ridge"), **SETTINGS)
    left = load_file(out / "directions.safetensors")

    steering = Steering.from_results(out, "tidy", directions="ridge", strength=2)

    fixed = compared_of(results).sets["ridge"].fixed_layers["tidy"]
    assert steering.layers == (fixed,)
    np.testing.assert_array_equal(steering.vectors[0], left["tidy/ridge"][fixed])
    assert steering.source is not None
    assert steering.source.method == "ridge"
    with pytest.raises(MismatchError, match="expected directions of that name"):
        Steering.from_results(out, "tidy", directions="rfm")
    export(out, tmp_path / "v.gguf", to="gguf", directions=["tidy/ridge"])
    assert (tmp_path / "v.gguf").exists()
