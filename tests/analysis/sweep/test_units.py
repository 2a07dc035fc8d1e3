"""A sweep whose shards others compute, in any order: the bytes of one process, begun again too."""

import json

import numpy as np
import pytest

import actcache
from actcache.analysis.sweep.row_directions import shared_directions
from actcache.analysis.sweep.run import run_sweep
from actcache.analysis.sweep.sets import SweepSet
from actcache.errors import ActcacheError, DamageError
from tests.support.stores import file_bytes
from tests.support.tiny import save
from tests.support.units import ShuffledMap

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    rows = [
        {"prompt": "x" * (1 + i % 7) + f"{i}?", "positive": " (A)", "negative": " (B)"}
        for i in range(20)
    ]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return actcache.build_store(
        folder / "d.jsonl", folder / "s.zarr", model=save(folder / "model", "mistral")
    )


@pytest.fixture(scope="module")
def sets(store):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 4, 32)).astype(np.float32)
    alternating = shared_directions(values, np.arange(store.n) % 2)
    some = np.arange(store.n) % 3 > 0  # rows of a shard in two groups
    return {"all": alternating, "some": SweepSet(directions=alternating, rows=some)}


def sweep(store, sets, path, **changes):
    run_sweep(
        store, sets, multipliers=(-1.0, 0.0, 1.0), out=path, shard_rows=3, batch_tokens=300, **changes
    )  # fmt: skip
    return file_bytes(path)


@pytest.fixture(scope="module")
def whole(store, sets, tmp_path_factory):
    return sweep(store, sets, tmp_path_factory.mktemp("whole") / "s.zarr")


class BreakingMap(ShuffledMap):
    """Breaks off before the last units; counts those that ran."""

    def __init__(self, most=0):
        super().__init__()
        self.most, self.n_run = most, 0

    def __call__(self, function, units):
        units = list(units)
        ran = units[: self.most] if len(units) > 1 else units
        self.n_run = len(ran)
        yield from super().__call__(function, ran)
        if len(ran) < len(units):
            raise KeyboardInterrupt


@pytest.mark.parametrize("shared", [False, True])
def test_shards_swept_elsewhere_in_any_order_have_the_bytes_of_one_process(
    store, sets, whole, tmp_path, shared
):
    elsewhere = ShuffledMap()

    assert sweep(store, sets, tmp_path / "s.zarr", map_units=elsewhere, shared=shared) == whole
    assert [len(order) for order in elsewhere.orders] == [1, 7]  # the check, then the shards
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]  # no receipts are left


def test_what_has_a_receipt_is_not_swept_again(store, sets, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(store, sets, tmp_path / "s.zarr", map_units=BreakingMap(3), shared=True)
    receipts = tmp_path / "s.zarr.partial.receipts"
    (receipts / "1.json").unlink()  # as if this one's worker had died
    again = BreakingMap(99)

    assert sweep(store, sets, tmp_path / "s.zarr", map_units=again, shared=True) == whole
    assert again.n_run == 4


@pytest.mark.parametrize("first_shared", [False, True])
def test_a_sweep_is_continued_with_workers_and_without(store, sets, whole, tmp_path, first_shared):
    with pytest.raises(KeyboardInterrupt):
        sweep(store, sets, tmp_path / "s.zarr", map_units=BreakingMap(3), shared=first_shared)

    assert sweep(store, sets, tmp_path / "s.zarr", shared=not first_shared) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_other_bytes_than_those_of_a_receipt_are_refused(store, sets, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(store, sets, tmp_path / "s.zarr", map_units=BreakingMap(3), shared=True)
    shard = tmp_path / "s.zarr.partial" / "all" / "propensity" / "c.0.0.0"
    shard.write_bytes(b"x" * shard.stat().st_size)

    with pytest.raises(DamageError, match=r"shard 0 .*other bytes"):
        sweep(store, sets, tmp_path / "s.zarr", shared=True)


def test_whoever_does_not_see_the_folder_says_so(store, sets, tmp_path):
    def elsewhere(function, units):
        if len(units := list(units)) > 1:
            (tmp_path / "s.zarr.partial").rename(tmp_path / "of another machine")
        return map(function, units)

    with pytest.raises(ActcacheError, match=r"sees no store at .*s\.zarr\.partial.* all machines"):
        sweep(store, sets, tmp_path / "s.zarr", map_units=elsewhere, shared=True)
