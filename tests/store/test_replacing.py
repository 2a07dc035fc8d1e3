"""Replacing a store: only what this run put aside is removed; unfinished ones open only if asked."""

import hashlib
import shutil
from pathlib import Path

import pytest

from actcache.errors import IncompleteStoreError, StoreExistsError
from actcache.store.contents import StoreContents
from actcache.store.store import open_store, verify
from actcache.store.writer import Writer
from tests.support.stores import build, commit_next, example, file_bytes, fill

OLD, NEW = example(), example(n=7, seed=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


def replace(path):
    with Writer.create(path, StoreContents(**NEW[0]), overwrite=True) as writer:
        fill(writer, NEW[1])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["folder", "file", "store"])
def test_what_is_called_replaced_is_left_alone(path, overwrite, what):
    users = path.with_name("a.zarr.replaced")
    if what == "folder":
        users.mkdir()
        (users / "thesis.txt").write_text("five years of work")
    elif what == "file":
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
