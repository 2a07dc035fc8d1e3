"""Sizes that no bytes back: a hostile file costs under a second and 200 MB, or is read in pieces."""

import json
import os
import struct
import zlib

import google_crc32c
import h5py
import numpy as np
import pytest
from numcodecs import Blosc

from actcache.exchange import export, import_store
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from tests.crash.fuzz_store import honest
from tests.support.forks import run_in_fork
from tests.support.stores import build, example

TERABYTE = 1 << 40


def costs(code, *args):
    """What a refusal says; checks what it took in a process that has imported everything."""
    code = f"""
import resource, sys, time
import actcache.exchange, h5py, zarr
from actcache.cli.main import main
from actcache.errors import ActcacheError
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.partial import committed_bytes
from actcache.store.writing.writer import Writer
from tests.support.stores import example
path = sys.argv[1]
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    {code}
except ActcacheError as error:
    print(error)
took = time.process_time() - start
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert took < 1 and grown < 200, (took, grown)
"""
    output = run_in_fork(code, *args)
    assert output.count("\n") == 1, output
    return output


# --- stores ---------------------------------------------------------------------------------------


def edited(path, change):
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("code", ["open_store(path)[{0!r}]", "print(verify(path)[0])"])
@pytest.mark.parametrize("column", ["prompt", "embedding"])
def test_a_column_without_bytes_behind_it_is_not_read(tmp_path, column, code):
    store = build(tmp_path / "s.zarr", *example())
    file = "prompt/c.0" if column == "prompt" else "embedding/c.0.0"
    width = TERABYTE // 44
    os.truncate(store / file, 44 * width)
    if column == "embedding":

        def widen(document):
            document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = [11, width]

        edited(store / column / "zarr.json", widen)
    honest(store, claimed=[file])
    assert "are on disk" in costs(code.format(column), store)


def test_a_column_that_declares_more_than_its_file_is_refused(tmp_path):
    store = build(tmp_path / "s.zarr", *example())

    def widen(document):
        document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = [11, 1 << 40]

    edited(store / "embedding" / "zarr.json", widen)
    honest(store)
    assert "one that 88 bytes hold" in costs("open_store(path)", store)


READ_PART = (
    "print(open_store(path, partial=True).rows().size)",
    "print(len(verify(path, partial=True)))",
    "Writer.resume(path[:-8], StoreContents(**example()[0]))",
    "main(['info', path])",
)


