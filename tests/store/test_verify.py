"""Verification covers every byte and file of a store, and reads nothing outside it."""

import json
import os
import shutil

import numpy as np
import pytest

from actcache.errors import FormatError
from actcache.store.store import open_store
from actcache.store.verify import verify
from tests.support.stores import build, example, file_bytes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


@pytest.fixture
def built(path):
    """A store of 11 rows in shards of 4, and its float16 residuals at the prompt."""
    config, values = example()
    return build(path, config, values), values["resid_post/prompt"]


def small(path):
    """A store of a few hundred bytes of values and every kind of file."""
    config, values = example(n=3, shard_rows=2)
    config["columns"] = {
        name: config["columns"][name] for name in ("id", "label", "prompt_tokens", "layer")
    }
    return build(path, config, values, certificate={"worst": 0.5})


@pytest.mark.long
@pytest.mark.slow
def test_verify_finds_a_flip_of_any_byte(path):
    small(path)
    assert verify(path) == []
    rng = np.random.default_rng(0)
    for name, raw in file_bytes(path).items():
        # Every byte of values and checksums; of documents and records a few dozen.
        is_data = "/c." in name and not name.startswith("commits")
        places = range(len(raw)) if is_data else rng.choice(len(raw), min(len(raw), 25), False)
        for at in places:
            flipped = bytearray(raw)
            flipped[at] ^= 1 << rng.integers(8)
            (path / name).write_bytes(flipped)
            try:
                assert verify(path), f"{name} at {at}"
            except FormatError:
                assert name == "zarr.json"  # a newer format
        (path / name).write_bytes(raw)
    assert verify(path) == []


@pytest.mark.slow
def test_verify_finds_every_file_that_is_missing_short_long_or_a_link(path):
    small(path)
    for name, raw in file_bytes(path).items():
        file = path / name
        outside = path.parent / "outside"
        outside.write_bytes(raw)
        for damage in (
            lambda file=file: None,
            lambda file=file, raw=raw: file.write_bytes(raw[:-1]),
            lambda file=file, raw=raw: file.write_bytes(raw + b"\0"),
            lambda file=file: file.write_bytes(b""),
            lambda file=file, outside=outside: file.symlink_to(outside),
            lambda file=file: os.mkfifo(file),
            lambda file=file: file.mkdir(),
        ):
            file.unlink()
            damage()
            try:
                assert verify(path), name
                with pytest.raises(FormatError):
                    read_all(path)
            except FormatError:
                assert name == "zarr.json"  # no store at all
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            file.write_bytes(raw)
    assert verify(path) == []


def read_all(path):
    store = open_store(path)
    for name in (*store.columns, *store.columns.ragged_names):
        store.columns.ragged(name) if name in store.columns.ragged_names else store[name]
    for name in store.arrays:
        store.array(name)[:]


def test_verify_reports_every_byte_as_it_goes(built):
    seen: list[int] = []
    verify(built[0], on_bytes=seen.append)
    assert sum(seen) == open_store(built[0]).n_bytes
    assert len(seen) == 3 * (3 + 3 + 1)


@pytest.mark.parametrize(
    "name", ["notes.txt", "commits/c.9.0", "embed/prompt/c.9.0.0", "x/zarr.json"]
)
def test_verify_finds_files_that_do_not_belong_to_the_store(built, name):
    file = built[0] / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    assert [problem.actual for problem in verify(built[0])] == ["something that no store has"]


def test_a_folder_that_is_a_link_is_not_followed(built):
    path, _ = built
    for name in ("resid_post/prompt", "resid_post", "commits", "id"):
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")
        with pytest.raises(FormatError, match="something else, expected a folder"):
            open_store(path)
        (path / name).unlink()
        (path.parent / "elsewhere").rename(path / name)
    assert verify(path) == []


def test_a_store_may_itself_be_reached_through_a_link(built):
    path, truth = built
    link = path.parent / "latest.zarr"
    link.symlink_to(path)
    np.testing.assert_array_equal(open_store(link).resid("prompt")[:], truth)


def test_reading_checks_blocks_only_when_asked_to(built):
    path, truth = built
    file = path / "resid_post/prompt/c.1.0.0"
    raw = bytearray(file.read_bytes())
    raw[-60] ^= 1  # in the last layer
    file.write_bytes(raw)
    open_store(path).resid("prompt")[:]
    checked = open_store(path, check=True).resid("prompt")
    np.testing.assert_array_equal(checked[:, :2], truth[:, :2])
    with pytest.raises(FormatError, match="other bytes at layer 2"):
        checked.layer(2)
    with pytest.raises(FormatError, match="other bytes at layer 2"):
        checked[5]


def test_a_file_that_shrinks_after_opening_is_found_before_it_is_mapped(built):
    store = open_store(built[0])
    with (built[0] / "resid_post/prompt/c.1.0.0").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(FormatError, match="holds 10 bytes"):
        store.resid("prompt")[5]


def test_a_whole_shard_of_another_store_is_found(tmp_path):
    config, values = example()
    one = build(tmp_path / "one.zarr", config, values)
    other = build(tmp_path / "other.zarr", *example(seed=1))
    shutil.copy(other / "embed/prompt/c.0.0.0", one / "embed/prompt/c.0.0.0")
    assert [problem.where[-20:] for problem in verify(one)] == ["embed/prompt/c.0.0.0"]
    shutil.copy(other / "commits/c.1.0", one / "commits/c.1.0")
    with pytest.raises(FormatError, match="chains to the record before it"):
        open_store(one)


def test_a_newer_format_asks_for_an_upgrade(built):
    document = json.loads((built[0] / "zarr.json").read_text())
    document["attributes"]["format"] = 2
    (built[0] / "zarr.json").write_text(json.dumps(document))
    for reader in (open_store, verify):
        with pytest.raises(FormatError, match=r"reads 1\. Upgrade actcache"):
            reader(built[0])
