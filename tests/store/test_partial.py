"""A build or sweep that will not fit is refused before it begins; committed rows count as room."""

import os
import shutil
from types import SimpleNamespace

import pytest

from actcache.errors import ActcacheError
from actcache.store.schema import RowArray
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.partial import committed_bytes, require_room
from actcache.store.writing.writer import Writer
from tests.support.stores import commit_next, example, fill


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes the file system has free."""

    def set_free(n_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=n_bytes))

    return set_free


@pytest.fixture
def large():
    """60 rows in 6 shards of 100 kB."""
    return example(n=60, shard_rows=10, arrays=[RowArray("resid_post/prompt", 5, 500, "float32")])


def test_a_store_that_will_not_fit_is_refused_and_leaves_nothing(tmp_path, free, large):
    free(500_000)
    with pytest.raises(ActcacheError, match=r"has 500 kB free, expected 6[\d.]+ kB.*Make room"):
        Writer.create(tmp_path / "a.zarr", StoreContents(**large[0]))
    assert not list(tmp_path.iterdir())


def test_a_store_takes_the_room_that_was_checked_for(tmp_path, free, large):
    settings, values = large
    with Writer.create(tmp_path / "a.zarr", StoreContents(**settings)) as writer:
        fill(writer, values, certificate=None)
    took = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    free(took - 10)  # the seal changes one word of the root document
    with pytest.raises(ActcacheError, match="Make room"):
        Writer.create(tmp_path / "b.zarr", StoreContents(**settings))
    free(took + 10)
    Writer.create(tmp_path / "b.zarr", StoreContents(**settings)).close()


def test_committed_rows_count_when_a_build_is_resumed(tmp_path, free, large):
    settings, values = large
    path = tmp_path / "a.zarr"
    assert committed_bytes(path) == 0
    with Writer.create(path, StoreContents(**settings)) as writer:
        for _ in range(4):
            commit_next(writer, values)
    assert 400_000 < committed_bytes(path) < 401_000

    free(100_000)
    with pytest.raises(ActcacheError, match=r"has 100 kB free, expected 2[\d.]+ kB"):
        Writer.resume(path, StoreContents(**settings))
    free(300_000)
    with Writer.resume(path, StoreContents(**settings)) as writer:
        assert writer.committed == 40


def test_an_interrupted_store_that_is_overwritten_makes_room(tmp_path, free, large):
    settings, values = large
    with Writer.create(tmp_path / "a.zarr", StoreContents(**settings)) as writer:
        for _ in range(4):
            commit_next(writer, values)
    free(300_000)
    with Writer.create(tmp_path / "a.zarr", StoreContents(**settings), overwrite=True) as writer:
        assert writer.committed == 0

    (tmp_path / "a.zarr.partial" / "zarr.json").write_text("damaged")
    assert committed_bytes(tmp_path / "a.zarr") == 0


def test_asks_the_file_system_that_the_path_will_lie_on(tmp_path):
    stat = os.statvfs(tmp_path)
    free_bytes = stat.f_bavail * stat.f_frsize
    require_room(tmp_path / "not" / "there" / "a.zarr", free_bytes // 2)
    with pytest.raises(ActcacheError, match=f"'{tmp_path}'"):
        require_room(tmp_path / "not" / "there" / "a.zarr", free_bytes * 2)


@pytest.mark.model
def test_a_build_and_a_sweep_are_refused_before_the_model_is_loaded(tmp_path, free, capsys):
    import json

    import numpy as np

    from actcache.analysis.sweep.run import run_sweep
    from actcache.cli.main import main
    from actcache.store.store import open_store
    from tests.support.tiny import save

    rows = [{"prompt": f"{i}?", "positive": " (A)", "negative": " (B)"} for i in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model, out = save(tmp_path / "model"), tmp_path / "s.zarr"
    command = ["build", str(tmp_path / "d.jsonl"), "--model", model, "-o", str(out)]
    weights = tmp_path / "model" / "model.safetensors"
    hidden = weights.rename(tmp_path / "elsewhere")
    free(100)
    assert main(command) == 1
    assert "Make room" in capsys.readouterr().err.replace("\n", " ")
    hidden.rename(weights)
    free(10**9)
    assert main(command) == 0

    def never():
        raise AssertionError

    free(100)
    with pytest.raises(ActcacheError, match="Make room"):
        run_sweep(
            open_store(out),
            {"one": np.ones((4, 32), np.float32)},
            multipliers=(0.0, 1.0),
            out=tmp_path / "sweep.zarr",
            model=never,
        )
