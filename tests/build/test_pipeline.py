"""The build in one call: data, presets, settings, notes, and what is checked before the model."""

import json
import logging
import shutil

import numpy as np
import pytest

from actcache.build import build_store
from actcache.errors import ActcacheError, RowError, StoreExistsError, StoreNotFoundError
from actcache.store.store import open_store
from tests.support.tiny import lettered_rows, save

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and two files of rows of which one repeats prompts and has a long one."""
    folder = tmp_path_factory.mktemp("pipeline")
    save(folder / "model")
    (folder / "rows").mkdir()
    calm = lettered_rows(12, np.random.default_rng(0))
    bold = [calm[i // 2] for i in range(12)]
    bold[0] = {**calm[0], "prompt": "x" * 500}
    for name, rows in (("calm", calm), ("bold", bold)):
        text = "\n".join(map(json.dumps, rows))
        (folder / "rows" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_glob_a_preset_and_settings_give_a_store(folder, tmp_path):
    notes: list[str] = []
    store = build_store(
        str(folder / "rows" / "*.jsonl"),
        tmp_path / "s.zarr",
        model=str(folder / "model"),
        preset="caa",
        space="one",
        positions=("prompt", "fork"),
        batch_tokens=300,
        note=notes.append,
    )

    assert list(dict.fromkeys(store["behavior"].tolist())) == ["bold", "calm"]
    assert store.n == 23
    assert list(store.positions) == ["prompt", "fork"]
    assert (store.config["preset"], store.config["space"]) == ("caa", "one")
    assert notes[0].startswith("1 row left out, longer than the model's context of 128 tokens")
    assert notes[0].endswith("bold/0 (510 tokens)")
    assert "preset caa: every row in the store meets letter, " in notes[1]
    assert notes[2].startswith("note: 'bold' repeats prompts; a plain shuffle would have put ")


def test_notes_are_logged_as_warnings_by_default(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "actcache"):
        build_store(
            folder / "rows" / "bold.jsonl", tmp_path / "s.zarr", model=str(folder / "model")
        )

    assert "actcache: 1 row left out" in caplog.text
    assert "a plain shuffle would have put" in caplog.text


def test_nothing_is_loaded_where_the_store_cannot_be_written_or_reused(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    (model / "model.safetensors").unlink()  # loading it would fail with another error
    data = folder / "rows" / "calm.jsonl"
    (tmp_path / "s.zarr").mkdir()

    with pytest.raises(StoreExistsError, match="--overwrite"):
        build_store(data, tmp_path / "s.zarr", model=str(model))
    with pytest.raises(StoreNotFoundError):
        build_store(data, tmp_path / "t.zarr", model=str(model), reuse=[tmp_path / "none.zarr"])


def test_a_full_disk_is_noticed_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))

    with pytest.raises(ActcacheError, match="has 100 bytes free"):
        build_store(
            folder / "rows" / "calm.jsonl", tmp_path / "s.zarr", model=str(folder / "model")
        )


def test_a_glob_that_matches_nothing_is_named(folder, tmp_path):
    with pytest.raises(RowError, match=r"no file matches '.*\*\.csv'"):
        build_store(str(folder / "rows" / "*.csv"), tmp_path / "s.zarr", model="m")


def test_settings_that_are_not_given_come_from_the_preset_and_the_rest_from_the_defaults(folder):
    model = str(folder / "model")
    data = str(folder / "rows" / "calm.jsonl")
    with pytest.raises(ActcacheError, match="preset is 'mine'"):
        build_store(data, "s.zarr", model=model, preset="mine")
    with pytest.raises(ActcacheError, match="Did you mean 'batch_tokens'"):
        build_store(data, "s.zarr", model=model, batch_size=3)


def test_the_command_line_builds_the_same_store(folder, tmp_path):
    from actcache.cli.main import main

    data, model = str(folder / "rows" / "calm.jsonl"), str(folder / "model")
    store = build_store(data, tmp_path / "a.zarr", model=model, preset="repepo", limit=6)
    command = ["build", data, "--model", model, "-o", str(tmp_path / "b.zarr"), "--json"]

    assert main([*command, "--preset", "repepo", "--limit", "6"]) == 0
    assert open_store(tmp_path / "b.zarr").digest == store.digest


def test_the_front_of_the_room_loads_torch_late():
    from tests.support.processes import run_code

    code = (
        "import sys; import actcache.build as room, actcache.data, actcache.prompts\n"
        "room.build_store, room.plan_store, room.BuildConfig\n"
        "print('torch' in sys.modules)"
    )
    assert run_code(code).stdout == "False\n"  # that all names are there is tested in test_layout
