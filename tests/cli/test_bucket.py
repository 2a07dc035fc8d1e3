"""Commands on a store in a real bucket, SeaweedFS: the same answers as on its folder."""

import json

import numpy as np
import pytest

from actcache.cli.main import main
from actcache.store.storage.s3 import S3Storage
from actcache.store.store import open_store
from tests.cli.commands import WITHOUT_PREDICTORS, build, refused
from tests.support.seaweedfs import BUCKET
from tests.support.stores import file_bytes

pytestmark = [pytest.mark.slow, pytest.mark.model]


@pytest.fixture(scope="module")
def address(seaweedfs, built):
    """The finished store of the pairs, in the bucket; the AWS variables lead there."""
    address = f"s3://{BUCKET}/commands/rows.zarr"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweedfs.environment.items():
            patch.setenv(name, value)
        S3Storage(address).write_small(file_bytes(built))
        yield address


def printed(argv, capsys):
    capsys.readouterr()
    assert main([str(word) for word in [*argv, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_and_verify_say_the_same_of_a_bucket(built, address, capsys):
    facts = printed(["info", address], capsys)
    assert facts["path"] == address
    assert facts == printed(["info", built], capsys) | {"path": address}

    facts = printed(["verify", address, "--recompute", "2"], capsys)
    assert facts["path"] == address
    assert facts["problems"] == []
    assert facts["rows run again"] == 2


def test_verify_names_the_object_that_is_damaged(built, address, capsys):
    name = next(n for n in file_bytes(built) if n.endswith("fork/c.0.0.0"))
    whole = (built / name).read_bytes()
    S3Storage(address).write(name, [bytes([whole[0] ^ 1]), whole[1:]])
    try:
        assert f"'{address}/{name}' holds other bytes" in refused(["verify", address], capsys)
    finally:
        S3Storage(address).write(name, [whole])


def test_analyze_reads_a_bucket_and_writes_the_same_results(
    built, address, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    short = (*WITHOUT_PREDICTORS, "--multipliers", "-1,0,1")
    printed(["analyze", address, *short], capsys)
    printed(["analyze", built, "-o", tmp_path / "local", *short], capsys)
    remote, local = file_bytes(tmp_path / "rows-results"), file_bytes(tmp_path / "local")
    assert remote.keys() == local.keys()
    same = [name for name in remote if name.endswith((".safetensors", ".npz")) or "/c." in name]
    assert len(same) > 5
    assert [name for name in same if remote[name] != local[name]] == []
    assert json.loads(remote["summary.json"])["store"]["path"] == address
    assert f"actcache analyze {address}" in remote["report.html"].decode()


def test_export_subset_and_merge_read_a_bucket_and_the_last_two_write_one(
    built, address, tmp_path, capsys
):
    for suffix in ("npz", "h5"):
        printed(["export", address, "--to", {"h5": "hdf5"}.get(suffix, suffix), "-o", tmp_path / f"a.{suffix}"], capsys)  # fmt: skip
    with np.load(tmp_path / "a.npz") as arrays:
        stored = open_store(built).array("resid_post/fork")[:]
        np.testing.assert_array_equal(arrays["resid_post/fork"], stored)
    printed(["import", tmp_path / "a.h5", "-o", f"{address}-again"], capsys)
    assert open_store(f"{address}-again").digest == open_store(built).digest

    printed(["subset", address, "-o", f"{address}-a", "--rows", "0:8"], capsys)
    printed(["subset", address, "-o", tmp_path / "b.zarr", "--rows", "8:20"], capsys)
    facts = printed(["merge", f"{address}-a", tmp_path / "b.zarr", "-o", f"{address}-ab"], capsys)
    assert facts["path"] == f"{address}-ab"
    assert printed(["verify", f"{address}-ab"], capsys)["problems"] == []
    assert "holds a finished store" in refused(
        ["subset", address, "-o", f"{address}-a", "--rows", "0:8", "--overwrite"], capsys
    ) + refused(["subset", address, "-o", f"{address}-a", "--rows", "0:8", "--resume"], capsys)


def test_build_takes_rows_from_a_bucket_and_writes_one(built, folder, address, capsys):
    target = f"{address}-built"
    assert build(folder, target) == 0
    assert "it records them" in capsys.readouterr().err
    stored = S3Storage(target)
    assert {name: stored.read(name) for name in stored.sizes()} == file_bytes(built)
    assert "not empty" in refused(
        ["build", folder / "pairs.jsonl", "--model", folder / "model", "-o", target], capsys
    )
    assert build(folder, f"{target}-2", "--reuse", address) == 0
    facts = printed(["info", f"{target}-2"], capsys)
    assert open_store(f"{target}-2").provenance["reused"]["rows"] == facts["rows"] == 20


def test_what_needs_a_folder_refuses_a_bucket_in_one_line(built, address, tmp_path, capsys):
    for argv in (
        ["analyze", address, "-o", f"{address}-results"],
        ["export", built, "--to", "npz", "-o", f"s3:/{BUCKET}/a.npz"],
        ["steer", tmp_path, "-o", f"s3://{BUCKET}/gen", "--behavior", "x"],
    ):
        assert "expected a path on this machine" in refused(argv, capsys)
    message = refused(["info", f"s3://{BUCKET}/nothing.zarr"], capsys)
    assert f"no store at 's3://{BUCKET}/nothing.zarr'" in message
    assert "expected s3://BUCKET/STORE.zarr" in refused(["verify", "s3://"], capsys)
