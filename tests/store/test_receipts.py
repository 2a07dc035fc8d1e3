"""Shards of several writers, with receipts: the same bytes, whatever dies or races."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.errors import ActcacheError, DamageError, StoreExistsError
from actcache.store.layout import read_layout
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.memory import MemoryStorage
from actcache.store.store import open_store
from actcache.store.verify import verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.receipts import Receipts, write_shard
from actcache.store.writing.writer import Writer
from tests.support.stores import build, example, file_bytes, fill, shaped, shapes


class SharedMemory(MemoryStorage):
    """Memory that is shared like a bucket: it has no locks."""

    @property
    def is_shared(self):
        return True

    def lock(self):
        return lambda: None


def shard_blocks(layout, values, number):
    rows = layout.root.rows_of(number)
    return {name: array[rows.start : rows.stop] for name, array in values.items()}


def work(storage, values, numbers):
    """Write shards as workers do: each opens the store."""
    for number in numbers:
        layout = read_layout(storage)
        Receipts(layout).write(write_shard(layout, number, shard_blocks(layout, values, number)))


def finish(path, contents, *, shared=True):
    """Append the records of all receipts, as a coordinator does, and seal the store."""
    with Writer.resume(path, contents, shared=shared) as writer:
        for number, receipt in sorted(writer.receipts.read().items()):
            if number * writer.shard_rows >= writer.committed:
                writer.accept(receipt)
        writer.finish({"worst": 0.5})


def one_machine(config, values):
    memory = MemoryStorage()
    with Writer.create(memory, StoreContents(**config)) as writer:
        fill(writer, values, certificate={"worst": 0.5})
    return memory.objects


@settings(max_examples=25)
@given(shapes(), st.randoms(use_true_random=False))
def test_workers_in_any_order_give_the_bytes_of_one_writer(plan, random):
    config, values = shaped(**plan)
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as writer:
        n_shards = -(-writer.n // writer.shard_rows)
    order = [*range(n_shards), random.randrange(n_shards)]  # one has a twin
    random.shuffle(order)
    work(storage, values, order)
    finish(storage, contents)
    assert storage.objects == one_machine(config, values)
    assert storage.sibling(".receipts").objects == {}


def test_shards_in_a_folder_give_the_bytes_of_one_writer_and_leave_no_receipts(tmp_path):
    config, values = example()
    plain = build(tmp_path / "plain.zarr", config, values, certificate={"worst": 0.5})
    path, contents = tmp_path / "shared.zarr", StoreContents(**config)
    with Writer.create(path, contents, shared=True):
        work(LocalStorage(tmp_path / "shared.zarr.partial"), values, [2, 0, 1, 0])
    finish(path, contents)
    assert file_bytes(path) == file_bytes(plain)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plain.zarr", "shared.zarr"]


def test_a_folder_is_continued_by_workers_after_one_writer_and_the_other_way(tmp_path):
    config, values = example()
    contents = StoreContents(**config)
    plain = build(tmp_path / "plain.zarr", config, values, certificate={"worst": 0.5})
    for first, second in ((True, False), (False, True)):
        path = tmp_path / f"{first}.zarr"
        with Writer.create(path, contents, shared=first) as writer:
            layout = read_layout(LocalStorage(tmp_path / f"{first}.zarr.partial"))
            writer.commit(shard_blocks(layout, values, 0))
            work(layout.storage, values, [2] if first else [])
        with Writer.resume(path, contents, shared=second) as writer:
            fill(writer, values, certificate={"worst": 0.5})
        assert file_bytes(path) == file_bytes(plain)
        assert not (tmp_path / f"{first}.zarr.partial.receipts").exists()


def test_the_next_coordinator_finds_shards_with_receipts():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents):
        work(storage, values, [0, 2])
    with Writer.resume(storage, contents) as writer:
        assert sorted(writer.receipts.read()) == [0, 2]
        writer.accept(writer.receipts.read()[0])
    with Writer.resume(storage, contents) as writer:
        assert (writer.committed, sorted(writer.receipts.read())) == (4, [0, 2])


def test_a_shard_without_record_or_receipt_is_replaced():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents):
        storage.objects["resid_post/prompt/c.1.0.0"] = b"half of it"
    work(storage, values, range(3))
    finish(storage, contents)
    assert storage.objects == one_machine(config, values)


def test_a_shard_with_a_receipt_is_never_replaced():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents):
        work(storage, values, range(3))
    layout = read_layout(storage)
    other = {name: np.zeros_like(array) for name, array in values.items()}
    receipt = write_shard(layout, 1, shard_blocks(layout, other, 1))
    assert receipt == Receipts(layout).read()[1]
    finish(storage, contents)
    assert storage.objects == one_machine(config, values)


def test_a_receipt_that_does_not_match_is_ignored_and_its_shard_rewritten():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents):
        work(storage, values, range(3))
    receipt = Receipts(read_layout(storage)).read()[0]
    storage.objects["embed/prompt/c.0.0.0"] = bytes(100)
    with Writer.resume(storage, contents) as writer:
        assert sorted(writer.receipts.read()) == [1, 2]
        with pytest.raises(DamageError, match="shard 0 of memory' holds other bytes"):
            writer.accept(receipt)
    work(storage, values, [0])
    finish(storage, contents)
    assert storage.objects == one_machine(config, values)


def test_a_recorded_shard_of_other_bytes_is_refused():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as writer:
        work(storage, values, [0])
        writer.accept(writer.receipts.read()[0])
    name = "embed/prompt/c.0.0.0"
    storage.objects[name] = bytes(len(storage.objects[name]))
    layout = read_layout(storage)
    with pytest.raises(DamageError, match=r"embed/prompt/c\.0\.0\.0' holds other bytes"):
        write_shard(layout, 0, shard_blocks(layout, values, 0))
    with pytest.raises(DamageError, match="shard 0 of memory' holds other bytes"):
        Writer.resume(storage, contents)


def test_a_shard_that_was_replaced_after_its_record_is_not_sealed():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as writer:
        work(storage, values, range(3))
        for receipt in writer.receipts.read().values():
            writer.accept(receipt)
        name = "embed/prompt/c.1.0.0"
        storage.objects[name] = bytes(len(storage.objects[name]))
        with pytest.raises(DamageError, match=r"shard 1 of memory' holds other bytes"):
            writer.finish()
    assert not open_store(storage, partial=True).complete


def test_a_recorded_shard_without_receipt_is_not_replaced_by_other_values():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as writer:
        layout = read_layout(storage)
        writer.commit(shard_blocks(layout, values, 0))
    other = {name: np.zeros_like(array) for name, array in values.items()}
    before = dict(storage.objects)
    receipt = write_shard(layout, 0, shard_blocks(layout, other, 0))
    assert storage.objects == before
    assert Receipts(layout).is_true(receipt)


def test_two_coordinators_write_one_store():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as first:
        work(storage, values, range(3))
        with Writer.resume(storage, contents) as second:
            writers = itertools.cycle([first, second])
            for number, writer in zip([0, 0, 1, 1, 2, 2], writers, strict=False):
                writer.accept(writer.receipts.read()[number])
            first.finish({"worst": 0.5})
            second.finish({"worst": 0.5})
    assert storage.objects == one_machine(config, values)


def test_a_coordinator_with_other_values_is_refused_with_the_reason():
    config, values = example()
    contents, storage = StoreContents(**config), SharedMemory()
    with Writer.create(storage, contents) as first, Writer.resume(storage, contents) as second:
        fill(first, values, certificate={"worst": 0.5})
        work(storage, values, range(3))
        for receipt in second.receipts.read().values():
            second.accept(receipt)
        with pytest.raises(
            StoreExistsError, match=r"commits/c\.4\.0' was written by another build"
        ):
            second.finish({"worst": 0.25})
    assert storage.objects == one_machine(config, values)
    other = StoreContents(**{**config, "config": {"model": "other"}})
    begun = SharedMemory()
    with Writer.create(begun, contents), pytest.raises(ActcacheError, match=r"config\.model"):
        Writer.resume(begun, other)


def test_the_beginning_of_another_store_is_replaced_only_with_overwrite():
    config, values = example()
    storage = SharedMemory()
    storage.objects["zarr.json"] = b"{}"
    contents = StoreContents(**config)
    with pytest.raises(StoreExistsError, match=r"zarr\.json' is of another store.*--overwrite"):
        Writer.resume(storage, contents)
    with Writer.create(storage, contents, overwrite=True) as writer:
        fill(writer, values, certificate={"worst": 0.5})
    assert storage.objects == one_machine(config, values)
    with pytest.raises(StoreExistsError, match="finished store"):
        Writer.create(storage, contents, overwrite=True)


class DyingBucket(SharedMemory):
    """Dies before its change number `left`, or right after it, the answer lost."""

    left = -1
    after = False

    def change(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def write(self, name, parts):
        parts = list(parts)
        if not self.after:
            self.change()
        super().write(name, parts)
        if self.after:
            self.change()

    def put_if_absent(self, name, parts):
        parts = list(parts)
        if not self.after:
            self.change()
        etag = super().put_if_absent(name, parts)
        if self.after:
            self.change()
        return etag

    def sibling(self, suffix):
        return self._siblings.setdefault(suffix, MemoryStorage(suffix))


@pytest.mark.parametrize("after", [False, True])
def test_a_build_in_a_bucket_survives_death_at_every_change(after):
    config, values = example(n=5, shard_rows=2)
    contents = StoreContents(**config)
    whole = one_machine(config, values)
    step, died = 0, True
    while died:
        step, died = step + 1, False
        storage = DyingBucket()
        storage.after, storage.left = after, step
        try:
            with Writer.create(storage, contents) as writer:
                fill(writer, values, certificate={"worst": 0.5})
        except KeyboardInterrupt:
            died = True
        if storage.exists("commits/c.0.0"):
            assert verify(storage, partial=True) == []
        storage.left = -1
        if not died or (after and storage.objects == whole):
            assert open_store(storage).complete
            continue
        with Writer.resume(storage, contents) as writer:
            fill(writer, values, certificate={"worst": 0.5})
        assert storage.objects == whole, step
    assert step > 30