@pytest.mark.parametrize("read", READ_PART)
@pytest.mark.parametrize("sizes", ["rows", "layers"])
def test_a_part_that_declares_rows_or_layers_without_end_is_refused(tmp_path, sizes, read):
    from actcache.store.writing.contents import StoreContents
    from actcache.store.writing.writer import Writer

    settings, _ = example()
    if sizes == "rows":  # no column knows better
        settings["columns"] = {}
    Writer.create(tmp_path / "s.zarr", StoreContents(**settings)).close()
    part = tmp_path / "s.zarr.partial"

    def enlarge(document):
        attributes = document["attributes"]
        if "kind" in attributes:
            attributes.update({"n": 1 << 47} if sizes == "rows" else {})
        elif len(document.get("shape", [])) == 3:
            at, size = (0, 1 << 47) if sizes == "rows" else (1, (1 << 31) - 1)
            document["shape"][at] = size
            if sizes == "layers":
                document["chunk_grid"]["configuration"]["chunk_shape"][1] = size
        elif document.get("dimension_names") == ["record", "byte"] and sizes == "rows":
            document["shape"][0] = -(-(1 << 47) // 4) + 2

    for path in part.rglob("zarr.json"):
        edited(path, enlarge)
    honest(part)
    if read.startswith("main"):
        read = read.replace("main(", "print('exit', main(") + ")"
    output = costs(read, part)
    if sizes == "layers":
        assert "checksums each" in output or output in ("1\n", "exit 1\n")


# --- archives -------------------------------------------------------------------------------------


def packed_zeros(n_bytes, *, claims=None):
    """A chunk of an archive; `claims` is what its header says it unpacks to."""
    blosc = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
    raw = bytearray(blosc.encode(np.zeros(n_bytes // 4, np.uint32)))
    if claims is not None:
        raw[4:8] = struct.pack("<I", claims)
    return bytes(raw) + struct.pack("<I", google_crc32c.value(bytes(raw)))


def archive_of_zeros(tmp_path, *, n_shards, rows, width, chunk):
    """An archive of one array of one layer whose every shard is one chunk."""
    arrays = [RowArray("resid_post/prompt", 1, 4, "float32")]
    settings, values = example(n=2, shard_rows=2, arrays=arrays)
    settings["columns"] = {}
    export(build(tmp_path / "s.zarr", settings, values), tmp_path / "a.zarr", to="archive")
    archive = tmp_path / "a.zarr"
    edited(
        archive / "zarr.json",
        lambda d: d["attributes"].update(n=n_shards * rows, shard_rows=rows),
    )

    def enlarge(document):
        document["shape"] = [n_shards * rows, 1, width]
        grid = document["chunk_grid"]["configuration"]
        inner = document["codecs"][0]["configuration"]
        grid["chunk_shape"] = inner["chunk_shape"] = [rows, 1, width]

    edited(archive / "resid_post" / "prompt" / "zarr.json", enlarge)
    index = struct.pack("<QQ", 0, len(chunk))
    shard = chunk + index + struct.pack("<I", google_crc32c.value(index))
    for number in range(n_shards):
        (archive / "resid_post" / "prompt" / f"c.{number}.0.0").write_bytes(shard)
    return archive


IMPORT = "actcache.exchange.import_store(path, path + '.store')"


def test_a_small_archive_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    chunk = packed_zeros(32 << 20)
    archive = archive_of_zeros(tmp_path, n_shards=100, rows=1024, width=8192, chunk=chunk)
    assert sum(file.stat().st_size for file in archive.rglob("c.*")) < 450_000
    assert "can be packed into" in costs(IMPORT, archive)


def test_a_shard_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    chunk = packed_zeros(128 << 20)
    archive = archive_of_zeros(tmp_path, n_shards=1, rows=4096, width=8192, chunk=chunk)
    assert "can be packed into" in costs(IMPORT, archive)


def test_a_chunk_that_unpacks_to_more_than_a_block_is_refused(tmp_path):
    chunk = packed_zeros(256 << 20)
    archive = archive_of_zeros(tmp_path, n_shards=1, rows=2, width=4, chunk=chunk)
    assert "a chunk of 268435456 bytes" in costs(IMPORT, archive)


# --- HDF5 -----------------------------------------------------------------------------------------


def deflated_zeros(n_bytes):
    packer, zeros = zlib.compressobj(), bytes(1 << 20)
    parts = [packer.compress(zeros) for _ in range(n_bytes >> 20)]
    return b"".join([*parts, packer.flush()])


def hdf5(path, *, shape, chunk_shape, raw, dtype=np.float32):
    """A file of one array of one chunk, packed as given."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "resid_post/prompt", shape, dtype, chunks=chunk_shape, compression="gzip"
        )
        array.id.write_direct_chunk((0, 0, 0), raw)
    return path


def test_a_chunk_of_half_a_gigabyte_is_refused_before_it_is_unpacked(tmp_path):
    shape = (64, 1, 1 << 21)
    file = hdf5(tmp_path / "a.h5", shape=shape, chunk_shape=shape, raw=deflated_zeros(512 << 20))
    assert file.stat().st_size < 1 << 20
    assert "smaller ones" in costs(IMPORT, file)


def test_a_chunk_that_unpacks_to_more_than_it_declares_is_refused(tmp_path):
    shape = (8, 2, 4)
    file = hdf5(tmp_path / "a.h5", shape=shape, chunk_shape=shape, raw=deflated_zeros(512 << 20))
    assert "packed from more" in costs(IMPORT, file)


def test_rows_without_bytes_behind_them_are_refused(tmp_path):
    shape = (1 << 23, 1, 1)
    file = hdf5(tmp_path / "a.h5", shape=shape, chunk_shape=shape, raw=deflated_zeros(32 << 20))
    assert f"of {1 << 23} rows" in costs(IMPORT, file)


def test_shards_without_bytes_behind_them_are_refused(tmp_path):
    file = tmp_path / "a.h5"
    chunk = deflated_zeros(32 << 20)
    with h5py.File(file, "w") as opened:
        for position in range(8):
            shape = (8, 1, 1 << 20)
            array = opened.create_dataset(
                f"resid_post/{position}", shape, np.float32, chunks=shape, compression="gzip"
            )
            array.id.write_direct_chunk((0, 0, 0), chunk)
    assert "'shards' is of 268435456 bytes" in costs(IMPORT, file)


def test_a_file_with_holes_is_refused(tmp_path):
    export(build(tmp_path / "s.zarr", *example()), tmp_path / "a.h5")
    os.truncate(tmp_path / "a.h5", TERABYTE)
    assert "are on disk" in costs(IMPORT, tmp_path / "a.h5")


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_a_store_whose_values_are_all_alike_comes_back(tmp_path, suffix):
    """A few megabytes that are packed a thousand times smaller are no attack."""
    arrays = [RowArray("resid_post/prompt", 4, 512, "float32")]
    settings, _ = example(n=1024, shard_rows=256, arrays=arrays)
    store = build(
        tmp_path / "s.zarr",
        settings,
        {"resid_post/prompt": np.ones((1024, 4, 512), np.float32)},
    )
    export(store, tmp_path / f"a.{suffix}")
    assert import_store(tmp_path / f"a.{suffix}", tmp_path / "t.zarr").digest == (
        open_store(store).digest
    )
