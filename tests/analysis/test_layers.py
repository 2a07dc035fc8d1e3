"""The stage `layers`: which samples discriminative layers are read on."""

from typing import Any

import numpy as np
import pytest

from actcache import analysis
from actcache.analysis.directions.difference_of_means import label_directions
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer

N, LAYERS, WIDTH = 40, 3, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "s.zarr"
    rng = np.random.default_rng(0)
    array = RowArray("resid_post/prompt", LAYERS, WIDTH, "float32")
    columns: dict[str, Any] = {
        "id": [f"r{i}" for i in range(N)],
        "behavior": ["mood"] * N,
        "variant": ["base"] * N,
        "label": ["happy", "sad"] * (N // 2),
        "split": ["train"] * 24 + ["test"] * 16,
        "prompt": [f"{i}?" for i in range(N)],
        "layer": np.arange(LAYERS),
    }
    contents = StoreContents(
        kind="residuals",
        n=N,
        arrays=[array],
        columns=columns,
        config={},
        provenance={"data_sha256": "", "model": {"name": "none", "weights_sha256": ""}},
    )
    with Writer.create(path, contents) as writer:
        values = rng.normal(size=(N, LAYERS, WIDTH)).astype(np.float32)
        writer.commit({array.name: values})
        writer.finish()
    return open_store(path)


@pytest.mark.parametrize(("on_calibration", "split"), [(False, "test"), (True, "train")])
def test_class_means_are_of_held_out_samples_or_of_those_of_the_directions(
    store, tmp_path, on_calibration, split
):
    results = analysis.analyze(
        store, tmp_path / "o", stages=("layers",), draws=5, on_calibration=on_calibration
    )

    [scores] = (results.summary.layers or {}).values()
    train = store["split"] == "train"
    direction = label_directions(store, rows=train, labels=("happy", "sad")).values[0]
    common = direction[scores.common_layer] / np.linalg.norm(direction[scores.common_layer])
    values = store.resid("prompt")[np.arange(N)]
    for side, label in enumerate(("happy", "sad")):
        rows = (store["split"] == split) & (store["label"] == label)
        expected = (values[rows] @ common).mean(0)
        np.testing.assert_allclose(scores.class_mean[side], expected, rtol=1e-4, atol=1e-5)
    assert scores.n_positive == (12 if split == "train" else 8)
    samples = "held-out samples" if split == "test" else "the directions' own samples"
    assert f"{samples} on one common direction" in (tmp_path / "o" / "tables.md").read_text("utf-8")
