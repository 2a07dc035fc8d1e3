"""Archives: smaller, open to any Zarr reader, and the same store again or a refusal."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings

from actcache.errors import ActcacheError, FormatError, MismatchError
from actcache.exchange import export
from actcache.exchange.archive import is_archive, read_archive
from actcache.store.copies.fill import fill_store
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from tests.support.stores import build, example, file_bytes, scratch, shaped, shapes


def unpack(archive, path, **settings):
    return read_archive(archive, partial(fill_store, path, **settings))


@pytest.fixture
def packed(tmp_path):
    """A store, and its archive."""
    source = build(tmp_path / "s.zarr", *example(), certificate={"x": [0.5]})
    export(source, tmp_path / "a.zarr", to="archive")
    return source, tmp_path / "a.zarr"


@settings(max_examples=12)
@given(shape=shapes())
def test_a_store_comes_back_byte_for_byte(shape):
    with scratch() as folder:
        source = build(Path(folder) / "s.zarr", *shaped(**shape), certificate={"x": [1.5]})
        export(source, Path(folder) / "a.zarr", to="archive")
        unpacked = unpack(Path(folder) / "a.zarr", Path(folder) / "t.zarr")
        assert file_bytes(unpacked.path) == file_bytes(source)


def test_zarr_reads_an_archive_by_itself(packed):
    source, archive = packed
    opened = open_store(source)
    group: Any = zarr.open_group(archive, mode="r")

    for name in opened.arrays:
        array = opened.array(name)
        values = array.bits[:] if array.dtype == "bfloat16" else array[:]
        np.testing.assert_array_equal(np.asarray(group[name]), values)
        assert group[name].metadata.dimension_names == ("n", "layer", "d_model")
    assert group["resid_post/fork"].attrs["dtype"] == "bfloat16"
    assert np.asarray(group["id"]).tolist() == opened["id"].tolist()
    assert dict(group.attrs)["provenance"] == opened.provenance


def test_bfloat16_values_in_float32_are_packed_to_half(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [RowArray("resid_post/prompt", 2, 64, "float32")]
    given_, _ = example(n=256, shard_rows=128, arrays=arrays)
    values = rng.normal(size=(256, 2, 64)).astype(np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    source = build(tmp_path / "s.zarr", given_, {"resid_post/prompt": values})
    export(source, tmp_path / "a.zarr", to="archive")

    def size(folder):
        return sum(path.stat().st_size for path in (folder / "resid_post").rglob("c.*"))

    assert size(tmp_path / "a.zarr") < 0.55 * size(source)


def test_an_archive_is_distinguished_from_a_store(packed):
    source, archive = packed
    assert is_archive(archive)
    assert not is_archive(source)
    assert not is_archive(archive / "nothing")
    with pytest.raises(FormatError, match="actcache import"):
        open_store(archive)
    with pytest.raises(FormatError, match="an archive"):
        unpack(source, archive.with_name("t.zarr"))


def shards(archive):
    return sorted(path for path in archive.rglob("c.*") if path.parent.name in ("prompt", "fork"))


def test_damage_is_never_unpacked(packed, tmp_path):
    source, archive = packed
    right = open_store(source).digest
    rng = np.random.default_rng(0)
    for trial in range(40):
        files = sorted(path for path in archive.rglob("*") if path.is_file())
        path = files[trial % len(files)]
        whole = path.read_bytes()
        raw = bytearray(whole)
        if trial % 4 == 3:
            raw = raw[: len(raw) // 2]
        else:
            raw[rng.integers(0, len(raw))] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(raw))
        try:
            digest = unpack(archive, tmp_path / "t.zarr", overwrite=True).digest
        except ActcacheError:
            digest = right
        assert digest == right
        path.write_bytes(whole)


def test_a_missing_shard_is_refused(packed, tmp_path):
    archive = packed[1]
    shards(archive)[0].unlink()

    with pytest.raises(FormatError, match="expected a shard"):
        unpack(archive, tmp_path / "t.zarr")


def test_the_digest_detects_a_shard_of_other_rows(packed, tmp_path):
    archive = packed[1]
    first, second = shards(archive / "resid_post" / "fork")[:2]
    first.write_bytes(second.read_bytes())

    with pytest.raises(MismatchError, match="Export it again"):
        unpack(archive, tmp_path / "t.zarr")
    assert not list(tmp_path.glob("t.zarr*"))


def test_a_shard_through_a_link_is_refused(packed, tmp_path):
    archive = packed[1]
    first = shards(archive)[0]
    first.unlink()
    first.symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match="link"):
        unpack(archive, tmp_path / "t.zarr")


def test_declared_sizes_must_be_backed_by_bytes(packed, tmp_path):
    archive = packed[1]
    for path in archive.rglob("zarr.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["node_type"] == "group" and document["attributes"]:
            document["attributes"] |= {"n": 1 << 40, "shard_rows": 1 << 40}
        elif len(document.get("shape", [])) == 3:
            document["shape"][0] = 1 << 40
            document["chunk_grid"]["configuration"]["chunk_shape"][0] = 1 << 40
            inner = document["codecs"][0]["configuration"]
            inner["chunk_shape"][0] = 1 << 40
        path.write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(FormatError, match="can be packed into"):
        unpack(archive, tmp_path / "t.zarr")
