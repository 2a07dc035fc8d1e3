"""`actcache steer`: what is refused before weights are loaded, and that nothing is written then."""

import json
import shutil

import pytest

from actcache.analysis.generation.config import SteerConfig
from actcache.cli.main import main, parse
from actcache.cli.terminal.options import given_settings
from tests.cli.commands import WITHOUT_PREDICTORS, build, refused


@pytest.fixture(scope="session")
def analyzed(built):
    """Results of the pairs, with a sweep and without predictors."""
    out = built.parent / "analyzed"
    command = ["analyze", built, "-o", out, "--draws", "20", *WITHOUT_PREDICTORS]
    assert main([str(word) for word in command]) == 0
    return out


@pytest.fixture
def no_weights(monkeypatch):
    """Fail if weights are loaded."""

    def loaded(*_args, **_settings):
        raise AssertionError("refused too late: the model is being loaded")

    monkeypatch.setattr("actcache.analysis.generation.run.sources.load_model", loaded)


def steer(source, out, *flags):
    return [str(word) for word in ["steer", source, "-o", out, "--max-new", "6", *flags]]


WORDS = {"empty.txt": "", "gap.txt": "I can\n\nI will\n"}


@pytest.mark.model
@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--method", "sauce"], "expected some of caa, l2s"),
        (["--method", "caa,caa"], "each once"),
        (["--behavior", "other"], "Pass one of them with --behavior"),
        (["--layers", "4"], "the model has layers 0 to 3"),
        (["--layers", "one"], "numbers and ranges"),
        (["--layers", "2,2"], "each layer once"),
        (["--strength", ""], "START:STOP:STEP"),
        (["--strength", "1,1"], "each once"),
        (["--strength", "0.5,nan"], "finite numbers"),
        (["--strength", "0:inf:1"], "START:STOP:STEP"),
        (["--strength", "0:1:0.3"], "START:STOP:STEP"),
        (["--strength", "0"], "Pass another --strength"),
        (["--strength", "0:90:30"], "'caa' takes multipliers"),
        (["--method", "ss", "--strength", "-1:1:0.5"], "'ss' takes degrees"),
        (["--strength", "1", "--unit", "degrees"], "'caa' takes multipliers"),
        (["--method", "caa,ss", "--strength", "1"], "methods of several units"),
        (["--unit", "multiplier"], "Pass --strength"),
        (["--window", "3:1"], "START:STOP"),
        (["--max-new", "0"], "expected 1 or more"),
        (["--max-new", "500"], "nothing is cut"),
        (["--temperature", "-1"], "from 0 on"),
        (["--temperature", "nan"], "from 0 on"),
        (["--samples", "2"], "Pass --temperature"),
        (["--limit", "0"], "expected 1 or more"),
        (["--batch-tokens", "0"], "expected 1 or more"),
        (["--budget", "0.5"], "from 1 on"),
        (["--target", "sauce"], "form:REGEX"),
        (["--target", "form:("], "Correct it"),
        (["--target", "words:nowhere.txt"], "a phrase a line"),
        (["--target", "words:empty.txt"], "Write some"),
        (["--target", "words:gap.txt"], "line 2 is empty"),
        (["--phrases", "empty.txt"], "Write some"),
        (["--form", "[A"], "Correct it"),
        (["--target", "judge"], "Pass --judge MODEL"),
        (["--judge", "m"], "Pass --target judge"),
        (["--judge", "m", "--target", "judge"], "OPENAI_API_KEY is not set"),
        (["--judge-prompt", "ask.txt"], "Pass --judge MODEL"),
        (["--prompt", " "], "Pass --prompt TEXT"),
        (["--data", "nowhere.jsonl"], "no file at 'nowhere.jsonl'"),
        (["--end", "two tokens"], "expected one"),
        (["--store", "nowhere.zarr"], "Pass --store"),
        (["--method", "ss"], "--sites"),
        (["--method", "l2s"], "predictors"),
        (["--layers", "predicted"], "predictors"),
        (["--method", "cast"], "two or more behaviors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_are_refused_in_one_line_before_the_model_is_loaded(
    analyzed, tmp_path, monkeypatch, capsys, flags, remedy
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, text in WORDS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    assert remedy in refused(steer(analyzed, "gen", *flags), capsys)
    assert not (tmp_path / "gen").exists()


@pytest.mark.model
@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("nowhere", "actcache analyze"),
        ("nowhere.safetensors", "actcache analyze"),
        ("text.safetensors", "Steering.save"),
        ("folder", "actcache steer"),
    ],
)
def test_an_unusable_source_is_named(tmp_path, capsys, source, remedy):
    (tmp_path / "text.safetensors").write_text("hello", encoding="utf-8")
    (tmp_path / "folder").mkdir()

    command = steer(tmp_path / source, tmp_path / "gen", "--prompt", "Hi")
    assert remedy in refused(command, capsys)
    assert not (tmp_path / "gen").exists()


def test_bad_values_and_missing_flags_are_usage_errors(capsys):
    assert main(["steer", "out", "-o", "gen", "--tokens", "some"]) == 2
    assert main(["steer", "out", "-o", "gen", "--max-new", "many"]) == 2
    assert main(["steer", "out"]) == 2
    capsys.readouterr()


