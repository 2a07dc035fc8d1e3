"""Stores that cannot be mapped: what is read, in how many requests, and the cache of blocks."""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.errors import ActcacheError, DamageError, MismatchError
from actcache.store.layout import open_layout
from actcache.store.storage.block_cache import BlockCache
from actcache.store.storage.memory import MemoryStorage
from actcache.store.store import Store, open_store
from actcache.store.verify import verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.stores import (
    as_json,
    build,
    example,
    file_bytes,
    fill,
    scratch,
    shaped,
    shapes,
)


class CountingStorage(MemoryStorage):
    """Objects that cannot be mapped; counts the requests."""

    def __init__(self, objects, name="s3://bucket/a.zarr"):
        super().__init__(name)
        self.objects = dict(objects)
        self.asked: Counter[str] = Counter()
        self.read_names = []

    def count(self, request, name=""):
        self.asked[request] += 1
        self.read_names.append(name)

    def exists(self, name):
        self.count("exists", name)
        return super().exists(name)

    def size(self, name):
        self.count("size", name)
        return super().size(name)

    def sizes(self, folder=""):
        self.count("list", folder)
        return {name: len(raw) for name, raw in self.objects.items() if name.startswith(folder)}

    def read(self, name, *, n_bytes=None, at_most=None):
        self.count("read", name)
        return super().read(name, n_bytes=n_bytes, at_most=at_most)

    def read_range(self, name, start, stop):
        self.count("range", name)
        return MemoryStorage.read(self, name)[start:stop]

    def reset(self):
        self.asked.clear()
        self.read_names.clear()


def stored_in(storage_of, settings, values):
    """A finished store as objects."""
    memory = MemoryStorage()
    with Writer.create(memory, StoreContents(**settings)) as writer:
        fill(writer, values)
    return storage_of(memory.objects)


@pytest.fixture
def wide():
    """Values of a store of 11 rows in shards of 4, and its objects."""
    config, values = example()
    return stored_in(CountingStorage, config, values), values["resid_post/prompt"]


def opened(storage, *, check=False, cache=None):
    return Store(open_layout(storage), check=check, cache=cache)


@settings(max_examples=8)
@given(shapes(), st.booleans(), st.booleans(), st.data())
def test_everything_read_by_range_equals_the_folder(plan, check, cached, data):
    config, values = shaped(**plan)
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        cache = BlockCache(Path(folder) / "cache", n_bytes=10**6) if cached else None
        remote = opened(CountingStorage(file_bytes(path)), check=check, cache=cache)
        local = open_store(path, check=check)
        assert as_json(remote) == as_json(local)
        n = local.n
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        numbers = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=5)), np.int64)
        size = data.draw(st.integers(1, n + 1))
        for name in local.arrays:
            for ranged, mapped in (
                (remote.array(name), local.array(name)),
                (remote.array(name).stored, local.array(name).stored),
            ):
                last = ranged.shape[1] - 1
                layers = [last, 0, last]
                for rows in (slice(None), slice(1, n - 1), mask, numbers, 0, ...):
                    np.testing.assert_array_equal(ranged[rows], mapped[rows])
                    np.testing.assert_array_equal(ranged[rows, layers], mapped[rows, layers])
                    np.testing.assert_array_equal(ranged[rows, -1], mapped[rows, -1])
                np.testing.assert_array_equal(ranged.layer(last), mapped.layer(last))
                np.testing.assert_array_equal(ranged.layer(0, mask), mapped.layer(0, mask))
                assert ranged.tensor(mask).equal(mapped.tensor(mask))
                for options in ({}, {"rows": size, "select": mask, "layers": last}):
                    batches = zip(ranged.batches(**options), mapped.batches(**options), strict=True)
                    for (rows, block), (same_rows, same_block) in batches:
                        np.testing.assert_array_equal(rows, same_rows)
                        np.testing.assert_array_equal(block, same_block)
                        assert block.dtype == same_block.dtype


