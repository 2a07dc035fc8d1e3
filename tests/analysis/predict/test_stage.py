"""The stage `predictors` on a tiny model: what it leaves, what it reuses, what it says and refuses."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import pair_directions
from actcache.analysis.files import plain
from actcache.analysis.pipeline import analyze
from actcache.analysis.predict import learned_vectors as learned
from actcache.analysis.predict import selections as predicted
from actcache.analysis.predict import stage as predictors
from actcache.analysis.predict.adamw_stack import training_device
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor
from actcache.analysis.predict.selections import train_predictors
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.report.findings import findings
from actcache.analysis.report.predictor_tables import predictor_tables, short_table
from actcache.analysis.results import open_results
from actcache.analysis.summary import Summary
from actcache.analysis.sweep.run import run_sweep
from actcache.analysis.sweep.sets import sets_of_analysis
from actcache.analysis.sweep.splits import splits_of
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.data.formats import read_samples
from actcache.data.personas import Persona, expand_variants
from actcache.engine.model import load_model
from actcache.errors import MismatchError
from actcache.progress import SILENT
from tests.support import tiny

pytestmark = pytest.mark.model

CONFIG = AnalyzeConfig(
    multipliers=(-1.0, -0.5, 0.5, 1.0), draws=50, seeds=2, top=(1, 2), context_layers=(0, 3)
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Networks of a few units and epochs: what they learn is tested elsewhere."""
    w2s = partial(W2SSettings, widths=(8,), depths=(1,), decays=(0.01,), epochs=(3, 6), folds=3)
    l2s = partial(L2SSettings, hidden=8, rates=(1e-2,), components=(16,), epochs=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictors, "W2SSettings", w2s)
        patch.setattr(learned, "L2SSettings", l2s)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictors")
    for behavior in ("kind", "b old"):
        rows = [
            {
                "behavior": behavior,
                "prompt": f"{behavior} {i}? " + "xyz"[i % 3] * (i % 5),
                "positive": " (A)" if i % 2 else " (B)",
                "negative": " (B)" if i % 2 else " (A)",
            }
            for i in range(40)
        ]
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{behavior[:1]}.jsonl").write_text(lines, encoding="utf-8")
    personas = {name: Persona("Yes.", "No.") for name in ("kind", "b old")}
    samples = expand_variants(
        read_samples([folder / "k.jsonl", folder / "b.jsonl"]),
        ("base", "user_neg"),
        personas=personas,
    )
    config = BuildConfig(model=tiny.save(folder / "model"))
    return run_build(plan_build(samples, config), folder / "s.zarr")


@pytest.fixture(scope="module")
def model(store):
    return load_model(store.provenance["model"]["name"])


@pytest.fixture(scope="module")
def done(store, model, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    results = analyze(store, out, config=CONFIG, model=lambda: model, device="cpu")
    return out, results.summary


def test_leaves_arrays_tables_pictures_and_a_summary_in_json(store, done):
    out, summary = done
    assert Summary.read(out / "summary.json") == summary
    summary.write(out / "again.json")
    assert (out / "again.json").read_bytes() == (out / "summary.json").read_bytes()
    assert (out / "embeddings.png").stat().st_size > 5000
    text = (out / "tables.md").read_text(encoding="utf-8")
    for verdict in summary.verdicts:
        assert verdict.sentence in text
    for table in predictor_tables(summary):
        assert f"## {table.title}" in text
        assert {len(row) for row in table.rows} == {len(table.columns)}
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["id"], store["id"])
        assert arrays["caa/w2s_top2/layer"].shape == (2, store.n)
        assert arrays["l2s/slope"].shape == (store.n, 4)


def test_every_score_follows_from_the_arrays(done):
    out, summary = done
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        base = (arrays["variant"] == "base") & (arrays["split"] == "test")
        for name, scores in summary.predictors.sets.items():
            slope, fixed = arrays[f"{name}/slope"], arrays[f"{name}/fixed_layer"]
            of_behaviors = []
            for behavior in summary.predictors.behaviors:
                rows = np.flatnonzero(base & (arrays["behavior"] == behavior))
                mean = np.mean([slope[i, fixed[i]] for i in rows])
                by_strategy = scores.base.behaviors[behavior]
                assert by_strategy["fixed"].slope.value == pytest.approx(mean)
                if f"{name}/w2s_top1/layer" in arrays:
                    layers = arrays[f"{name}/w2s_top1/layer"]
                    by_seed = [np.mean([slope[i, chosen[i]] for i in rows]) for chosen in layers]
                    of_behaviors.append(np.mean(by_seed))
                    assert by_strategy["w2s_top1"].slope.value == pytest.approx(of_behaviors[-1])
            if of_behaviors:
                mean = scores.base.mean["w2s_top1"].slope.value
                assert mean == pytest.approx(np.mean(of_behaviors))


