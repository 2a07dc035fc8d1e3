"""Moments of a store: a fold of groups of shards, the same bits wherever the groups are computed."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from actcache.analysis.directions.difference_of_means import label_directions, pair_directions
from actcache.analysis.directions.letter import letter_directions
from actcache.analysis.directions.shard_groups import BATCH_ROWS, GROUP_SHARDS, store_moments
from actcache.analysis.stats.moments import Moments, class_moments, merge_moments
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.reference import stats as reference
from tests.support.stores import fill, scratch
from tests.support.units import ShuffledMap

POSITIONS = ("positive", "negative")


def write(path, *, n, shard_rows, layers=3, width=5, dtype="float32", positions=POSITIONS):
    """A store of rows whose mean drifts, so that no two groups are alike; and its residuals."""
    rng = np.random.default_rng(0)
    drift = np.linspace(0, 30, n)[:, None, None]
    resid = {
        f"resid_post/{p}": (drift + rng.normal(size=(n, layers, width))).astype(dtype)
        for p in positions
    }
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=[RowArray(name, layers, width, dtype) for name in resid],
        columns={
            "id": [str(i) for i in range(n)],
            "behavior": ["b" if i * 3 > n else "a" for i in range(n)],  # `b` begins in a group
            "label": ["yes" if i % 2 else "no" for i in range(n)],
            "letter": ["A" if i % 3 else "B" for i in range(n)],
        },
        config={},
        provenance={},
        shard_rows=shard_rows,
    )
    with Writer.create(path, contents) as writer:
        fill(writer, resid)
    return open_store(path), {p: resid[f"resid_post/{p}"] for p in positions}


@pytest.fixture(scope="module", params=["float32", "float16"])
def made(request):
    """A store of 3 groups, the last one short: 140 shards of 2 rows."""
    with scratch() as folder:
        yield write(Path(folder) / "s.zarr", n=280, shard_rows=2, dtype=request.param)


@pytest.fixture(scope="module")
def computed(made):
    """The moments of its classes."""
    store, _ = made
    return store_moments(store, classes_of(store), 4)


def classes_of(store):
    """Two behaviors at either position; every seventh row does not count."""
    code = np.where(np.arange(store.n) % 7 == 0, -1, 2 * (store["behavior"] == "b"))
    return {p: np.where(code < 0, -1, code + side) for side, p in enumerate(POSITIONS)}


def same_bits(a: Moments, b: Moments):
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("count", "mean", "scatter")
    )


def test_equals_the_definition(made, computed):
    store, resid = made
    classes = classes_of(store)
    both = [
        reference.store_moments(resid[p], classes[p], 4, group_rows=2 * GROUP_SHARDS)
        for p in POSITIONS
    ]

    count, mean, scatter = (sum(terms) for terms in zip(*both, strict=True))  # disjoint classes
    np.testing.assert_array_equal(computed.count, count)
    np.testing.assert_allclose(computed.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(computed.scatter, scatter, rtol=1e-5)


def test_equals_numpy_over_all_rows(made, computed):
    store, resid = made
    classes = classes_of(store)

    for k in range(4):
        p = POSITIONS[k % 2]
        wide = resid[p][classes[p] == k].astype(np.float64)
        np.testing.assert_allclose(computed.mean[k], wide.mean(0), rtol=1e-6)
        np.testing.assert_allclose(computed.variance[k], wide.var(0, ddof=1), rtol=1e-5)


def test_has_the_bits_of_fresh_groups_merged_in_order(made, computed):
    store, resid = made
    classes = classes_of(store)
    size, parts = GROUP_SHARDS * store.shard_rows, []
    for start in range(0, store.n, size):
        shards = range(start, min(start + size, store.n), store.shard_rows)
        batches = [
            (resid[p][s : s + store.shard_rows], classes[p][s : s + store.shard_rows])
            for p in POSITIONS
            for s in shards
        ]
        parts.append(class_moments(batches, 4))
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)

    assert len(parts) == 3
    assert same_bits(computed, merged)
    backwards = merge_moments([(np.arange(4), part) for part in parts[::-1]], 4)
    assert not same_bits(backwards, merged)  # so the order is a part of the definition


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_computed_elsewhere_in_any_order_give_the_same_bits(made, computed, seed):
    store, _ = made
    classes, elsewhere = classes_of(store), ShuffledMap(seed)

    assert same_bits(computed, store_moments(store, classes, 4, map_units=elsewhere))
    assert [sorted(order) for order in elsewhere.orders] == [[0, 1, 2]]


def test_directions_of_pairs_labels_and_letters_run_their_groups_through_the_map(made):
    store, _ = made
    rows, elsewhere = np.arange(store.n) % 5 > 0, ShuffledMap()
    kinds = [
        lambda **how: pair_directions(store, rows=rows, **how).values,
        lambda **how: (
            label_directions(
                store, rows=rows, labels=("yes", "no"), position="negative", **how
            ).values
        ),
        lambda **how: letter_directions(store, rows=rows, **how),
    ]
    for directions in kinds:
        np.testing.assert_array_equal(directions(), directions(map_units=elsewhere))
    assert [len(order) for order in elsewhere.orders] == [3, 3, 3]


def test_only_groups_with_rows_that_count_are_read(made):
    store, _ = made
    elsewhere = ShuffledMap()
    rows = np.arange(store.n) // (2 * GROUP_SHARDS) == 1
    moments = store_moments(store, {"positive": np.where(rows, 0, -1)}, 2, map_units=elsewhere)

    assert elsewhere.orders == [[0]]
    assert moments.count.tolist() == [2 * GROUP_SHARDS, 0]
    assert not moments.mean[1].any()
    assert not moments.scatter[1].any()


def test_a_store_of_one_group_has_the_bits_of_one_pass(tmp_path):
    store, resid = write(tmp_path / "s.zarr", n=3 * BATCH_ROWS, shard_rows=2 * BATCH_ROWS)
    labels = np.arange(store.n) % 2
    batches = [
        (resid["positive"][start : start + BATCH_ROWS], labels[start : start + BATCH_ROWS])
        for start in range(0, store.n, BATCH_ROWS)
    ]

    assert same_bits(store_moments(store, {"positive": labels}, 2), class_moments(batches, 2))


@pytest.mark.slow
def test_memory_holds_one_group_beside_the_sum_however_many_there_are():
    peaks = []
    for n_groups in (3, 4):  # with two groups every shard stays mapped
        n = n_groups * GROUP_SHARDS
        with scratch() as folder:
            wide = {"layers": 4, "width": 2000, "positions": ("positive",)}
            store, _ = write(Path(folder) / "s.zarr", n=n, shard_rows=1, **wide)
            classes = {"positive": np.zeros(n, np.int64)}
            store_moments(store, classes, 1)  # what is imported or opened once
            tracemalloc.start()
            store_moments(store, classes, 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    moments = 2 * 4 * 2000 * 8  # bytes of mean and scatter

    assert peaks[1] - peaks[0] < 0.5 * moments
    assert peaks[1] < 5 * moments


def test_no_rows_and_no_parts_are_refused(made):
    store, _ = made
    with pytest.raises(MismatchError, match="Choose rows of the store"):
        store_moments(store, {"positive": np.full(store.n, -1)}, 1)
    with pytest.raises(MismatchError, match="Pass samples"):
        merge_moments([], 2)


def test_the_numbers_that_decide_bits_are_these():
    """They decide bits of finished results: a change is one that users must be told of."""
    assert (GROUP_SHARDS, BATCH_ROWS) == (64, 256)