def test_opening_lists_once_and_reads_each_record_and_document_once(wide):
    storage, _ = wide
    Store(open_layout(storage))
    n_documents = sum(name.endswith("zarr.json") for name in storage.objects)
    n_records = sum(name.startswith("commits/c.") for name in storage.objects)
    assert storage.asked["list"] == 1
    assert storage.asked["size"] == 0
    assert storage.asked["exists"] == 1  # the document of the group, for the message
    assert storage.asked["read"] + storage.asked["range"] == n_documents + n_records
    assert len(set(storage.read_names)) - 1 == n_documents + n_records  # and the listing's


def test_one_layer_of_all_rows_is_a_range_of_each_shard_and_one_look_at_the_log(wide):
    storage, values = wide
    residuals = opened(storage).array("resid_post/prompt")
    storage.reset()
    np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
    assert storage.asked == {"range": 3, "read": 1}


def test_adjacent_layers_are_read_as_one_range_of_a_shard(wide):
    storage, values = wide
    residuals = opened(storage).array("resid_post/prompt")
    storage.reset()
    np.testing.assert_array_equal(residuals[0:8], values[0:8])
    assert storage.asked == {"range": 2, "read": 1}


@pytest.mark.parametrize(("rows", "n_shards"), [(slice(None), 3), ([1], 1), ([0, 3, 9], 2)])
def test_a_block_is_checked_on_its_first_read_without_another_request(wide, rows, n_shards):
    storage, values = wide
    checked = opened(storage, check=True).array("resid_post/prompt")
    storage.reset()
    for _ in range(2):
        np.testing.assert_array_equal(checked.layer(1, rows), values[rows, 1])
    assert storage.asked["range"] == 2 * n_shards


def damaged(storage, name="resid_post/prompt/c.1.0.0", place=4 * 4 * 2 + 3):
    raw = bytearray(storage.objects[name])
    raw[place] ^= 4
    storage.objects[name] = bytes(raw)


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_block_is_refused_with_its_rows_and_never_cached(wide, tmp_path, cached):
    storage, values = wide
    damaged(storage)  # layer 1 of rows 4 to 7
    cache = BlockCache(tmp_path, n_bytes=10**6) if cached else None
    residuals = opened(storage, check=True, cache=cache).array("resid_post/prompt")
    np.testing.assert_array_equal(residuals.layer(0), values[:, 0])
    for read in (
        lambda: residuals.layer(1),
        lambda: residuals[5, 1],
        lambda: [*residuals.batches()],
    ):
        with pytest.raises(DamageError, match=r"layer 1 of rows 4 to 7.*checksum"):
            read()
    wrong = opened(storage, cache=cache).array("resid_post/prompt").layer(1)  # not checked
    assert not np.array_equal(wrong, values[:, 1])
    blocks = [path.read_bytes() for path in files_in(tmp_path)]
    assert wrong[4:8].tobytes() not in blocks
    assert (wrong[:4].tobytes() in blocks) == cached
    assert [problem.actual for problem in verify(storage)] == [
        "other bytes at layer 1 of rows 4 to 7"
    ]


def test_a_store_that_is_replaced_while_it_is_open_says_so_whatever_is_cached(wide, tmp_path):
    storage, values = wide
    cache = BlockCache(tmp_path, n_bytes=10**6)
    store = opened(storage, cache=cache)
    residuals = store.array("resid_post/prompt")
    np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
    config, others = example(seed=1)
    old, storage.objects = storage.objects, stored_in(CountingStorage, config, others).objects
    for read in (lambda: residuals.layer(1), lambda: residuals[3], lambda: [*residuals.batches()]):
        with pytest.raises(MismatchError, match=r"not the store that was opened.*Open it again"):
            read()
    anew = opened(storage, cache=cache).array("resid_post/prompt").layer(1)
    np.testing.assert_array_equal(anew, others["resid_post/prompt"][:, 1])
    storage.objects = old  # and nothing of the other one was cached as its own
    np.testing.assert_array_equal(
        opened(storage, cache=cache).array("resid_post/prompt")[:], values
    )


