"""`actcache verify`."""

import json

import pytest

from actcache.cli.main import main
from tests.cli.commands import build, refused
from tests.support.tiny import save


@pytest.mark.model
def test_verify_passes_a_good_store_and_runs_rows_again(built, capsys):
    assert main(["verify", str(built), "--recompute", "3", "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert facts["rows run again"] == 3
    assert facts["largest relative error"] < 1e-5


@pytest.mark.model
def test_verify_names_what_is_damaged_and_exits_with_1(folder, tmp_path, capsys):
    build(folder, tmp_path / "s.zarr")
    shard = next((tmp_path / "s.zarr" / "resid_post" / "fork").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()

    message = refused(["verify", tmp_path / "s.zarr"], capsys)
    assert "fork" in message
    assert "Build it again" in message


@pytest.mark.model
def test_verify_refuses_other_weights(built, folder, tmp_path, capsys):
    save(tmp_path / "other", "gpt2")
    command = ["verify", built, "--recompute", "1", "--model", tmp_path / "other"]
    assert "family" in refused(command, capsys)


@pytest.mark.model
def test_verify_says_what_it_cannot_check(built, tmp_path, capsys):
    assert "expected a number of rows" in refused(["verify", built, "--recompute", "-3"], capsys)
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    assert "/sweep.zarr', or the store" in refused(["verify", tmp_path], capsys)
