"""Directions: the difference of means and its theorems, of a store, units, random ones, angles."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.directions.difference_of_means import (
    cosine,
    difference_of_means,
    directions_of_moments,
    label_codes,
    label_directions,
    label_groups,
    pair_directions,
    random_directions,
    two_labels,
    unit,
)
from actcache.analysis.stats.moments import class_moments
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.reference import stats as reference

POSITIONS = ("prompt", "positive", "negative")
LABELS = np.array([0, 1, 1, 0, 1, 0, 0])


def residuals(seed=0, n=7):
    return np.random.default_rng(seed).normal(size=(n, 3, 8)).astype(np.float32)


def directions(resid, labels=LABELS, **classes):
    moments = class_moments([(resid, labels)], 2)
    return directions_of_moments(moments, **(classes or {"positive": 1, "negative": 0}))


def test_the_difference_of_means_is_what_it_says():
    resid = residuals()
    _, mean, _ = reference.class_moments(resid, LABELS, 2)
    np.testing.assert_allclose(directions(resid), mean[1] - mean[0], rtol=1e-5, atol=1e-6)
    assert directions(resid).dtype == np.float32


def test_a_constant_added_to_all_residuals_changes_nothing():
    resid, constant = residuals(), residuals(1, n=1)
    np.testing.assert_allclose(directions(resid + constant), directions(resid), atol=1e-6)
    # and it bites: added to one class, it is the whole change
    moved = resid + constant * LABELS[:, None, None]
    np.testing.assert_allclose(directions(moved), directions(resid) + constant[0], atol=1e-6)


def test_swapping_the_classes_negates():
    resid = residuals()
    swapped = directions(resid, positive=0, negative=1)
    np.testing.assert_array_equal(swapped, -directions(resid))


def test_the_order_of_rows_changes_nothing():
    resid, order = residuals(), np.random.default_rng(3).permutation(len(LABELS))
    permuted = directions(resid[order], LABELS[order])
    np.testing.assert_allclose(permuted, directions(resid), atol=1e-6)
    # and it bites: with the labels left behind, something changes
    assert np.abs(directions(resid[order]) - directions(resid)).max() > 0.1


def test_class_means_projected_on_it_differ_by_its_squared_norm():
    resid = residuals()
    d = directions(resid)
    projection = np.einsum("nld,ld->nl", resid, d)
    gap = projection[LABELS == 1].mean(0) - projection[LABELS == 0].mean(0)
    np.testing.assert_allclose(gap, (d**2).sum(-1), rtol=1e-5)


def test_for_contrast_pairs_it_is_the_mean_of_the_differences():
    positive, negative = residuals(4), residuals(5)
    pairs = class_moments([(positive - negative, np.zeros(len(positive), int))], 1)
    both = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], len(positive))
    np.testing.assert_allclose(directions(both, labels), pairs.mean[0], atol=1e-6)


@pytest.mark.parametrize(
    ("positive", "negative", "remedy"),
    [(3, 0, "Pass one of them"), (2, 0, "train split"), (1, 1, "Pass two classes")],
)
def test_classes_that_give_no_direction_are_refused(positive, negative, remedy):
    moments = class_moments([(residuals(), LABELS)], 3)
    with pytest.raises(MismatchError, match=remedy):
        directions_of_moments(moments, positive=positive, negative=negative)


def test_a_unit_direction_has_norm_one_and_zero_stays_zero():
    d = residuals()[0]
    d[1] = 0
    scaled = unit(d)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(scaled[0] * np.linalg.norm(d[0]), d[0], rtol=1e-6)
    assert scaled.dtype == np.float32


def test_random_directions_keep_the_norm_and_nothing_else():
    d = np.random.default_rng(0).normal(size=(4, 2000)).astype(np.float32) * [[1], [0], [10], [100]]
    d = d.astype(np.float32)
    drawn = random_directions(d, np.random.default_rng(1), count=30)

    norm = np.linalg.norm(d, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), np.tile(norm, (30, 1)), rtol=1e-5)
    # Cosines of independent directions scatter by 1/sqrt(2000) = 0.022 about 0.
    cosines = [cosine(drawn[:, layer], drawn[:, layer]) for layer in (0, 2, 3)]
    apart = np.array([c[~np.eye(30, dtype=bool)] for c in cosines])
    assert np.abs(apart).max() < 0.15
    assert abs(apart.std() - 2000**-0.5) < 0.003
    again = random_directions(d, np.random.default_rng(1), count=30)
    np.testing.assert_array_equal(again, drawn)


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-9, 9, width=16)),
    arrays(np.float32, (2, 4), elements=st.floats(-9, 9, width=16)),
)
def test_cosines_equal_the_definition(a, b):
    expected = [[reference.cosine(x, y) for y in b] for x in a]
    np.testing.assert_allclose(cosine(a, b), expected, atol=1e-6)


@pytest.fixture
def made(tmp_path):
    """A store of 40 samples in two behaviors and three labels, and its residuals by position."""
    return write(
        tmp_path / "s.zarr", label=[("harmful", "fine", "other")[i % 3] for i in range(40)]
    )


@pytest.fixture
def pairs(tmp_path):
    """The same with splits in place of labels."""
    split = ["test" if i % 4 == 0 else "train" for i in range(40)]
    return write(tmp_path / "pairs.zarr", label=[""] * 40, split=split, variant=["base"] * 40)


def write(path, **columns):
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
            **columns,
        },
        "config": {},
        "provenance": {},
        "shard_rows": 7,
    }
    with Writer.create(path, StoreContents(**settings)) as writer:
        while writer.committed < n:
            rows = writer.next_rows
            writer.commit({f"resid_post/{p}": values[rows] for p, values in resid.items()})
        writer.finish()
    return open_store(path), resid


def test_a_pairs_direction_is_the_mean_difference_of_its_behavior(made):
    store, resid = made
    rows = np.arange(store.n) < 30

    directions = pair_directions(store, rows=rows)

    assert list(directions.names) == ["a", "b"]
    for name, values in zip(directions.names, directions.values, strict=True):
        of_behavior = rows & (store["behavior"] == name)
        positive, negative = (resid[side][of_behavior] for side in ("positive", "negative"))
        true = (positive.astype(np.float64) - negative).mean(0)
        np.testing.assert_allclose(values, true, rtol=1e-6, atol=1e-6)  # float32 rounding
    assert directions.moments.count.tolist() == [10, 10, 20, 20]


def test_a_labels_direction_is_the_difference_of_class_means(made):
    store, resid = made
    rows = np.arange(store.n) >= 5

    directions = label_directions(store, rows=rows, labels=("fine", "harmful"))

    residuals, label = resid["prompt"].astype(np.float64), store["label"]
    true = residuals[rows & (label == "fine")].mean(0) - residuals[
        rows & (label == "harmful")
    ].mean(0)
    np.testing.assert_allclose(directions.values[0], true, rtol=1e-6, atol=1e-6)
    assert list(directions.names) == ["fine-harmful"]


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


def test_a_store_of_pairs_gives_a_direction_for_each_behavior_of_the_rows(pairs):
    store, _ = pairs
    rows = store["split"] == "train"

    both = difference_of_means(store, rows=rows)
    one = difference_of_means(store, rows=rows & (store["behavior"] == "b"))

    assert list(both.names) == ["a", "b"]
    np.testing.assert_array_equal(both.values, pair_directions(store, rows=rows).values)
    assert list(one.names) == ["b"]
    np.testing.assert_array_equal(one["b"], both["b"])
    np.testing.assert_array_equal(difference_of_means(store).values, both.values)
    with pytest.raises(MismatchError, match="directions of b, none of 'a'"):
        one["a"]


def test_a_store_of_labels_gives_one_direction(made):
    store, _ = made
    rows = np.arange(store.n) >= 5

    directions = difference_of_means(store, rows=rows, labels=("fine", "harmful"))

    expected = label_directions(store, rows=rows, labels=("fine", "harmful"))
    np.testing.assert_array_equal(directions["fine-harmful"], expected.values[0])


def test_labelled_behaviors_have_a_direction_each(tmp_path):
    alternating = ["fine" if i // 2 % 2 else "harmful" for i in range(40)]
    store, resid = write(tmp_path / "s.zarr", label=alternating)
    rows = np.arange(store.n) >= 5
    labels = ("fine", "harmful")

    directions = label_directions(store, rows=rows, labels=labels)
    pooled = difference_of_means(store, rows=rows, labels=labels, pooled=True)

    residuals, label = resid["prompt"].astype(np.float64), store["label"]
    assert list(directions.names) == ["a", "b"]
    for name in directions.names:
        of_behavior = rows & (store["behavior"] == name)
        means = [
            residuals[of_behavior & (label == label_name)].mean(0)
            for label_name in ("fine", "harmful")
        ]
        np.testing.assert_allclose(directions[name], means[0] - means[1], rtol=1e-6, atol=1e-6)
    assert list(pooled.names) == ["fine-harmful"]
    assert pooled.moments.count.sum() == directions.moments.count.sum() == 35


def test_behaviors_of_one_label_each_share_a_direction_and_a_mixture_is_refused(tmp_path):
    one_each = ["fine" if i % 3 else "harmful" for i in range(40)]
    store, _ = write(tmp_path / "each.zarr", label=one_each)
    assert list(label_groups(store, ("fine", "harmful"))) == ["fine-harmful"]
    mixed = ["harmful" if i % 6 == 0 else "fine" for i in range(40)]
    store, _ = write(tmp_path / "mixed.zarr", label=mixed)
    with pytest.raises(MismatchError, match=r"'b' has rows of the label 'fine' alone.*--pooled"):
        label_groups(store, ("fine", "harmful"))
    assert list(label_groups(store, ("fine", "harmful"), pooled=True)) == ["fine-harmful"]


def test_a_token_that_was_not_kept_is_named_with_what_keeps_it(made):
    store, _ = made
    with pytest.raises(MismatchError, match=r"expected template_-3\. .*--positions template:3"):
        label_directions(
            store,
            rows=np.ones(store.n, bool),
            labels=("fine", "harmful"),
            position="template_-3",
        )


def test_a_mask_of_no_rows_is_refused(pairs):
    store, _ = pairs
    with pytest.raises(MismatchError, match="choose 0 samples, expected a mask over 40"):
        difference_of_means(store, rows=np.zeros(store.n, bool))
    with pytest.raises(MismatchError, match=r"shape \[3\]"):
        difference_of_means(store, rows=np.ones(3, bool))