@pytest.mark.model
@pytest.mark.usefixtures("no_weights")
def test_a_model_without_an_end_token_is_named(folder, analyzed, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "model" / name
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "eos_token_id": None}), encoding="utf-8")

    command = steer(analyzed, tmp_path / "gen", "--model", tmp_path / "model")
    assert "--end TOKEN" in refused(command, capsys)
    assert not (tmp_path / "gen").exists()


@pytest.mark.model
def test_a_run_is_written_shown_refused_and_resumed(analyzed, tmp_path, capsys):
    gen = tmp_path / "gen"
    grid = ["--strength", "-1,1", "--limit", "3"]
    command = steer(analyzed, gen, *grid)
    assert main([*command, "--resume"]) == 0
    shown = capsys.readouterr()
    assert "--resume is ignored: nothing was begun at" in shown.err
    assert "Noise: " in shown.out
    assert {path.name for path in gen.iterdir()} >= {
        *("generations.jsonl", "configurations.json", "summary.json", "tables.md", "curve.png"),
        "config.toml",
    }
    again = parse(["steer", "OUT", "-o", "X", "--config", str(gen / "config.toml")])
    assert given_settings(again, SteerConfig) == given_settings(parse(command), SteerConfig)
    lines = (gen / "generations.jsonl").read_text(encoding="utf-8")
    n_rows = 2 + 3  # of validation there are two
    assert lines.count("\n") == n_rows * (2 + 2 * 2)  # unsteered twice; caa and random

    assert "Pass --resume" in refused(steer(analyzed, gen, *grid), capsys)
    message = refused(steer(analyzed, gen, *grid, "--seed", "1", "--resume"), capsys)
    assert "config.seed" in message
    assert "--overwrite" in message
    assert main(steer(analyzed, gen, *grid, "--resume", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["max_new"] == 6
    assert main(["info", str(gen)]) == 0
    assert "Noise: " in capsys.readouterr().out
    assert (gen / "generations.jsonl").read_text(encoding="utf-8") == lines

    (gen / "mine.txt").write_text("notes", encoding="utf-8")
    assert main(steer(analyzed, gen, "--strength", "1", "--limit", "1", "--overwrite")) == 0
    assert (gen / "mine.txt").exists()
    assert (gen / "generations.jsonl").read_text(encoding="utf-8") != lines


@pytest.mark.model
@pytest.mark.usefixtures("no_weights")
def test_a_folder_of_other_files_is_left_alone(analyzed, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    message = refused(steer(analyzed, tmp_path, "--strength", "1"), capsys)
    assert "expected an empty folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.model
def test_a_dry_run_prints_the_cost_and_writes_nothing(analyzed, tmp_path, capsys):
    command = steer(analyzed, tmp_path / "gen", "--strength", "1", "--dry-run", "--json")
    assert main(command) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["configurations"] == 4
    assert facts["texts"] == 4 * facts["rows"]
    assert facts["new tokens at most"] == 6 * facts["texts"]
    assert facts["estimated seconds"] > 0
    assert not (tmp_path / "gen").exists()


@pytest.mark.model
def test_rows_over_the_context_are_named(folder, analyzed, tmp_path, capsys):
    long = {"prompt": "x" * 110, "positive": "(A)", "negative": "(B)", "id": "very-long"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(long), encoding="utf-8")

    command = steer(
        analyzed, tmp_path / "gen", "--data", tmp_path / "rows.jsonl", "--max-new", "40"
    )
    assert "very-long" in refused(command, capsys)


@pytest.mark.model
def test_texts_of_prompts_are_shown_and_nothing_is_chosen(analyzed, tmp_path, capsys):
    command = steer(analyzed, tmp_path / "gen", "--prompt", "Hi", "--strength", "-4,4")
    assert main(command) == 0

    shown = capsys.readouterr().out
    assert "there are no validation rows" in shown
    for row_name in ("unsteered:", "caa λ -4:", "caa λ 4:", "random λ 4:"):
        assert f"prompt/0, {row_name}" in shown
    assert not (tmp_path / "gen" / "steering.safetensors").exists()


@pytest.mark.model
def test_a_front_longer_than_a_prompt_is_named(analyzed, tmp_path, capsys):
    command = steer(analyzed, tmp_path / "gen", "--method", "actadd", "--layers", "1")
    assert "persona" in refused([*command], capsys)
    long = ["--contrast", f"{'a' * 40}|{'b' * 40}"]
    assert "front steers the first" in refused([*command, *long], capsys)
    assert not (tmp_path / "gen").exists()


@pytest.mark.model
def test_labels_and_pairs_without_held_out_rows(folder, tmp_path, capsys):
    store, out = tmp_path / "labels.zarr", tmp_path / "out"
    assert build(folder, store, data="labels") == 0
    assert main(["analyze", str(store), "-o", str(out), "--draws", "20"]) == 0
    capsys.readouterr()

    assert main(steer(out, tmp_path / "gen", "--strength", "1", "--limit", "2")) == 0
    summary = json.loads((tmp_path / "gen" / "summary.json").read_text(encoding="utf-8"))
    assert {method["behavior"] for method in summary["methods"]} == {"fine-harmful"}
