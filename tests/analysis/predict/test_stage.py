"""The stage `predictors` on a tiny model: what it leaves, what it reuses, what it says and refuses."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from actcache.analysis.analyze import analyze
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.predict import learned_vectors as learned
from actcache.analysis.predict import selections as predicted
from actcache.analysis.predict import stage as predictors
from actcache.analysis.predict.adamw_stack import training_device
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor
from actcache.analysis.predict.selections import train_predictors
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.report.predictor_tables import predictor_tables, short_table
from actcache.analysis.report.verdicts import shortcut_in_words, words
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.data.formats import read_samples
from actcache.data.personas import Persona, expand_variants
from actcache.engine.model import load_model
from actcache.errors import MismatchError
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
    summary = analyze(store, out, config=CONFIG, model=lambda: model)
    return out, summary["predictors"]


def test_leaves_arrays_tables_pictures_and_a_summary_in_json(store, done):
    out, found = done
    assert json.loads((out / "summary.json").read_text())["predictors"] == found
    assert (out / "embeddings.png").stat().st_size > 5000
    text = (out / "tables.md").read_text(encoding="utf-8")
    for table in predictor_tables(found):
        assert f"## {table.title}" in text
        assert {len(row) for row in table.rows} == {len(table.columns)}
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["id"], store["id"])
        assert arrays["caa/W2S Top-2/layer"].shape == (2, store.n)
        assert arrays["l2s/slope"].shape == (store.n, 4)


def test_every_figure_can_be_had_again_from_the_arrays(done):
    out, found = done
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        base = (arrays["variant"] == "base") & (arrays["split"] == "test")
        for kind in found["worth"]:
            slope, fixed = arrays[f"{kind}/slope"], arrays[f"{kind}/fixed_layer"]
            of_behaviors = []
            for behavior in found["behaviors"]:
                rows = np.flatnonzero(base & (arrays["behavior"] == behavior))
                mean = np.mean([slope[i, fixed[i]] for i in rows])
                worth = found["worth"][kind]["base"]["behaviors"][behavior]
                assert worth["fixed"]["slope"]["value"] == pytest.approx(mean)
                if f"{kind}/W2S Top-1/layer" in arrays:
                    layers = arrays[f"{kind}/W2S Top-1/layer"]
                    by_seed = [np.mean([slope[i, each[i]] for i in rows]) for each in layers]
                    of_behaviors.append(np.mean(by_seed))
                    assert worth["W2S Top-1"]["slope"]["value"] == pytest.approx(of_behaviors[-1])
            if of_behaviors:
                mean = found["worth"][kind]["base"]["mean"]["W2S Top-1"]["slope"]["value"]
                assert mean == pytest.approx(np.mean(of_behaviors))


def test_learned_vectors_were_swept_as_networks_say_them(store, done):
    out, found = done
    assert list(found["worth"]) == ["caa", "l2s", "oracle_vectors", "l2s_without_letter", "random"]
    networks = VectorPredictor.load(out / "predictors" / "b%20old" / "l2s" / "networks.safetensors")
    rows = predicted.predictor_rows(store, vectors=("caa", "l2s"))
    vectors = learned._Vectors(store, rows, {"b old": networks}, [0, 1, 2, 3])
    at = rows["b old"].at[:3]
    prompt = store.resid("prompt")
    said = networks.directions({layer: prompt.layer(layer, at) for layer in (0, 3)})
    np.testing.assert_allclose(vectors.learned(at), said, rtol=1e-6)
    own = store.resid("positive")[at] - store.resid("negative")[at]
    np.testing.assert_array_equal(vectors.oracle(at), own)


def test_the_fixed_layer_of_learned_vectors_is_chosen_by_the_samples_own_differences(done):
    out, found = done
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        train = (arrays["variant"] == "base") & (arrays["split"] == "train")
        for behavior in found["behaviors"]:
            rows = train & (arrays["behavior"] == behavior)
            best = int(arrays["oracle_vectors/slope"][rows].mean(0).argmax())
            assert found["fixed_layer"]["l2s"][behavior] == best
            assert found["fixed_layer"]["l2s_without_letter"][behavior] == best


def test_a_second_run_trains_nothing_and_needs_no_model(store, done, monkeypatch):
    out, found = done

    def never(*_args, **_kinds):
        raise AssertionError("asked for what is there")

    monkeypatch.setattr(predictors, "train_predictors", never)
    monkeypatch.setattr(VectorPredictor, "fit", never)
    again = analyze(store, out, config=CONFIG, model=never)
    assert again["predictors"] == found


def test_the_device_reaches_all_that_is_trained_and_is_no_setting(
    store, model, done, tmp_path, monkeypatch
):
    out, _ = done
    shutil.copytree(out / "sweep.zarr", tmp_path / "sweep.zarr")
    shutil.copytree(out / "predictors" / "learned.zarr", tmp_path / "predictors" / "learned.zarr")
    asked = set()

    def seen(name, train):
        def inner(*args, device, **kinds):
            asked.add((name, device))
            return train(*args, **kinds)

        return inner

    monkeypatch.setattr(predictors, "train_predictors", seen("layers", train_predictors))
    monkeypatch.setattr(VectorPredictor, "fit", seen("vectors", VectorPredictor.fit))
    summary = analyze(store, tmp_path, config=CONFIG, model=lambda: model, device="meta")
    assert asked == {("layers", "meta"), ("vectors", "meta")}
    before = json.loads((out / "summary.json").read_text())
    assert summary["config"] == before["config"]


def test_a_device_that_is_left_open_is_one_that_is_there():
    assert training_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert training_device("cuda:1") == "cuda:1"


def test_a_saved_predictor_chooses_layers_and_vectors_for_new_prompts(store, done):
    out, _ = done
    folder = next((out / "predictors" / "kind").glob("caa-*"))
    predictor = LayerPredictor.load(folder / "W2S%20Top-1.safetensors")
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

    assert re.search(
        "'d' has no base rows of the split 'validation'", run()["predictors"]["left_out"]
    )
    with pytest.raises(MismatchError, match="or pass --vectors caa"):
        run(stages=("predictors",))


def test_words_warn_of_each_thing_that_undoes_a_gain():
    def estimate(value, low, high):
        return {"value": value, "low": low, "high": high}

    def figures(gain, *, beyond=(0.3, 0.2, 0.4), random=(0.0, -0.1, 0.1), letters=(1.0, 1.0)):
        def worth(gain, slope=1.0):
            return {"gain": estimate(*gain), "slope": estimate(slope, slope - 0.1, slope + 0.1)}

        nothing = (0.0, 0.0, 0.0)
        ways = {"fixed": worth(nothing), "W2S Top-1": worth(gain), "W2S shuffled": worth(nothing)}
        control = {**ways, "W2S Top-1": worth(random)}
        by_letter = {
            x: {name: worth(nothing, slope) for name in ("fixed", "W2S Top-1")}
            for x, slope in zip("AB", letters, strict=True)
        }
        return {
            "primary": {"caa": 1, "random": 1},
            "worth": {"caa": {"base": {"mean": ways}}, "random": {"base": {"mean": control}}},
            "beyond": {"caa": estimate(*beyond)},
            "by_letter": {"caa": by_letter, "random": by_letter},
        }

    good = (0.5, 0.4, 0.6)
    (said,) = words(figures(good))
    assert said == (
        "CAA: W2S Top-1 gains 0.5 [0.4, 0.6] per unit multiplier over the fixed layer, mean over "
        "behaviors (traded prompts: 0 [0, 0]; random vectors: 0 [-0.1, 0.1])."
    )
    for changes, warning in (
        ({"gain": (0.1, -0.1, 0.3)}, "its interval is not above 0"),
        ({"gain": good, "beyond": (0.1, -0.1, 0.3)}, "a predictor of traded prompts does as well"),
        ({"gain": good, "random": (0.5, 0.4, 0.6)}, "random vectors of the same norm are not"),
        ({"gain": good, "letters": (2.0, -1.0)}, "the vector moves the letter"),
    ):
        said = " ".join(words(figures(**changes)))
        assert "Warning" in said
        assert warning in said


def test_the_terminals_table_is_the_first_one_without_comparisons(done):
    _, found = done
    rows = {row[0] for row in short_table(found).rows}
    assert {"CAA, fixed layer", "CAA, W2S Top-2", "L2S, oracle"} <= rows
    assert not {"CAA, third", "CAA, random layer"} & rows


def test_the_command_shows_the_table_the_verdicts_and_where_the_rest_is(store, tmp_path, capsys):
    flags = ["--draws", "50", "--seeds", "2", "--top", "1", "--vectors", "caa", "--json"]
    assert main(["analyze", str(store.path), "-o", str(tmp_path / "out"), *flags]) == 0
    found = json.loads(capsys.readouterr().out)["predictors"]
    assert main(["info", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "CAA, W2S Top-1" in shown
    assert "tables.md" in shown
    for sentence in found["words"]:
        assert sentence[:40] in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoders", "cache:9"], "cache:9"),
        (["--encoders", "bert"], "hf:NAME_OR_FOLDER"),
        (["--encoders", "cache:mean:0"], "--positions"),
        (["--context-layers", "4"], "layers 0 to 3"),
        (["--vectors", "caa,pca"], "expected some of caa, l2s"),
        (["--top", "0"], "from 1 on"),
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


def test_the_controls_gain_is_read_over_the_predictor_of_traded_prompts(done):
    out, found = done
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        base = (arrays["variant"] == "base") & (arrays["split"] == "test")
        for kind in found["beyond"]:
            ways = [f"{kind}/W2S Top-{found['primary'][kind]}/layer", f"{kind}/W2S shuffled/layer"]
            differences = []
            for behavior in found["behaviors"]:
                rows = np.flatnonzero(base & (arrays["behavior"] == behavior))
                slope = arrays[f"{kind}/slope"][rows]
                own, traded = (
                    np.mean([slope[np.arange(len(rows)), each[rows]] for each in arrays[way]])
                    for way in ways
                )
                differences.append(own - traded)
            assert found["beyond"][kind]["value"] == pytest.approx(np.mean(differences))


def test_train_rows_trade_embeddings_and_others_keep_theirs():
    own = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    train = np.arange(30) % 3 > 0
    traded = predicted._shuffled(own, train, 0)
    np.testing.assert_array_equal(traded[~train], own[~train])
    assert (traded[train] != own[train]).any(1).mean() > 0.8
    np.testing.assert_array_equal(np.sort(traded[train], axis=0), np.sort(own[train], axis=0))


@pytest.mark.parametrize(("low", "warned"), [(0.8, True), (-0.1, False)])
def test_what_is_not_shown_to_be_there_is_not_said_to_be_the_letter(low, warned):
    def mean(value, low, high):
        slope = {"value": value, "low": low, "high": high}
        return {"base": {"mean": {"fixed": {"slope": slope}}}}

    worth = {"l2s": mean(1.0, low, 1.9), "l2s_without_letter": mean(0.1, 0.0, 0.2)}
    assert ("Warning" in shortcut_in_words({"worth": worth})) == warned