def test_learned_vectors_were_swept_as_networks_predict_them(store, done):
    out, summary = done
    sets = ["caa", "l2s", "oracle_vectors", "l2s_without_letter", "random"]
    assert list(summary.predictors.sets) == sets
    networks = VectorPredictor.load(out / "predictors" / "b-old" / "l2s" / "networks.safetensors")
    rows = predicted.predictor_rows(store, vectors=("caa", "l2s"))
    vectors = learned.LearnedVectors(store, rows, layers=[0, 1, 2, 3], config=CONFIG)
    vectors.train(out / "predictors", progress=SILENT)
    at = rows["b old"].at[rows["b old"].test][:3]  # train rows get theirs from other networks
    prompt = store.resid("prompt")
    vectors_of_networks = networks.directions({layer: prompt.layer(layer, at) for layer in (0, 3)})
    np.testing.assert_allclose(vectors.learned(at), vectors_of_networks, rtol=1e-6)
    differences = store.resid("positive")[at] - store.resid("negative")[at]
    np.testing.assert_array_equal(vectors.own_differences(at), differences)


def test_one_sweep_gives_what_two_sweeps_of_all_rows_gave(store, model, done, tmp_path):
    """Before, learned vectors were swept by themselves, and every set on every row."""
    out, _ = done
    rows = predicted.predictor_rows(store, vectors=("caa", "l2s"))
    vectors = learned.LearnedVectors(store, rows, layers=[0, 1, 2, 3], config=CONFIG)
    vectors.train(out / "predictors", progress=SILENT)
    base = (store["split"] == "train") & (store["variant"] == "base")
    sets = sets_of_analysis(store, pair_directions(store, rows=base), config=CONFIG)
    run = partial(run_sweep, store, multipliers=CONFIG.multipliers, model=model)
    two = [
        run(
            {name: sweep_set.directions for name, sweep_set in sets.items()},
            out=tmp_path / "one.zarr",
        ),
        run(vectors.sets, out=tmp_path / "two.zarr"),
    ]
    one = open_results(out).sweep

    assert sorted(one.names) == sorted([*two[0].names, *two[1].names])
    read = base | (store["split"] == "test")
    for before in two:
        for name in before.names:
            np.testing.assert_array_equal(one.rows(name), read)
            now = one.propensity_of(name)
            np.testing.assert_allclose(now[read], before.propensity_of(name)[read], atol=1e-5)
            assert np.isnan(now[~read]).all()


@pytest.mark.usefixtures("no_report")
def test_tables_are_those_of_a_sweep_of_all_rows(store, model, done, tmp_path):
    out, summary = done
    config = replace(CONFIG, all_rows=True)
    whole = analyze(store, tmp_path, config=config, model=lambda: model, device="cpu")

    assert whole.sweep.rows("l2s").all()
    assert (tmp_path / "tables.md").read_text("utf-8") == (out / "tables.md").read_text("utf-8")
    numbers, others = (numbers_of(plain(result)) for result in (summary, whole.summary))
    assert numbers.keys() == others.keys()
    for name, value in numbers.items():
        assert others[name] == pytest.approx(value, abs=1e-5), name


