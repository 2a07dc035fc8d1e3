"""Commands on a store in a real bucket, SeaweedFS: the same answers as on its folder."""

import json
from functools import partial

import numpy as np
import pytest

from actcache.analysis.directions.difference_of_means import pair_directions
from actcache.analysis.sweep.open_sweep import open_sweep
from actcache.analysis.sweep.run import run_sweep
from actcache.cli.main import main
from actcache.errors import IncompleteStoreError
from actcache.progress import SILENT
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


SWEEP_ALONE = (*WITHOUT_PREDICTORS, "--multipliers", "-1,0,1", "--controls", "1")


def test_the_sweep_of_analyze_lies_in_a_bucket(built, address, tmp_path, capsys):
    """Swept there, found again by the results, read by report and export; never replaced."""
    place, out = f"{address}-sweep", tmp_path / "out"
    analyze = ["analyze", built, "-o", out, *SWEEP_ALONE]
    summary = printed([*analyze, "--sweep-store", place], capsys)
    assert summary["sweep_store"] == place
    assert not (out / "sweep.zarr").exists()
    alone = printed(["analyze", built, "-o", tmp_path / "alone", *SWEEP_ALONE], capsys)
    assert summary == alone | {"sweep_store": place}
    stored = S3Storage(place)
    objects = {name: stored.read(name) for name in stored.sizes()}
    assert objects == file_bytes(tmp_path / "alone" / "sweep.zarr")

    times = stored.etags()
    assert printed([*analyze, "--draws", "10"], capsys)["sweep_store"] == place
    assert stored.etags() == times
    assert not (out / "sweep.zarr").exists()
    assert printed([*analyze, "--dry-run"], capsys)["rows done"] == 20
    assert f"--sweep-store {place}" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    printed(["report", out], capsys)
    assert f"--sweep-store {place}" in (out / "report.html").read_text()
    printed(["export", out, "--to", "npz", "-o", tmp_path / "a.npz"], capsys)
    with np.load(tmp_path / "a.npz") as arrays:
        swept = open_store(place).array("random/propensity")[:]
        np.testing.assert_array_equal(arrays["random/propensity"], swept)

    other = refused([*analyze, "--multipliers=-2,0,2"], capsys)
    assert f"the settings of '{place}' and of this sweep differ in 'config.multipliers'" in other
    assert "Choose another place with --sweep-store." in other
    again = refused([*analyze, "--sweep-store", place, "--overwrite"], capsys)
    assert f"'{place}' holds a finished store" in again
    assert (out / "summary.json").exists()


def interrupted_after(n_shards):
    """A way to run units that Ctrl-C ends when so many shards are swept."""

    def map_units(function, units):
        for number, result in enumerate(map(function, units)):
            if number == n_shards:
                raise KeyboardInterrupt
            yield result

    return map_units


def test_an_interrupted_sweep_goes_on_in_a_bucket(built, address, tmp_path):
    store, place = open_store(built), f"{address}-interrupted"
    sweep = partial(
        run_sweep,
        store,
        {"d": pair_directions(store, rows=store["split"] == "train")},
        multipliers=(-1.0, 1.0),
        shard_rows=8,
        progress=SILENT,
    )
    sweep(out=tmp_path / "alone.zarr")
    with pytest.raises(KeyboardInterrupt):
        sweep(out=place, map_units=interrupted_after(2))
    with pytest.raises(IncompleteStoreError, match="holds 16 of 20 rows"):
        open_sweep(place)
    sweep(out=place, map_units=interrupted_after(2))  # one is left
    stored = S3Storage(place)
    assert {name: stored.read(name) for name in stored.sizes()} == file_bytes(
        tmp_path / "alone.zarr"
    )


def test_an_address_that_cannot_hold_a_sweep_is_refused_before_the_model_is_loaded(
    built, address, tmp_path, capsys
):
    analyze = ["analyze", built, "-o", tmp_path / "out", *SWEEP_ALONE, "--sweep-store"]
    for place in (address, built):
        assert "holds residuals, expected a sweep" in refused([*analyze, place], capsys)
        assert refused([*analyze, place, "--overwrite"], capsys)
    assert open_store(built).complete
    assert "s3://nosuchbucket/s.zarr" in refused([*analyze, "s3://nosuchbucket/s.zarr"], capsys)
    for name in ("notes.txt", "zarr.json"):
        place = f"{address}-{name}"
        S3Storage(place).write(name, [b"{}"])
        for flags in ([], ["--overwrite"]):
            assert "is not empty, and what was begun there" in refused(
                [*analyze, place, *flags], capsys
            )
        assert S3Storage(place).list() == [name]
    (tmp_path / "file").touch()
    assert "/file' is no folder" in refused([*analyze, tmp_path / "file" / "s.zarr"], capsys)
    assert "--sweep-store is empty" in refused([*analyze, ""], capsys)
    assert not (tmp_path / "out").exists()


def test_commands_that_need_a_folder_refuse_a_bucket_in_one_line(built, address, tmp_path, capsys):
    for argv in (
        ["analyze", address, "-o", f"{address}-results"],
        ["export", built, "--to", "npz", "-o", f"s3:/{BUCKET}/a.npz"],
        ["steer", tmp_path, "-o", f"s3://{BUCKET}/gen", "--behavior", "x"],
    ):
        assert "expected a path on this machine" in refused(argv, capsys)
    message = refused(["analyze", built, "-o", f"s3://{BUCKET}/out"], capsys)
    assert "s3://… for the sweep's store with --sweep-store" in message
    message = refused(["info", f"s3://{BUCKET}/nothing.zarr"], capsys)
    assert f"no store at 's3://{BUCKET}/nothing.zarr'" in message
    assert "expected s3://BUCKET/STORE.zarr" in refused(["verify", "s3://"], capsys)
