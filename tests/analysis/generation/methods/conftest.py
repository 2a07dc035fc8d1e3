"""A tiny model, two behaviors and two labels, analyzed with networks of a few units."""

import json
from functools import partial

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.analysis.generation.methods.behavior import BehaviorInputs, MethodSettings
from actcache.analysis.predict import learned_vectors, stage
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.engine.model import load_model
from tests.support import tiny

SITES = ("resid_post", "embed", "ln1", "ln2")
POSITIONS = ("prompt", "positive", "negative", "mean")


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def pairs(behavior):
    """Prompts that begin with the behavior's name, so that a gate can tell them apart."""
    return [
        {
            "behavior": behavior,
            "prompt": f"{behavior * 3} {i}? " + "xyz"[i % 3] * (i % 5),
            "positive": " (A)" if i % 2 else " (B)",
            "negative": " (B)" if i % 2 else " (A)",
        }
        for i in range(40)
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    tiny.save(folder / "model")
    return folder


@pytest.fixture(scope="session")
def model(folder):
    return load_model(str(folder / "model"))


@pytest.fixture(scope="session")
def store(folder):
    files = [write_rows(folder / f"{name}.jsonl", pairs(name)) for name in ("kind", "bold")]
    return actcache.build_store(
        files, folder / "pairs.zarr", model=folder / "model", sites=SITES, positions=POSITIONS
    )


@pytest.fixture(scope="session")
def results(store, model, folder):
    w2s = partial(W2SSettings, widths=(8,), depths=(1,), decays=(0.01,), epochs=(3, 6), folds=3)
    l2s = partial(L2SSettings, hidden=8, rates=(1e-2,), components=(16,), epochs=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "W2SSettings", w2s)
        patch.setattr(learned_vectors, "L2SSettings", l2s)
        return analysis.analyze(
            store,
            folder / "out",
            model=lambda: model,
            multipliers=(-1.0, -0.5, 0.5, 1.0),
            draws=20,
            seeds=3,
            top=(1,),
            device="cpu",
        )


@pytest.fixture(scope="session")
def labelled(folder):
    """A store of labelled prompts, and its results."""
    rows = [
        {"prompt": f"{'sun' if i % 2 else 'rain'} {i}.", "label": "warm" if i % 2 else "cold"}
        for i in range(40)
    ]
    path = write_rows(folder / "labels.jsonl", rows)
    store = actcache.build_store(
        path, folder / "labels.zarr", model=folder / "model", sites=SITES, positions=("prompt",)
    )
    return store, analysis.analyze(store, folder / "labels-out", draws=20)


@pytest.fixture
def inputs(results, store, model):
    """The inputs of one behavior; keywords are settings."""

    def make(behavior="kind", **settings):
        return BehaviorInputs(
            results=results,
            store=store,
            behavior=behavior,
            settings=MethodSettings(model=lambda: model, **settings),
        )

    return make


@pytest.fixture
def row(store):
    """Number of a test row of the behavior `kind`."""
    return int(np.flatnonzero(store.rows(behavior="kind", split="test"))[0])
