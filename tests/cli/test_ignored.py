"""Flags and keys without effect are reported."""

import json

import pytest

from actcache.cli.main import main
from tests.cli.commands import build


@pytest.mark.model
def test_resume_without_a_store_and_overwrite_with_resume_are_reported(built, tmp_path, capsys):
    words = ["subset", str(built), "-o", str(tmp_path / "new.zarr"), "--split", "train"]

    assert main([*words, "--resume", "--overwrite"]) == 0

    messages = capsys.readouterr().err
    assert "--overwrite is ignored: --resume keeps what was begun" in messages
    assert "--resume is ignored: nothing was begun at" in messages


@pytest.mark.model
def test_settings_that_no_stage_uses_are_reported(built, tmp_path, capsys):
    words = ["analyze", str(built), "-o", str(tmp_path / "out"), "--stages", "vectors"]

    assert main([*words, "--model", "elsewhere", "--normalize"]) == 0

    shown = capsys.readouterr()
    assert "--model is ignored: no stage runs the model" in shown.err
    assert "left out: the setting normalize: the rows have pairs" in shown.out


@pytest.mark.model
def test_a_template_that_loops_stops_the_build(folder, tmp_path, capsys, monkeypatch):
    from actcache.prompts import render, templates

    monkeypatch.setattr(render, "shared_process", lambda: templates.TemplateProcess(seconds=0.5))
    loop = tmp_path / "loop.jinja"
    loop.write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    words = ["build", str(folder / "pairs.jsonl"), "--model", str(folder / "model")]

    assert main([*words, "-o", str(tmp_path / "s.zarr"), "--template", str(loop)]) == 1

    message = capsys.readouterr().err
    assert "does not end within 0.5 s" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "s.zarr.partial").exists()


@pytest.mark.model
def test_splits_and_keys_a_build_ignores_are_reported_before_the_model_is_loaded(
    folder, tmp_path, capsys
):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    data = datasets.Dataset.from_list([row | {"sytem": "x", "digest": "y"} for row in rows])
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "mood")
    words = ["build", str(tmp_path / "mood"), "--model", str(folder / "model"), "--dry-run"]

    assert main([*words, "-o", str(tmp_path / "s.zarr"), "--revision", "main"]) == 0

    notes = capsys.readouterr().err
    assert "the split 'train' is read, test is ignored; --split reads another" in notes
    assert "If 'system' was meant: --map system=sytem" in notes
    assert "the key 'digest' of the rows is ignored" in notes
    assert "--revision main is ignored" in notes
    assert "warning" not in notes.lower()
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.model
def test_a_split_of_files_and_an_answer_are_reported_as_ignored(folder, tmp_path, capsys):
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
    (folder / "talk.jsonl").write_text(json.dumps({"messages": turns}))

    assert build(folder, tmp_path / "s.zarr", "--split", "test", data="talk") == 0

    notes = capsys.readouterr().err
    assert "--split test is ignored: no data has splits to choose from" in notes
    assert "in 1 row the answer that ends 'messages' is ignored" in notes
