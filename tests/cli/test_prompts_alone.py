"""Stores of prompts alone and of one label: which commands work, and what analyze answers."""

import json

import numpy as np
import pytest

from actcache.cli.main import main
from actcache.store import open_store
from tests.cli.commands import build, refused


@pytest.fixture(scope="module")
def stores(folder, tmp_path_factory):
    """The labelled prompts: whole, without labels, and each label for itself."""
    w = tmp_path_factory.mktemp("alone")
    rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    parts = {
        "both": rows,
        "prompts": [{"prompt": row["prompt"]} for row in rows],
        "fine": [row for row in rows if row["label"] == "fine"],
        "harmful": [row for row in rows if row["label"] == "harmful"],
    }
    for name, part in parts.items():
        (w / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        words = [
            "build",
            w / f"{name}.jsonl",
            "--model",
            folder / "model",
            "-o",
            w / f"{name}.zarr",
        ]
        assert main([str(word) for word in words]) == 0
    return w


@pytest.mark.model
@pytest.mark.parametrize("name", ["prompts", "fine"])
def test_info_verify_export_and_reading_work(stores, name, tmp_path, capsys):
    path = stores / f"{name}.zarr"

    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.get("labels") == ({"fine": 10} if name == "fine" else None)
    assert facts["positions"] == ["prompt"]
    assert main(["verify", str(path), "--recompute", "2"]) == 0
    assert main(["export", str(path), "--to", "npz", "-o", str(tmp_path / "s.npz")]) == 0
    residuals = open_store(path).residuals("prompt")[:]
    with np.load(tmp_path / "s.npz") as exported:
        np.testing.assert_array_equal(exported["resid_post/prompt"], residuals)
    assert main(["subset", str(path), "-o", str(tmp_path / "t.zarr"), "--rows", "0:3"]) == 0


@pytest.mark.model
def test_analyze_says_what_it_cannot_do_and_what_to_do(stores, tmp_path, capsys):
    for name, remedy in (("prompts", "build again with --reuse"), ("fine", "actcache merge")):
        message = refused(["analyze", stores / f"{name}.zarr", "-o", tmp_path / "out"], capsys)
        assert "there is no direction between them" in message
        assert remedy in message
        assert not (tmp_path / "out").exists()


@pytest.mark.model
def test_a_note_says_that_one_label_is_not_compared(folder, tmp_path, capsys):
    assert build(folder, tmp_path / "s.zarr", "--limit", "1", data="labels") == 0
    assert "actcache merge joins this store with one of another label" in capsys.readouterr().err


@pytest.mark.model
def test_the_advice_in_the_messages_works(stores, folder, tmp_path, capsys):
    merged, again = tmp_path / "merged.zarr", tmp_path / "again.zarr"
    words = ["merge", str(stores / "fine.zarr"), str(stores / "harmful.zarr"), "-o", str(merged)]
    assert main(words) == 0
    words = [
        "build",
        str(stores / "both.jsonl"),
        "--model",
        str(folder / "model"),
        "-o",
        str(again),
    ]
    assert main([*words, "--reuse", str(stores / "prompts.zarr")]) == 0
    assert open_store(again).provenance["reused"]["rows"] == 20
    for store in (merged, again):
        out = store.with_suffix(".out")
        assert main(["analyze", str(store), "-o", str(out), "--draws", "20"]) == 0
        assert (out / "directions.safetensors").exists()
    capsys.readouterr()