class HeldStorage(CountingStorage):
    """Delays the ranges of a shard until the test releases it."""

    def __init__(self, objects):
        super().__init__(objects)
        self.released = [threading.Event() for _ in range(6)]
        self.begun = set()

    def read_range(self, name, start, stop):
        if name.startswith("resid_post/prompt/c."):
            shard = int(name.split(".")[1])
            self.begun.add(shard)
            assert self.released[shard].wait(timeout=300)
        return super().read_range(name, start, stop)


def test_batches_read_two_shards_ahead_and_no_more():
    config, values = example(n=12, shard_rows=2)
    storage = stored_in(HeldStorage, config, values)
    batches = opened(storage).array("resid_post/prompt").batches(1)
    for row, n_begun in ((0, 3), (1, 3), (2, 4)):  # two rows a shard
        storage.released[row // 2].set()
        rows, block = next(batches)
        np.testing.assert_array_equal(block, values["resid_post/prompt"][rows])
        assert rows.tolist() == [row]
        assert wait_until(lambda n=n_begun: len(storage.begun) >= n)
        assert storage.begun == set(range(n_begun))
    for event in storage.released:
        event.set()
    batches.close()
    assert storage.begun == {0, 1, 2, 3}  # what nobody asks for any more is not begun


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_cached_blocks_are_not_requested_again(wide, tmp_path):
    storage, values = wide
    for check in (False, True):
        for n_asked in (3, 0) if not check else (0,):
            cache = BlockCache(tmp_path, n_bytes=10**6)  # as of another process
            residuals = opened(storage, check=check, cache=cache).array("resid_post/prompt")
            storage.reset()
            np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
            assert storage.asked["range"] == n_asked
            assert storage.asked["read"] == 1  # is it still that store?
    storage.reset()
    np.testing.assert_array_equal(residuals[4, 1], values[4, 1])  # a part of it neither
    assert storage.asked["range"] == 0


def test_a_few_rows_are_read_without_the_rest_of_their_block(tmp_path):
    config, values = example(n=16, shard_rows=16)
    storage = stored_in(CountingStorage, config, values)
    cache = BlockCache(tmp_path, n_bytes=10**6)
    residuals = opened(storage, cache=cache).array("resid_post/prompt")
    np.testing.assert_array_equal(residuals[[3, 5]], values["resid_post/prompt"][[3, 5]])
    assert files_in(tmp_path) == []
    residuals[[3, 6], 0]
    assert [path.stat().st_size for path in files_in(tmp_path)] == [16 * 4 * 2]


@pytest.mark.parametrize("how", ["flip", "cut", "longer", "empty", "folder"])
def test_a_damaged_file_of_the_cache_is_fetched_again_and_replaced(wide, tmp_path, how):
    storage, values = wide
    cache = BlockCache(tmp_path, n_bytes=10**6)
    residuals = opened(storage, cache=cache).array("resid_post/prompt")
    residuals.layer(1)
    path = files_in(tmp_path)[1]
    whole = path.read_bytes()
    if how == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        path.write_bytes({"flip": flipped, "cut": whole[1:], "longer": whole + b"x"}.get(how, b""))
    storage.reset()
    np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
    assert storage.asked["range"] == 1
    assert how == "folder" or path.read_bytes() == whole


def test_only_the_least_recently_used_blocks_are_evicted(tmp_path):
    config, values = example(n=64, shard_rows=4)
    storage = stored_in(CountingStorage, config, values)
    (tmp_path / "ab").mkdir()
    for file in (tmp_path / "mine.block", tmp_path / "ab" / "mine.txt"):
        file.write_bytes(b"x" * 5000)
        os.utime(file, (1, 1))
    block = 4 * 4 * 2
    cache = BlockCache(tmp_path, n_bytes=20 * block)
    residuals = opened(storage, cache=cache).array("resid_post/prompt")
    blocks = lambda: [path for path in files_in(tmp_path) if len(path.name) == 70]  # noqa: E731
    residuals[0:4, 0]
    (first,) = blocks()
    for layer in (0, 1, 2):
        for start in range(0, 64, 4):
            rows = slice(start, start + 4)
            np.testing.assert_array_equal(
                residuals[rows, layer], values["resid_post/prompt"][rows, layer]
            )
            storage.reset()
            residuals[0:4, 0]  # always the most recently used
            assert storage.asked["range"] == 0
            assert sum(path.stat().st_size for path in blocks()) <= cache.n_bytes
    assert first in blocks()
    assert len(blocks()) > 10
    assert (tmp_path / "mine.block").exists()
    assert (tmp_path / "ab" / "mine.txt").exists()


def test_processes_that_share_a_cache_stay_near_its_bound(tmp_path):
    config, values = example(n=400, shard_rows=4)
    storage = stored_in(CountingStorage, config, values)
    block = 4 * 4 * 2
    stores = [
        opened(storage, cache=BlockCache(tmp_path, n_bytes=64 * block)).array("resid_post/prompt")
        for _ in range(3)
    ]
    threads = [threading.Thread(target=store.layer, args=(k,)) for k, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n_blocks = len(files_in(tmp_path))
    assert 32 <= n_blocks <= 64 * (1 + 3 / 16)
    np.testing.assert_array_equal(stores[0].layer(2), values["resid_post/prompt"][:, 2])


def test_a_cache_that_cannot_be_written_any_more_does_not_stop_reading(wide, tmp_path, caplog):
    storage, values = wide
    cache = BlockCache(tmp_path / "cache", n_bytes=10**6)
    for name in range(256):
        (tmp_path / "cache" / f"{name:02x}").write_bytes(b"")  # where folders of blocks would be
    residuals = opened(storage, cache=cache).array("resid_post/prompt")
    np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
    np.testing.assert_array_equal(residuals.layer(1), values[:, 1])
    assert caplog.text.count("no longer cached") == 1


def test_the_environment_names_the_cache(tmp_path):
    of = BlockCache.from_environment
    assert of({}) is of({"ACTCACHE_CACHE": "", "ACTCACHE_CACHE_GB": "x"}) is None
    cache = of({"ACTCACHE_CACHE": str(tmp_path / "a" / "b")})
    assert cache is not None
    assert (cache.folder, cache.n_bytes) == (tmp_path / "a" / "b", 20 * 10**9)
    small = of({"ACTCACHE_CACHE": str(tmp_path), "ACTCACHE_CACHE_GB": "0.5"})
    assert small is not None
    assert small.n_bytes == 5 * 10**8
    for wrong in ("x", "0", "-1", "nan", "inf"):
        with pytest.raises(ActcacheError, match=f"_GB is '{wrong}', expected.*For example 20"):
            of({"ACTCACHE_CACHE": str(tmp_path), "ACTCACHE_CACHE_GB": wrong})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ActcacheError, match=r"cannot be used.*Name a folder"):
        of({"ACTCACHE_CACHE": str(tmp_path / "file")})


def test_the_cache_of_the_environment_is_used_for_stores_that_cannot_be_mapped(
    wide, tmp_path, monkeypatch
):
    storage, values = wide
    monkeypatch.setenv("ACTCACHE_CACHE", str(tmp_path / "cache"))
    store = open_store(storage)
    np.testing.assert_array_equal(store.array("resid_post/prompt").layer(1), values[:, 1])
    assert len(files_in(tmp_path / "cache")) == 3
    store.checked().array("resid_post/prompt").layer(0)
    assert len(files_in(tmp_path / "cache")) == 6
    config, values = example()
    path = build(tmp_path / "a.zarr", config, values)
    open_store(path).array("resid_post/prompt").layer(1)
    assert len(files_in(tmp_path / "cache")) == 6
