"""`actcache analyze`: what is reused, what is refused, and what is left in the results folder."""

import json

import numpy as np
import pytest

from actcache.analysis.directions.planes import find_plane
from actcache.cli.main import main
from actcache.errors import MismatchError
from actcache.store.store import open_store
from tests.cli.commands import WITHOUT_PREDICTORS, build, refused


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
        *WITHOUT_PREDICTORS,
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
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert build(folder, tmp_path / "few.zarr", "--limit", "10") == 0
    assert build(folder, tmp_path / "labels.zarr", data="labels") == 0
    capsys.readouterr()

    for store in ("few", "labels"):
        command = ["analyze", tmp_path / f"{store}.zarr", "-o", out, "--stages", "vectors"]
        message = refused(command, capsys)
        assert "--overwrite" in message
        assert ("'n': stored 20, found 10" if store == "few" else "data_sha256") in message
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "summary.json").write_text("[1]", encoding="utf-8")
    assert "expected its summary" in refused(
        ["analyze", built, "-o", out, "--stages", "vectors"], capsys
    )
    assert main([str(word) for word in [*command, "--overwrite"]]) == 0


@pytest.mark.model
def test_steered_layers_keep_their_numbers(built, tmp_path):
    command = [
        "analyze",
        built,
        "-o",
        tmp_path / "out",
        "--draws",
        "50",
        "--layers",
        "2",
        *WITHOUT_PREDICTORS,
    ]
    assert main([str(word) for word in command]) == 0
    sentences = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "fixed layer 2 " in sentences
    assert "fixed layer 0" not in sentences


@pytest.mark.model
def test_stages_that_the_rows_do_not_allow_are_named(built, folder, tmp_path, capsys):
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
@pytest.mark.parametrize(("data", "name"), [("pairs", "pairs"), ("labels", "fine-harmful")])
def test_norm_outputs_give_planes(folder, data, name, tmp_path, capsys):
    from safetensors.numpy import load_file

    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store, "--sites", "resid_post,ln1,ln2", data=data) == 0
    assert main(["analyze", str(store), "-o", str(out), "--stages", "layers", "--json"]) == 0

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["planes"]) == [name]
    assert summary["planes"][name]["sites"] == ["ln1", "ln2"] * 4
    assert summary["left_out"] == []
    plane = load_file(out / "planes.safetensors")[f"{name}/plane"]
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-6)
    with open_store(store) as opened:
        rows = (opened["split"] == "train") & (opened["variant"] == "base")
        labels = None if data == "pairs" else ("fine", "harmful")
        expected = find_plane(opened, rows=rows, labels=labels)
    np.testing.assert_array_equal(plane, expected.basis.astype(np.float32))
    np.testing.assert_array_equal(summary["planes"][name]["class_mean"], expected.scores.class_mean)
    tables = (out / "tables.md").read_text(encoding="utf-8")
    assert "| norm output |" in tables
    assert f"| {name} |" in tables
    capsys.readouterr()


@pytest.mark.model
def test_a_plane_that_cannot_be_found_leaves_the_other_stages(
    folder, tmp_path, capsys, monkeypatch
):
    def parallel(*_args, **_settings):
        raise MismatchError("the differences are all parallel")

    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store, "--sites", "resid_post,ln1", data="labels") == 0
    monkeypatch.setattr("actcache.analysis.layers.find_plane", parallel)

    assert main(["analyze", str(store), "-o", str(out)]) == 0

    assert "left out: layers: the differences are all parallel" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["layers"]) == ["fine-harmful"]
    assert "planes" not in summary
    assert not (out / "planes.safetensors").exists()


@pytest.mark.model
def test_a_store_without_test_rows_is_refused_before_the_sweep(built, tmp_path, capsys):
    train = tmp_path / "t.zarr"
    assert main(["subset", str(built), "-o", str(train), "--split", "train"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    for stages in (WITHOUT_PREDICTORS, ["--stages", "predictors"]):
        message = refused(["analyze", train, "-o", out, *stages], capsys)
        assert "of the split" in message
    assert "the encoder is 'sauce'" in refused(
        ["analyze", built, "-o", out, "--encoders", "sauce"], capsys
    )
    assert not out.exists()


@pytest.mark.model
def test_a_results_folder_that_cannot_be_written_is_refused_in_one_line(built, tmp_path, capsys):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    message = refused(["analyze", built, "-o", tmp_path / "file"], capsys)
    assert "cannot be written: Not a directory" in message


@pytest.mark.model
def test_analyze_of_labels_gives_directions_and_layers(folder, tmp_path, capsys):
    from safetensors.numpy import load_file

    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store, data="labels") == 0
    assert main(["analyze", str(store), "-o", str(out), "--draws", "50", *WITHOUT_PREDICTORS]) == 0

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
@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--stages", "vectors,sauce"], "expected some of vectors, layers, concepts"),
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