def test_splits_give_the_fixed_layer_an_error_and_change_nothing_else(store, model, done, tmp_path):
    _, summary = done
    config = replace(CONFIG, splits=3)
    read = analyze(store, tmp_path, config=config, model=lambda: model, device="cpu")

    numbers, others = (numbers_of(plain(result)) for result in (summary, read.summary))
    assert {name for name in others if name not in numbers} == {
        f".sweep.behaviors.{behavior}.splits.{k}.{part}"
        for behavior in ("kind", "b old")
        for k in range(3)
        for part in ("fixed_layer", "slope", "share")
    }
    changed = {name for name, value in numbers.items() if abs(others[name] - value) > 1e-5}
    assert changed
    errors = (".slope_error", ".share_error")
    for name in changed:
        assert name.endswith(tuple(f".fixed{part}" for part in errors)), name
        assert ".caa." in name or ".oracle_vectors." in name or name.startswith(".sweep.")
        assert "user_neg" not in name
    splits, sets = splits_of(store, config), read_predictors(read).sets
    for key, sweep_set in (("caa", None), ("oracle_vectors", "oracle_vectors")):
        by_behavior = []
        for behavior in ("b old", "kind"):
            values = []
            for k, split in enumerate(splits):
                slope = read.sweep.slopes(
                    sweep_set or (f"split_{k}" if k else "difference_of_means")
                )
                rows = store["behavior"] == behavior
                layer = slope[split.train & rows].mean(0).argmax()
                values.append(slope[split.test & rows, layer].mean())
            score = sets[key].base.behaviors[behavior]["fixed"]
            assert score.slope_error == pytest.approx(np.std(values, ddof=1) / 3**0.5)
            by_behavior.append(values)
        score = sets[key].base.mean["fixed"]
        mean = np.mean(by_behavior, axis=0)
        assert score.slope_error == pytest.approx(np.std(mean, ddof=1) / 3**0.5)
    text = (tmp_path / "tables.md").read_text("utf-8")
    assert "| over splits |" in text
    assert "over 3 splits of the base prompts (SE)" in text
    assert Summary.read(tmp_path / "summary.json") == read.summary


def numbers_of(document, name=""):
    """The numbers of a summary by their places, but for the settings and the sweep's self-check."""
    if not isinstance(document, dict | list):
        return {name: document} if isinstance(document, int | float) else {}
    parts = document.items() if isinstance(document, dict) else list(enumerate(document))
    skipped = {"config", "self_check"}
    return {
        place: number
        for key, part in parts
        if key not in skipped
        for place, number in numbers_of(part, f"{name}.{key}").items()
    }


def test_the_fixed_layer_of_learned_vectors_is_chosen_by_the_samples_own_differences(done):
    out, summary = done
    sets = summary.predictors.sets
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        train = (arrays["variant"] == "base") & (arrays["split"] == "train")
        for behavior in summary.predictors.behaviors:
            rows = train & (arrays["behavior"] == behavior)
            best = int(arrays["oracle_vectors/slope"][rows].mean(0).argmax())
            assert sets["l2s"].fixed_layer[behavior] == best
            assert sets["l2s_without_letter"].fixed_layer[behavior] == best


@pytest.mark.usefixtures("no_report")
def test_a_second_run_trains_nothing_and_needs_no_model(store, done, monkeypatch):
    out, summary = done

    def never(*_args, **_kinds):
        raise AssertionError("asked for what is there")

    monkeypatch.setattr(predictors, "train_predictors", never)
    monkeypatch.setattr(VectorPredictor, "fit", never)
    again = analyze(store, out, config=CONFIG, model=never)
    assert again.summary == summary


@pytest.mark.usefixtures("no_report")
def test_the_device_reaches_all_that_is_trained_and_is_no_setting(
    store, model, done, tmp_path, monkeypatch
):
    out, _ = done
    shutil.copytree(out / "sweep.zarr", tmp_path / "sweep.zarr")
    asked = set()

    def seen(name, train):
        def inner(*args, device, **kinds):
            asked.add((name, device))
            return train(*args, **kinds)

        return inner

    monkeypatch.setattr(predictors, "train_predictors", seen("layers", train_predictors))
    monkeypatch.setattr(VectorPredictor, "fit", seen("vectors", VectorPredictor.fit))
    results = analyze(store, tmp_path, config=CONFIG, model=lambda: model, device="meta")
    assert asked == {("layers", "meta"), ("vectors", "meta")}
    assert results.summary.config == Summary.read(out / "summary.json").config


def test_a_device_that_is_left_open_is_one_that_is_there():
    assert training_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert training_device("cuda:1") == "cuda:1"


def test_a_saved_predictor_chooses_layers_and_vectors_for_new_prompts(store, done):
    out, _ = done
    path = out / "predictors" / "kind" / "caa-cache-2" / "top1.safetensors"
    predictor = LayerPredictor.load(path)
    opened = open_results(out).predictor("kind", top=1)
    np.testing.assert_array_equal(opened.active_layers, predictor.active_layers)
    assert open_results(out).predictor("b old", directions="l2s").layers.tolist() == [0, 1, 2, 3]
    with pytest.raises(MismatchError, match="no predictor of 'caa' for behavior 'cold'"):
        open_results(out).predictor("cold")
    state = store.resid("prompt").layer(2)[:5].astype(np.float32)
    layers = predictor.predict(state / np.linalg.norm(state, axis=1, keepdims=True))
    assert layers.shape == (2, 5)
    assert set(layers.ravel()) <= set(predictor.active_layers)


