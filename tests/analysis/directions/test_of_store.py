"""Directions of a store against plain means, and what is refused."""

from typing import Any

import numpy as np
import pytest

from actcache.analysis.directions.of_store import (
    label_codes,
    label_directions,
    pair_directions,
    two_labels,
)
from actcache.errors import MismatchError
from actcache.store.contents import StoreContents
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writer import Writer

POSITIONS = ("prompt", "positive", "negative")


@pytest.fixture
def made(tmp_path):
    """A store of 40 samples in two behaviors and three labels, and its residuals by position."""
    rng = np.random.default_rng(0)
    n = 40
    resid = {p: rng.normal(3, 1, (n, 3, 5)).astype(np.float32) for p in POSITIONS}
    settings: dict[str, Any] = {
        "kind": "residuals",
        "n": n,
        "arrays": [RowArray(f"resid_post/{p}", 3, 5, "float32") for p in POSITIONS],
        "columns": {
            "id": [str(i) for i in range(n)],
            "behavior": ["b" if i % 3 else "a" for i in range(n)],
            "label": [("harmful", "fine", "other")[i % 3] for i in range(n)],
        },
        "config": {},
        "provenance": {},
        "shard_rows": 7,
    }
    with Writer.create(tmp_path / "s.zarr", StoreContents(**settings)) as writer:
        while writer.committed < n:
            rows = writer.next_rows
            writer.commit({f"resid_post/{p}": values[rows] for p, values in resid.items()})
        writer.finish()
    return open_store(tmp_path / "s.zarr"), resid


def test_a_pairs_direction_is_the_mean_difference_of_its_behavior(made):
    store, resid = made
    rows = np.arange(store.n) < 30

    found = pair_directions(store, rows=rows)

    assert list(found.names) == ["a", "b"]
    for name, values in zip(found.names, found.values, strict=True):
        mine = rows & (store["behavior"] == name)
        true = (resid["positive"][mine].astype(np.float64) - resid["negative"][mine]).mean(0)
        np.testing.assert_allclose(values, true, rtol=1e-6, atol=1e-6)  # float32 rounding
    assert found.moments.count.tolist() == [10, 10, 20, 20]


def test_a_labels_direction_is_the_difference_of_class_means(made):
    store, resid = made
    rows = np.arange(store.n) >= 5

    found = label_directions(store, rows=rows, labels=("fine", "harmful"))

    kept, label = resid["prompt"].astype(np.float64), store["label"]
    true = kept[rows & (label == "fine")].mean(0) - kept[rows & (label == "harmful")].mean(0)
    np.testing.assert_allclose(found.values[0], true, rtol=1e-6, atol=1e-6)
    assert list(found.names) == ["fine-harmful"]


def test_other_labels_count_for_neither(made):
    store, _ = made
    assert label_codes(store, ("fine", "harmful"))[:3].tolist() == [1, 0, -1]


def test_a_behavior_without_train_rows_is_refused(made):
    store, _ = made
    with pytest.raises(MismatchError, match="Check the labels and the train split"):
        pair_directions(store, rows=store["behavior"] == "a")


def test_two_labels_are_asked_for_where_there_are_three(made):
    store, _ = made
    with pytest.raises(MismatchError, match="--labels POSITIVE,NEGATIVE"):
        two_labels(store)
    with pytest.raises(MismatchError, match="--labels POSITIVE,NEGATIVE"):
        two_labels(store, ["fine", "sauce"])
    assert two_labels(store, ["other", "fine"]) == ("other", "fine")
