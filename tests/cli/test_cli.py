"""The command line as a user meets it: what is printed where, exit codes, one-line errors."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from actcache.build.config import BuildConfig
from actcache.cli.main import main, parser
from tests.support.tiny import save

WITHOUT = ("--stages", "vectors,layers,sweep")
"""Without predictors: test_predictors has networks small enough to train."""

ROW = {"prompt": "Hi?", "positive": "(A)", "negative": "(B)"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, pairs, and labelled prompts."""
    folder = tmp_path_factory.mktemp("cli")
    save(folder / "model")
    pairs = [
        {
            "prompt": f"Is it {i}?",
            "positive": "(A)" if i % 2 else "(B)",
            "negative": "(B)" if i % 2 else "(A)",
        }
        for i in range(20)
    ]
    labels = [{"prompt": f"Do {i}.", "label": "harmful" if i % 2 else "fine"} for i in range(20)]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(folder):
    """A finished store of the pairs."""
    assert build(folder, folder / "built.zarr") == 0
    return folder / "built.zarr"


def build(folder, out, *more, data="pairs"):
    command = ["build", folder / f"{data}.jsonl", "--model", folder / "model", "-o", out, *more]
    return main([str(word) for word in command])


@pytest.mark.model
def test_build_info_and_analyze_of_pairs(folder, tmp_path, capsys):
    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store) == 0
    assert "pairs" in capsys.readouterr().out
    assert main(["info", str(store), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["layers"], facts["d_model"]) == (20, 4, 32)

    assert main(["analyze", str(store), "-o", str(out), "--draws", "50", *WITHOUT]) == 0

    shown = capsys.readouterr()
    assert "Steerability" in shown.out
    assert "results:" in shown.err
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("directions.safetensors", "moments.npz", "sweep.zarr", "steerability.npz"),
        *("summary.json", "tables.md", "steerability.png", "grid.png"),
    }
    assert main(["info", str(out)]) == 0
    assert "Steerability" in capsys.readouterr().out
    assert main(["info", str(out / "sweep.zarr"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "sweep"


@pytest.mark.model
def test_a_second_analyze_runs_no_model_and_another_setting_is_refused(
    built, tmp_path, capsys, monkeypatch
):
    command = [
        "analyze",
        str(built),
        "-o",
        str(tmp_path / "out"),
        "--draws",
        "50",
        "--json",
        *WITHOUT,
    ]
    assert main(command) == 0
    capsys.readouterr()

    def loaded(*_args, **_settings):
        raise AssertionError("a finished sweep needs no weights")

    with monkeypatch.context() as patched:
        patched.setattr("actcache.engine.model.load_model", loaded)
        assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["sweep"]["layers"] == [0, 1, 2, 3]

    assert main([*command, "--score", "logprob"]) == 1
    message = capsys.readouterr().err
    assert "config.rule.score" in message
    assert main([*command, "--score", "logprob", "--overwrite"]) == 0


@pytest.mark.model
def test_results_of_another_store_are_refused_before_anything_is_replaced(
    built, folder, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["analyze", str(built), "-o", str(out), "--stages", "vectors"]) == 0
    capsys.readouterr()
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    assert build(folder, tmp_path / "few.zarr", "--limit", "10") == 0
    assert build(folder, tmp_path / "labels.zarr", data="labels") == 0
    capsys.readouterr()

    for store in ("few", "labels"):
        command = ["analyze", tmp_path / f"{store}.zarr", "-o", out, "--stages", "vectors"]
        message = refused(command, capsys)
        assert "--overwrite" in message
        assert ("'n': stored 20, found 10" if store == "few" else "data_sha256") in message
        assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    (out / "summary.json").write_text("[1]", encoding="utf-8")
    assert "expected its summary" in refused(
        ["analyze", built, "-o", out, "--stages", "vectors"], capsys
    )
    assert main([str(word) for word in [*command, "--overwrite"]]) == 0


@pytest.mark.model
def test_layers_are_called_by_their_numbers_where_some_are_steered(built, tmp_path, capsys):
    command = ["analyze", built, "-o", tmp_path / "out", "--draws", "50", "--layers", "2", *WITHOUT]
    assert main([str(word) for word in command]) == 0
    sentences = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "fixed layer 2 " in sentences
    assert "fixed layer 0" not in sentences


@pytest.mark.model
def test_stages_that_rows_are_not_fit_for_are_named(built, folder, tmp_path, capsys):
    assert build(folder, tmp_path / "l.zarr", data="labels") == 0
    capsys.readouterr()
    labels = ["analyze", tmp_path / "l.zarr", "-o", tmp_path / "l"]
    message = refused([*labels, "--stages", "sweep,predictors"], capsys)
    assert "have labels, expected pairs" in message
    assert "--stages vectors,layers" in message
    assert not (tmp_path / "l").exists()
    assert main([str(word) for word in [*labels, "--stages", "vectors,sweep"]]) == 0
    assert "left out: sweep" in capsys.readouterr().out
    pairs = ["analyze", built, "-o", tmp_path / "p", "--stages", "layers"]
    assert "have pairs, expected labels" in refused(pairs, capsys)


@pytest.mark.model
def test_a_store_without_test_rows_is_refused_before_the_sweep(built, tmp_path, capsys):
    train = tmp_path / "t.zarr"
    assert main(["subset", str(built), "-o", str(train), "--split", "train"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    for stages in (WITHOUT, ["--stages", "predictors"]):
        message = refused(["analyze", train, "-o", out, *stages], capsys)
        assert "of the split" in message
    assert "the encoder is 'sauce'" in refused(
        ["analyze", built, "-o", out, "--encoders", "sauce"], capsys
    )
    assert not out.exists()


@pytest.mark.model
def test_a_folder_of_results_that_cannot_be_is_one_line(built, tmp_path, capsys):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    message = refused(["analyze", built, "-o", tmp_path / "file"], capsys)
    assert "cannot be written: Not a directory" in message


@pytest.mark.model
def test_analyze_of_labels_gives_directions_and_layers(folder, tmp_path, capsys):
    from safetensors.numpy import load_file

    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store, data="labels") == 0
    assert main(["analyze", str(store), "-o", str(out), "--draws", "50", *WITHOUT]) == 0

    assert "discriminative" in capsys.readouterr().out
    directions = load_file(out / "directions.safetensors")["fine-harmful/difference_of_means"]
    assert directions.shape == (4, 32)
    assert directions.dtype == np.float32
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "sweep.zarr").exists()
    swapped = ["--labels", "harmful,fine", "--draws", "50"]
    assert main(["analyze", str(store), "-o", str(tmp_path / "other"), *swapped]) == 0
    other = load_file(tmp_path / "other" / "directions.safetensors")
    np.testing.assert_array_equal(other["harmful-fine/difference_of_means"], -directions)


@pytest.mark.model
def test_json_is_one_document_on_stdout(folder, tmp_path, capsys):
    assert build(folder, tmp_path / "s.zarr", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20


@pytest.mark.model
def test_a_dry_run_tells_the_cost_and_writes_nothing(folder, tmp_path, capsys):
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


def refused(argv, capsys):
    code = main([str(word) for word in argv])
    message = capsys.readouterr().err
    assert code == 1, message
    assert message.startswith("actcache: ")
    assert message.count("\n") == 1, message
    return message


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--positions", "middle"], "expected prompt, fork, positive, negative"),
        (["--positions", "prompt,prompt"], "each once"),
        (["--sites", "resid_sauce"], "expected resid_post, embed"),
        (["--variants", "base,upside_down"], "sys_pos"),
        (["--variants", "sys_pos"], "persona"),
        (["--batch-tokens", "0"], "Try 2048"),
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
        (["--device", "cuda:77"], "Pass one that is there"),
        (["--template", "nowhere.jinja"], "Jinja file"),
        (["--template", "none", "--system", "Be kind."], "--template FILE"),
    ],
)
def test_build_refuses_model_settings_in_one_line(folder, tmp_path, capsys, flags, remedy):
    command = ["build", folder / "pairs.jsonl", "--model", folder / "model"]
    assert remedy in refused([*command, "-o", tmp_path / "s.zarr", *flags], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_a_model_that_is_not_there_is_one_line(folder, tmp_path, capsys):
    command = ["build", folder / "pairs.jsonl", "-o", tmp_path / "s.zarr", "--model"]
    assert "Pass a folder" in refused([*command, tmp_path / "nothing"], capsys)
    (tmp_path / "empty").mkdir()
    assert "Pass a folder" in refused([*command, tmp_path / "empty"], capsys)


def test_a_bad_row_stops_before_the_model_is_looked_at(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text('{"prompt": ""}\n', encoding="utf-8")
    command = ["build", tmp_path / "d.jsonl", "--model", "no/such", "-o", tmp_path / "s.zarr"]
    assert "d.jsonl" in refused(command, capsys)


def test_info_and_analyze_of_nothing_say_how_to_begin(tmp_path, capsys):
    assert "actcache build" in refused(["info", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["analyze", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["info", tmp_path], capsys)


@pytest.mark.model
@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--stages", "vectors,sauce"], "expected some of vectors, layers, sweep"),
        (["--multipliers", "1:0"], "START:STOP:STEP"),
        (["--multipliers", "0:1:0.3"], "START:STOP:STEP"),
        (["--multipliers", "1,1"], "each once"),
        (["--controls", "-1"], "controls is -1, expected 0 or more"),
        (["--draws", "0"], "draws is 0, expected 1 or more"),
        (["--batch-tokens", "0"], "batch_tokens is 0, expected 1 or more"),
        (["--layers", "one"], "whole numbers"),
        (["--layers", "4"], "0 to 3"),
    ],
)
def test_analyze_refuses_settings_in_one_line(built, tmp_path, capsys, flags, remedy):
    command = ["analyze", built, "-o", tmp_path / "out", *flags]
    assert remedy in refused(command, capsys)


@pytest.mark.model
def test_verify_says_what_it_cannot_check(built, tmp_path, capsys):
    assert "expected a number of rows" in refused(["verify", built, "--recompute", "-3"], capsys)
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    assert "such as sweep.zarr" in refused(["verify", tmp_path], capsys)


def test_usage_errors_exit_with_2(capsys):
    assert main([]) == 2
    assert main(["bake"]) == 2
    assert main(["build"]) == 2
    assert main(["build", "d.jsonl", "--model", "m", "-o", "s", "--space", "two"]) == 2
    capsys.readouterr()


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupted(_args):
        raise KeyboardInterrupt

    commands = {
        "info s.zarr": "nothing was written",
        "subset s.zarr -o t.zarr": "--resume",
        "analyze s.zarr": "the same command goes on",
    }
    for command, left in commands.items():
        words = command.split()
        monkeypatch.setattr(f"actcache.cli.{words[0]}.run", interrupted)
        assert main(words) == 130
        assert left in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"actcache {version('actcache')}\n"


def test_each_field_of_a_build_has_a_flag_with_the_same_default():
    from actcache.cli.build import config_of
    from actcache.conventions import PRESETS

    given = parser().parse_args(["build", "DATA", "--model", "M", "-o", "S"])
    preset = {field for each in PRESETS.values() for field in each.build}

    assert config_of(given) == BuildConfig(model="M")
    for field in fields(BuildConfig):
        flag = getattr(given, field.name)
        if field.name in preset:  # not given, so that a preset can set it
            assert flag is None, field.name
        elif field.name != "model":
            default = field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            assert flag == default, field.name


def test_each_field_of_an_analysis_has_a_flag_with_the_same_default():
    from actcache.analysis.config import AnalyzeConfig
    from actcache.cli.analyze import config_of
    from actcache.conventions import PRESETS

    given = parser().parse_args(["analyze", "S"])
    preset = {"preset", *(field for each in PRESETS.values() for field in each.sweep)}

    assert config_of(given, preset="none") == AnalyzeConfig()
    for field in fields(AnalyzeConfig):
        flag = getattr(given, field.name)
        if field.name in preset:
            assert flag is None, field.name
        else:
            default = field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            assert flag == default, field.name


def test_the_checkout_holds_no_machines_paths():
    root = Path(__file__).parents[2]
    for folder in ("actcache", "analysis", "cli", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            assert "/home/" not in path.read_text(encoding="utf-8"), path


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
