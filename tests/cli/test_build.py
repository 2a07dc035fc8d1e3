"""`actcache build`: what is printed where, and errors of one line."""

import json

import pytest

from actcache.cli.main import main
from tests.cli.commands import build, refused

ROW = {"prompt": "Hi?", "positive": "(A)", "negative": "(B)"}


@pytest.mark.model
def test_json_is_one_document_on_stdout(folder, tmp_path, capsys):
    assert build(folder, tmp_path / "s.zarr", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20


@pytest.mark.model
def test_a_dry_run_prints_the_cost_and_writes_nothing(folder, tmp_path, capsys):
    assert build(folder, tmp_path / "s.zarr", "--dry-run", "--json") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 20
    assert facts["bytes on disk"] == 20 * 4 * 4 * 32 * 4  # rows, positions, layers, width, float32
    assert facts["tokens"] > 20 * 10
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_rows_over_the_context_are_named_on_stderr(folder, tmp_path, capsys):
    rows = [ROW, {**ROW, "id": "much-too-long", "prompt": "x" * 500}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data, store = str(tmp_path / "d.jsonl"), str(tmp_path / "s.zarr")

    assert main(["build", data, "--model", str(folder / "model"), "-o", store]) == 0

    assert "much-too-long (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--positions", "middle"], "expected prompt, fork, positive, negative"),
        (["--positions", "prompt,prompt"], "each once"),
        (["--sites", "resid_sauce"], "expected some of resid_post, embed"),
        (["--variants", "base,upside_down"], "sys_pos"),
        (["--variants", "sys_pos"], "persona"),
        (["--batch-tokens", "0"], "Try --batch-tokens 2048"),
        (["--store-dtype", "int8"], "expected auto, float32, float16, bfloat16"),
        (["--limit", "0"], "limit"),
        (["--reuse", "nowhere.zarr", "--dry-run"], "nowhere.zarr"),
    ],
)
def test_build_refuses_settings_in_one_line(folder, tmp_path, capsys, flags, remedy):
    command = ["build", folder / "pairs.jsonl", "--model", folder / "model"]
    assert remedy in refused([*command, "-o", tmp_path / "s.zarr", *flags], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.model
@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--dtype", "int4"], "expected auto, float32"),
        (["--device", "cuda:77"], "Pass one that this machine has"),
        (["--template", "nowhere.jinja"], "Jinja file"),
        (["--template", "none", "--system", "Be kind."], "--template FILE"),
    ],
)
def test_build_refuses_model_settings_in_one_line(folder, tmp_path, capsys, flags, remedy):
    command = ["build", folder / "pairs.jsonl", "--model", folder / "model"]
    assert remedy in refused([*command, "-o", tmp_path / "s.zarr", *flags], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_a_missing_model_is_refused_in_one_line(folder, tmp_path, capsys):
    command = ["build", folder / "pairs.jsonl", "-o", tmp_path / "s.zarr", "--model"]
    assert "Pass a folder" in refused([*command, tmp_path / "nothing"], capsys)
    (tmp_path / "empty").mkdir()
    assert "Pass a folder" in refused([*command, tmp_path / "empty"], capsys)


def test_a_bad_row_stops_the_build_before_the_model_is_loaded(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text('{"prompt": ""}\n', encoding="utf-8")
    command = ["build", tmp_path / "d.jsonl", "--model", "no/such", "-o", tmp_path / "s.zarr"]
    assert "d.jsonl" in refused(command, capsys)
