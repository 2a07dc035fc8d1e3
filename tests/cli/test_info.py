"""`actcache info`."""

import json

import pytest

from actcache.cli.main import main
from tests.cli.commands import WITHOUT_PREDICTORS, refused


def test_info_and_analyze_of_nothing_say_how_to_start(tmp_path, capsys):
    assert "actcache build" in refused(["info", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["analyze", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["info", tmp_path], capsys)


@pytest.mark.model
def test_the_certificate_of_a_sweep_is_a_sentence_and_in_json_numbers(built, tmp_path, capsys):
    assert main(["analyze", str(built), "-o", str(tmp_path), *WITHOUT_PREDICTORS]) == 0
    info = ["info", str(tmp_path / "sweep.zarr")]
    capsys.readouterr()
    assert main(info) == 0
    assert "cells against full passes differ by " in capsys.readouterr().out
    assert main([*info, "--json"]) == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    assert certificate.keys() == {"naive_error", "noise_floor"}
