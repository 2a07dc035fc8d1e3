"""Replacing a store: a run removes only what it replaced; unfinished stores open if asked."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from actcache.errors import IncompleteStoreError, MismatchError, StoreExistsError
from actcache.store.storage.local import LocalStorage
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.processes import run_code
from tests.support.stores import build, commit_next, example, file_bytes, fill, scratch

OLD, NEW = example(), example(n=7, seed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


def replace(path):
    with Writer.create(path, StoreContents(**NEW[0]), overwrite=True) as writer:
        fill(writer, NEW[1])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "store"])
def test_a_users_file_called_replaced_is_left_alone(path, overwrite, kind):
    users = path.with_name("a.zarr.replaced")
    if kind == "folder":
        users.mkdir()
        (users / "thesis.txt").write_text("five years of work")
    elif kind == "file":
        users.write_text("five years of work")
    else:
        build(users, *OLD)
    before = users.read_bytes() if users.is_file() else file_bytes(users)
    if overwrite:
        build(path, *OLD)
        replace(path)
    else:
        build(path, *NEW)
    assert (users.read_bytes() if users.is_file() else file_bytes(users)) == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.zarr", "a.zarr.replaced"]
    assert verify(path) == []


def test_a_link_to_a_store_is_replaced_and_not_what_it_leads_to(path):
    elsewhere = build(path.with_name("elsewhere.zarr"), *OLD)
    before = file_bytes(elsewhere)
    path.symlink_to(elsewhere)
    replace(path)
    assert open_store(path).n == 7
    assert not path.is_symlink()
    assert file_bytes(elsewhere) == before


def test_the_next_writer_removes_what_an_interrupted_replacement_left(path):
    build(path, *NEW)
    left = build(path.with_name("old"), *OLD)
    digest = hashlib.sha256((path / "commits/c.0.0").read_bytes()).hexdigest()
    left.rename(path.with_name(f"a.zarr.{digest[:16]}.replaced"))
    with pytest.raises(StoreExistsError, match="--overwrite"):
        Writer.resume(path, StoreContents(**NEW[0]))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.zarr"]
    assert verify(path) == []


def test_resuming_over_a_finished_store_writes_nothing(path):
    build(path, *OLD)
    Path(f"{path}.partial").mkdir()
    with pytest.raises(StoreExistsError, match="--overwrite"):
        Writer.resume(path, StoreContents(**NEW[0]))
    assert not list(Path(f"{path}.partial").iterdir())


@pytest.mark.parametrize("finished", [True, False])
def test_nothing_is_written_inside_a_store(path, finished):
    settings, values = OLD
    if finished:
        store = build(path, settings, values)
    else:
        Writer.create(path, StoreContents(**settings)).close()
        store = Path(f"{path}.partial")
    before = file_bytes(store)
    for inside in (store / "b.zarr", store / "embed" / "deep" / "b.zarr"):
        with pytest.raises(StoreExistsError, match=r"inside the store .* Choose another path"):
            Writer.create(inside, StoreContents(**settings))
    link = path.with_name("link")
    link.symlink_to(store)
    with pytest.raises(StoreExistsError, match="inside the store"):
        Writer.create(link / "b.zarr", StoreContents(**settings))
    assert file_bytes(store) == before


def test_an_interrupted_store_that_was_renamed_or_copied_opens_only_if_asked(path):
    with Writer.create(path, StoreContents(**OLD[0])) as writer:
        commit_next(writer, OLD[1])
    for name in ("b.zarr", "c.zarr.partial", "d"):
        copy = path.with_name(name)
        shutil.copytree(f"{path}.partial", copy)
        for read in (open_store, verify):
            with pytest.raises(IncompleteStoreError, match="4 of 11 rows"):
                read(copy)
        assert open_store(copy, partial=True).n == 4
        assert verify(copy, partial=True) == []


READERS = {
    "rows": lambda store: store.array("resid_post/fork").bits[8:],
    "numbers": lambda store: store.array("resid_post/fork").bits[np.array([9, 8, 10])],
    "batches": lambda store: [x for _, x in store.array("embed/prompt").batches()][-1],
    "tensor": lambda store: store.array("embed/prompt").tensor(slice(8, 10)),
    "column": lambda store: store["prompt"],
    "ragged": lambda store: store.ragged("prompt_tokens").flat,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("same_shapes", [True, False])
def test_an_open_store_that_was_replaced_says_so_and_gives_no_row_of_another(
    path, reader, same_shapes
):
    store = open_store(build(path, *OLD))
    array = store.array("resid_post/prompt")
    before = array[:4].copy()  # its first shard is mapped
    settings, values = example(seed=1) if same_shapes else NEW
    with Writer.create(path, StoreContents(**settings), overwrite=True) as writer:
        fill(writer, values)
    with pytest.raises(
        MismatchError, match=r"replaced, moved or removed meanwhile\. Open it again"
    ):
        READERS[reader](store)
    np.testing.assert_array_equal(array[:4], before)


def test_an_open_store_that_an_equal_one_replaced_stays_readable(path):
    store = open_store(build(path, *OLD))
    with Writer.create(path, StoreContents(**OLD[0]), overwrite=True) as writer:
        fill(writer, OLD[1])
    np.testing.assert_array_equal(store.array("embed/prompt")[:], OLD[1]["embed/prompt"])


def test_an_open_store_that_was_moved_or_removed_says_so(path):
    for away in (lambda: path.rename(f"{path}2"), lambda: shutil.rmtree(path)):
        store = open_store(build(path, *OLD))
        away()
        with pytest.raises(MismatchError, match="Open it again"):
            store.array("embed/prompt")[:]


def test_an_open_partial_store_stays_readable_when_it_is_finished(path):
    with Writer.create(path, StoreContents(**OLD[0])) as writer:
        commit_next(writer, OLD[1])
        part = open_store(path, partial=True)
        fill(writer, OLD[1])
    for reader in ("embed/prompt", "resid_post/prompt"):
        np.testing.assert_array_equal(part.array(reader)[:], OLD[1][reader][:4])
    assert part["id"].tolist() == [f"row-{i}" for i in range(4)]


@pytest.mark.parametrize("read", [open_store, verify])
def test_a_reader_at_the_instant_of_finishing_looks_again(read, monkeypatch):
    """The store gets its name before each read of the reader, in turn."""
    with scratch() as folder:
        _finish_at_each_read(Path(folder) / "a.zarr", read, monkeypatch)


def _finish_at_each_read(path, read, monkeypatch):
    reads = 0
    for instant in range(100):
        shutil.rmtree(path, ignore_errors=True)
        with Writer.create(path, StoreContents(**OLD[0])) as writer:
            while writer.committed < writer.n:
                commit_next(writer, OLD[1])
            reads = 0

            def counted(call, now=instant, writer=writer):
                def read_and_count(*args, **kwargs):
                    nonlocal reads
                    reads += 1
                    if reads == now + 1:
                        writer.finish()
                    return call(*args, **kwargs)

                return read_and_count

            with monkeypatch.context() as patch:
                for name in ("exists", "size", "_open"):
                    patch.setattr(LocalStorage, name, counted(getattr(LocalStorage, name)))
                left = read(path, partial=True)
        assert left == [] if read is verify else left.n == 11
        if reads <= instant:  # it was over before
            break
    assert instant > 20


def test_a_process_that_may_open_few_files_reads_many_shards(path):
    build(path, *example(n=60, shard_rows=1))
    code = """
        import resource, sys
        from actcache.store.store import open_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        store = open_store(sys.argv[1], check=True)
        assert store.array("resid_post/prompt")[:].shape == (60, 3, 4)
    """
    run_code(code, path)
