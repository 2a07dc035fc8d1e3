"""What changes nothing is said: flags that exclude each other, or that find nothing to act on."""

import pytest

from actcache.cli.main import main


@pytest.mark.model
def test_resuming_nothing_and_overwriting_with_resume_are_said(built, tmp_path, capsys):
    words = ["subset", str(built), "-o", str(tmp_path / "new.zarr"), "--split", "train"]

    assert main([*words, "--resume", "--overwrite"]) == 0

    messages = capsys.readouterr().err
    assert "--overwrite is ignored: --resume keeps what was begun" in messages
    assert "--resume is ignored: nothing was begun at" in messages


@pytest.mark.model
def test_what_the_stages_do_not_use_is_said(built, tmp_path, capsys):
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
