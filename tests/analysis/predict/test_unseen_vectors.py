"""Vectors of train samples come from networks that never saw them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor
from actcache.analysis.predict.selections import predictor_rows
from actcache.analysis.predict.unseen_vectors import FOLDS, fold_networks
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data import read_samples
from tests.support import tiny

SETTINGS = L2SSettings(hidden=6, rates=(1e-2, 3e-2), components=(4, 16), epochs=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen")
    rows = [
        {
            "prompt": f"question {i // 2}? " + "xyz"[i % 3] * (i % 5),
            "positive": " (A)" if i % 2 else " (B)",
            "negative": " (B)" if i % 2 else " (A)",
        }
        for i in range(60)
    ]
    (folder / "kind.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = BuildConfig(model=tiny.save(folder / "model"))
    return run_build(plan_build(read_samples([folder / "kind.jsonl"]), config), folder / "s.zarr")


@pytest.fixture(scope="module")
def trained(store):
    rows = predictor_rows(store, vectors=("l2s",))["kind"]
    train, validation = np.zeros((2, store.n), bool)
    train[rows.at[rows.train]] = validation[rows.at[rows.validation]] = True
    layers = store.layers.tolist()
    chosen = VectorPredictor.fit(
        store, rows=train, validation=validation, layers=layers, settings=SETTINGS
    )
    return rows, chosen


def folds_of(store, trained, folder):
    rows, chosen = trained
    return fold_networks(
        folder, store, {"kind": rows}, {"kind": chosen}, fingerprint={"of": "test"}, device="cpu"
    )


def test_each_train_sample_is_left_out_of_its_fold_and_prompts_stay_together(
    store, trained, tmp_path
):
    rows, chosen = trained
    folds = folds_of(store, trained, tmp_path)
    assert len(folds) == FOLDS
    together = np.concatenate([fold.rows for fold in folds])
    np.testing.assert_array_equal(np.sort(together), rows.at[rows.train])
    prompts = [set(store["prompt"][fold.rows]) for fold in folds]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    for fold in folds:
        for network in fold.networks:
            assert network.n_train == rows.train.sum() - len(fold.rows)
            assert network.n_validation == chosen.n_validation


def test_fold_networks_equal_networks_trained_on_the_other_folds(store, trained, tmp_path):
    rows, chosen = trained
    layers = chosen.layers.tolist()
    fold = folds_of(store, trained, tmp_path)[1]
    prompt = store.resid("prompt")

    def contexts(layer):
        return np.asarray(prompt.layer(layer, fold.rows), np.float32)

    vectors = fold.directions(contexts, layers)
    seen = chosen.directions(contexts)
    assert not np.allclose(vectors, seen, rtol=0.01)
    others = np.isin(np.arange(store.n), np.setdiff1d(rows.at[rows.train], fold.rows))
    validation = np.isin(np.arange(store.n), rows.at[rows.validation])
    for i, layer in enumerate(layers):
        choice = replace(
            SETTINGS,
            components=(int(chosen.components[i]),),
            rates=(float(chosen.rate[i]),),
        )
        alone = VectorPredictor.fit(
            store,
            rows=others,
            validation=validation,
            layers=[layer],
            context_layers=[int(chosen.context_layer[i])],
            settings=choice,
        )
        np.testing.assert_allclose(vectors[:, i], alone.directions(contexts)[:, 0], rtol=1e-4)


def test_networks_of_folds_are_loaded_where_they_were_trained(store, trained, tmp_path):
    first = folds_of(store, trained, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = folds_of(store, trained, tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left.rows, right.rows)
        for network, loaded in zip(left.networks, right.networks, strict=True):
            np.testing.assert_array_equal(network.decoder, loaded.decoder)
