"""A store in a real bucket, SeaweedFS, is read as the same store in a folder is."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from actcache.errors import ActcacheError, MismatchError, StoreNotFoundError
from actcache.store.copies.copy import subset
from actcache.store.copies.merge import merge
from actcache.store.copies.selection import Selection
from actcache.store.storage.s3 import S3Storage
from actcache.store.store import Store, open_store
from actcache.store.torch_dataset import ResidualDataset
from actcache.store.verify import verify
from tests.store.test_storage import assert_same_answers
from tests.support.stores import build, example, file_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def address(bucket):
    """An address that no other test uses."""
    return f"{bucket}/a.zarr"


def upload(folder, address):
    S3Storage(address).write_small(file_bytes(folder))
    return address


@pytest.fixture
def both(tmp_path, address):
    """One store, in a folder and in the bucket."""
    config, values = example()
    path = build(tmp_path / "a.zarr", config, values)
    return path, upload(path, address)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_every_answer_equals_that_of_the_folder(both, check, cached, tmp_path, monkeypatch):
    path, address = both
    if cached:
        monkeypatch.setenv("ACTCACHE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # with a cache, the second time from there
        with open_store(path, check=check) as local, open_store(address, check=check) as remote:
            assert_same_answers(local, remote, np.random.default_rng(0))
    assert (tmp_path / "cache").exists() == cached
    assert verify(address) == []


def test_the_address_may_have_lost_a_slash_and_is_written_out_in_messages(both):
    _, address = both
    collapsed = address.replace("s3://", "s3:/") + "/"  # as pathlib has it
    store = open_store(collapsed)
    assert store.path == address
    assert repr(store).startswith(f"Store('{address}', n=11")
    with pytest.raises(MismatchError, match=f"'{address}' has no column 'x'"):
        store["x"]
    with pytest.raises(StoreNotFoundError, match=f"no store at '{address}2'. Build one with"):
        open_store(f"{collapsed[:-1]}2")
    assert verify(collapsed) == []


def test_damage_in_the_bucket_is_found_also_if_the_block_is_cached(both, tmp_path, monkeypatch):
    path, address = both
    monkeypatch.setenv("ACTCACHE_CACHE", str(tmp_path / "cache"))
    whole = open_store(address).array("embed/prompt")[:]
    name = "embed/prompt/c.1.0.0"
    raw = bytearray((path / name).read_bytes())
    raw[5] ^= 1
    S3Storage(address).write(name, [bytes(raw)])
    S3Storage(address).remove("embed/prompt/c.2.0.0")
    problems = sorted(map(str, verify(address)))
    assert len(problems) == 2
    assert f"'{address}/{name}' holds other bytes at layer 0 of rows 4 to 7" in problems[0]
    assert "c.2.0.0' holds nothing" in problems[1]
    S3Storage(address).write_small(file_bytes(path))
    assert verify(address) == []
    np.testing.assert_array_equal(open_store(address).array("embed/prompt")[:], whole)


def test_a_store_that_is_replaced_in_the_bucket_says_so(both, tmp_path):
    _, address = both
    store = open_store(address)
    residuals = store.array("resid_post/prompt")
    before = residuals.layer(1)
    config, values = example(seed=1)
    S3Storage(address).remove("")
    upload(build(tmp_path / "other.zarr", config, values), address)
    for read in (
        lambda: residuals.layer(1),
        lambda: store.array("embed/prompt")[2],
        lambda: store["id"],
        lambda: list(residuals.batches(2)),
    ):
        with pytest.raises(MismatchError, match=r"not the store that was opened.*Open it again"):
            read()
    assert not np.array_equal(open_store(address).array("resid_post/prompt").layer(1), before)


def test_subset_and_merge_read_a_bucket_and_write_one(both, tmp_path):
    path, address = both
    odd = Selection(rows=np.arange(1, 11, 2))
    even = Selection(rows=np.arange(0, 11, 2))
    part = subset(address, f"{address}-odd", selection=odd)
    assert part.path == f"{address}-odd"
    subset(path, tmp_path / "odd.zarr", selection=odd)
    objects = file_bytes(tmp_path / "odd.zarr")
    stored = S3Storage(f"{address}-odd")
    assert {name: stored.read(name) for name in stored.sizes()} == objects
    subset(address, tmp_path / "even.zarr", selection=even)
    merged = merge([tmp_path / "even.zarr", f"{address}-odd"], f"{address}-both").store
    assert sorted(merged["id"].tolist()) == sorted(open_store(path)["id"].tolist())
    assert verify(f"{address}-both") == []
    with pytest.raises(MismatchError, match="would be read and replaced"):
        subset(address, address.replace("s3://", "s3:/"), selection=odd)


def test_a_data_set_reads_a_bucket_also_in_workers(both):
    path, address = both
    data = ResidualDataset(address, position="prompt", check=True)
    expected = torch.from_numpy(open_store(path).array("resid_post/prompt")[:].copy()).float()
    torch.testing.assert_close(data[:], expected, rtol=0, atol=0)
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=0, atol=0)
    forked = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ActcacheError, match="multiprocessing_context='spawn'"):
        next(iter(forked))


def test_a_wide_layer_is_read_in_as_many_requests_as_there_are_shards(address, tmp_path):
    from actcache.store.layout import open_layout
    from actcache.store.schema import RowArray

    config, values = example(
        n=38, shard_rows=4, arrays=[RowArray("resid_post/prompt", 3, 256, "bfloat16")]
    )
    upload(build(tmp_path / "a.zarr", config, values), address)
    asked = []

    class CountingStorage(S3Storage):
        def _ask(self, name, verb, request):
            asked.append((verb, name))
            return super()._ask(name, verb, request)

    store = Store(open_layout(CountingStorage(address)))
    n_objects = len(file_bytes(tmp_path / "a.zarr"))
    assert [verb for verb, _ in asked].count("list") == 1
    assert len(asked) <= n_objects - 10 + 2  # no shard is looked at
    residuals = store.array("resid_post/prompt").bits  # reads a column: the numbers of the layers
    asked.clear()
    np.testing.assert_array_equal(residuals.layer(2), values["resid_post/prompt"][:, 2])
    assert len(asked) == 10 + 1