def test_learned_vectors_of_other_settings_are_never_mixed(store, model, done):
    out, _ = done
    other = replace(CONFIG, context_layers=(1,))
    with pytest.raises(MismatchError, match=r"sets\.l2s"):
        analyze(store, out, config=other, model=lambda: model)


def test_rows_that_are_too_few_leave_predictors_out_unless_they_were_asked_for(
    store, model, tmp_path
):
    rows = [
        {"prompt": f"{i}?", "positive": " (A)", "negative": " (B)", "split": split}
        for i, split in enumerate(["train", "train", "test", "test"])
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = BuildConfig(model=store.provenance["model"]["name"])
    small = run_build(plan_build(read_samples([tmp_path / "d.jsonl"]), config), tmp_path / "s.zarr")

    def run(**changes):
        settings = replace(CONFIG, **changes)
        return analyze(small, tmp_path / "out", config=settings, model=lambda: model)

    summary = run().summary
    assert summary.predictors is None
    [reason] = summary.left_out
    assert reason.startswith("predictors: behavior 'd' has no base rows of the split 'validation'")
    with pytest.raises(MismatchError, match="or pass --vectors caa"):
        run(stages=("predictors",))


def test_the_terminals_table_is_the_first_one_without_comparisons(done):
    _, summary = done
    rows = {row[0] for row in short_table(summary).rows}
    assert {"CAA, fixed layer", "CAA, W2S Top-2", "L2S, oracle"} <= rows
    assert not {"CAA, third", "CAA, random layer"} & rows


@pytest.mark.usefixtures("no_report")
def test_the_command_shows_findings_numbers_and_where_the_rest_is(store, tmp_path, capsys):
    flags = ["--draws", "50", "--seeds", "2", "--top", "1", "--vectors", "caa", "--json"]
    assert main(["analyze", str(store.path), "-o", str(tmp_path / "out"), *flags]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    listed = findings(Summary.read(tmp_path / "out" / "summary.json"))
    assert [finding.about for finding in listed] == ["b old", "kind", "CAA vectors"]
    first = " ".join(shown.split())
    for finding in listed:
        assert str(finding) in first
    assert "tables.md" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoders", "cache:9"], "cache:9"),
        (["--encoders", "bert"], "hf:NAME_OR_FOLDER"),
        (["--encoders", "cache:mean:0"], "--positions"),
        (["--context-layers", "4"], "layers 0 to 3"),
        (["--vectors", "caa,pca"], "expected some of caa, l2s"),
        (["--top", "0"], "expected 1 or more"),
        (["--context-layers", "x"], "context layers are 'x'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(store, tmp_path, capsys, flags, message):
    stages = ["--stages", "predictors", "--draws", "50"]
    out = str(tmp_path / "out")
    assert main(["analyze", str(store.path), "-o", out, *stages, *flags]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("actcache: ")
    assert "\n" not in error


def test_the_gain_over_shuffled_prompts_equals_its_loop(done):
    out, summary = done
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        base = (arrays["variant"] == "base") & (arrays["split"] == "test")
        for name, scores in summary.predictors.sets.items():
            if scores.primary is None:
                continue
            strategies = [
                f"{name}/{strategy}/layer" for strategy in (scores.primary, "w2s_shuffled")
            ]
            differences = []
            for behavior in summary.predictors.behaviors:
                rows = np.flatnonzero(base & (arrays["behavior"] == behavior))
                slope = arrays[f"{name}/slope"][rows]
                of_prompts, shuffled = (
                    np.mean([slope[np.arange(len(rows)), seed[rows]] for seed in arrays[strategy]])
                    for strategy in strategies
                )
                differences.append(of_prompts - shuffled)
            assert scores.over_shuffled.value == pytest.approx(np.mean(differences))


def test_train_rows_shuffle_embeddings_and_others_keep_theirs():
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    train = np.arange(30) % 3 > 0
    shuffled = predicted._shuffled(embeddings, train, 0)
    np.testing.assert_array_equal(shuffled[~train], embeddings[~train])
    assert (shuffled[train] != embeddings[train]).any(1).mean() > 0.8
    np.testing.assert_array_equal(
        np.sort(shuffled[train], axis=0), np.sort(embeddings[train], axis=0)
    )


def read_predictors(results):
    """The scores of a stage that ran."""
    assert results.summary.predictors is not None
    return results.summary.predictors
