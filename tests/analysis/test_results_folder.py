"""The results folder: what is not ours stays, one analysis at a time, damage is not analyzed."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.analysis.predict.reuse import Artifact, load_or_make
from actcache.analysis.results_folder import FILES
from actcache.cli.main import main
from actcache.errors import ActcacheError, FormatError, StoreExistsError
from actcache.store.storage.atomic import lock_folder
from actcache.store.store import verify
from tests.support import tiny
from tests.support.stores import file_bytes

pytestmark = pytest.mark.model

VECTORS: dict[str, Any] = {"stages": ("vectors",)}
SWEEP: dict[str, Any] = {"stages": ("vectors", "sweep"), "multipliers": (-1.0, 1.0), "draws": 5}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    rows = tiny.lettered_rows(24, np.random.default_rng(0))
    (folder / "tidy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = tiny.save(folder / "model")
    actcache.build_store(folder / "tidy.jsonl", folder / "s.zarr", model=model)
    return folder / "s.zarr"


@pytest.fixture
def store(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "s.zarr"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_are_never_written_into_a_store(store, tmp_path, overwrite):
    link = tmp_path / "link"
    link.symlink_to(store)
    before = file_bytes(store)
    for out in (store, store / "results", store / "embed" / "deep" / "results", link / "results"):
        with pytest.raises(StoreExistsError, match=r"inside the store .* Choose another path"):
            analysis.analyze(store, out, overwrite=overwrite, **VECTORS)
    assert file_bytes(store) == before
    assert verify(store) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", [*FILES, "sweep.zarr", "predictors"])
def test_files_of_others_that_have_our_names_stay(store, tmp_path, name, overwrite):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "notes.txt").write_text("five years of work")
    if "." in name and name != "sweep.zarr":
        (out / name).write_text('{"title": "my own"}')
    else:
        (out / name / "tidy" / "mine").mkdir(parents=True)
        (out / name / "tidy" / "mine" / "fingerprint.json").write_text("[1]")
        (out / name / "thesis.txt").write_text("five years of work")
    before = file_bytes(out)
    with pytest.raises((StoreExistsError, FormatError), match="Choose another folder with -o"):
        analysis.analyze(store, out, overwrite=overwrite, **VECTORS)
    assert file_bytes(out) == before


def test_overwrite_removes_results_and_nothing_else(store, tmp_path, capsys):
    out = tmp_path / "out"
    analysis.analyze(store, out, **SWEEP)
    result_files = set(file_bytes(out))
    users = {
        "notes.txt": b"1",
        "predictors/tidy/notes.txt": b"2",
        "predictors/mine/x/y.safetensors": b"3",
        "more/summary.json": b"4",
    }
    for name, raw in users.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(raw)
    trained = out / "predictors" / "tidy" / "caa-cache" / "top_1.safetensors"
    trained.parent.mkdir(parents=True)
    trained.write_bytes(b"")
    (trained.parent / "fingerprint.json").write_text('{"store": "x"}')
    command = ["analyze", store, "-o", out, "--stages", "vectors", "--overwrite"]
    assert main([str(word) for word in command]) == 0
    capsys.readouterr()
    left = file_bytes(out)
    assert {name: left[name] for name in users} == users
    expected = {"summary.json", "directions.safetensors", "moments.npz"}
    assert expected < result_files
    assert set(left) - set(users) == {
        *expected,
        "report.html",
        "config.toml",
    }  # the command line writes it


def test_overwrite_keeps_a_folder_called_sweep_that_is_none(store, tmp_path):
    out = tmp_path / "out"
    analysis.analyze(store, out, **VECTORS)
    shutil.copytree(store, out / "sweep.zarr")
    before = file_bytes(out)
    with pytest.raises(StoreExistsError, match=r"sweep\.zarr' is not what analyze writes"):
        analysis.analyze(store, out, overwrite=True, **VECTORS)
    assert file_bytes(out) == before


def test_what_is_refused_removes_nothing_with_overwrite(store, tmp_path):
    out = tmp_path / "out"
    analysis.analyze(store, out, **VECTORS)
    before = file_bytes(out)
    with pytest.raises(ActcacheError, match="no stage can run"):
        analysis.analyze(store, out, overwrite=True, stages=("layers",))
    assert file_bytes(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_one_analysis_writes_a_folder_at_a_time(store, tmp_path, overwrite):
    out = tmp_path / "out"
    analysis.analyze(store, out, **VECTORS)
    before = file_bytes(out)
    unlock = lock_folder(out)
    with pytest.raises(ActcacheError, match=r"another analysis is writing to .* Wait for it"):
        analysis.analyze(store, out, overwrite=overwrite, **VECTORS)
    assert file_bytes(out) == before
    unlock()
    analysis.analyze(store, out, overwrite=overwrite, **VECTORS)


def test_an_empty_summary_beside_results_is_replaced_with_overwrite(store, tmp_path):
    out = tmp_path / "out"
    analysis.analyze(store, out, **VECTORS)
    (out / "summary.json").write_bytes(b"")
    with pytest.raises(FormatError, match="--overwrite"):
        analysis.analyze(store, out, **VECTORS)
    assert analysis.analyze(store, out, overwrite=True, **VECTORS).summary.vectors


def test_a_flipped_byte_stops_analyze_and_names_shard_and_rows(store, tmp_path, capsys):
    shard = store / "resid_post" / "positive" / "c.0.0.0"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    shard.write_bytes(raw)
    command = ["analyze", str(store), "-o", str(tmp_path / "out"), "--stages", "vectors"]
    assert main(command) == 1
    message = " ".join(capsys.readouterr().err.split())
    for part in ("c.0.0.0", "other bytes at layer", "of rows 0 to 23", "actcache verify"):
        assert part in message
    with pytest.raises(FormatError, match="other bytes at layer"):  # also of a store that is open
        analysis.analyze(actcache.open_store(store), tmp_path / "out2", **VECTORS)
    assert main([*command, "--no-check"]) == 0


@pytest.mark.usefixtures("no_report")
def test_a_damaged_sweep_is_not_read(store, tmp_path):
    results = analysis.analyze(store, tmp_path / "out", **SWEEP)
    shard = results.path / "sweep.zarr" / "difference_of_means" / "propensity" / "c.0.0.0"
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 0x40
    shard.write_bytes(raw)
    with pytest.raises(FormatError, match="other bytes at layer"):
        _ = analysis.open_results(results.path).sweep.propensity
    with pytest.raises(FormatError, match="other bytes at layer"):
        analysis.analyze(store, tmp_path / "out", **SWEEP)


PLACES = [
    ("out", "holds the results folder"),
    (".", "holds the results folder"),
    ("out/summary.json", "where analyze writes 'summary.json'"),
    ("out/predictors", "where analyze writes 'predictors'"),
    ("out/sweep.zarr/deep.zarr", "where analyze writes 'sweep.zarr'"),
    ("s.zarr/sweep.zarr", "is inside the store"),
    ("folder", "exists and is no store"),
    ("file", "exists and is no store"),
]


@pytest.mark.parametrize(("place", "problem"), PLACES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sweep_lies_nowhere_else_in_the_results_nor_around_them(
    store, tmp_path, monkeypatch, place, problem, overwrite
):
    """Refused first: nothing is written, above all no sweep that the results then overwrite."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = file_bytes(tmp_path)
    with pytest.raises(StoreExistsError, match=f"{problem}.* place|{problem}.* path") as caught:
        analysis.analyze(store, "out", sweep_store=place, overwrite=overwrite, **SWEEP)
    assert "with --sweep-store" in str(caught.value)
    assert file_bytes(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_a_sweep_that_is_named_at_its_usual_place_moves_with_the_results(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    results = analysis.analyze(store, "out", sweep_store="x/../out/sweep.zarr", **SWEEP)
    assert results.summary.sweep_store is None
    (tmp_path / "out").rename(tmp_path / "moved")
    assert analysis.open_results("moved").sweep.n == 24


def test_a_sweep_that_was_moved_is_asked_for(store, tmp_path, capsys):
    out, place = tmp_path / "out", tmp_path / "swept.zarr"
    analysis.analyze(store, out, sweep_store=place, **SWEEP)
    place.rename(tmp_path / "moved.zarr")
    for command in (["report", out], ["export", out, "--to", "npz", "-o", tmp_path / "a.npz"]):
        assert main([str(word) for word in command]) == 1
        message = " ".join(capsys.readouterr().err.split())
        assert f"no sweep at '{place}', where the results in '{out}' say" in message
        assert "--sweep-store PLACE" in message
    assert not (tmp_path / "a.npz").exists()
    results = analysis.analyze(store, out, sweep_store=tmp_path / "moved.zarr", **SWEEP)
    assert results.summary.sweep_store == str(tmp_path / "moved.zarr")


def test_a_run_with_the_settings_of_another_leaves_its_sweep(store, tmp_path):
    """`--config OUT/config.toml -o OTHER --overwrite` removes what is in OTHER alone."""
    out, place = tmp_path / "out", tmp_path / "swept.zarr"
    analyze = ["analyze", str(store), "--draws", "5"]
    stages = ["--stages", "vectors,sweep", "--sweep-store", str(place)]
    assert main([*analyze, "-o", str(out), *stages]) == 0
    before = file_bytes(place)
    other = ["-o", str(tmp_path / "other"), "--config", str(out / "config.toml"), "--overwrite"]
    assert main([*analyze, *other, "--multipliers=-2,0,2"]) == 0
    assert file_bytes(place) == before
    assert analysis.open_results(tmp_path / "other").sweep.multipliers.tolist() == [-2, 0, 2]


@pytest.mark.parametrize("first_record", [False, True])
def test_a_sweep_is_not_begun_where_another_kind_of_store_was(store, tmp_path, first_record):
    partial = tmp_path / "swept.zarr.partial"
    shutil.copytree(store, partial)
    for record in (partial / "commits").glob("c.*"):
        if not (first_record and record.name == "c.0.0"):
            record.unlink()
    before = file_bytes(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(StoreExistsError, match="was begun there is no sweep"):
            analysis.analyze(
                store,
                tmp_path / "out",
                sweep_store=partial.with_suffix(""),
                overwrite=overwrite,
                **SWEEP,
            )
    assert file_bytes(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_what_cannot_be_read_is_trained_again_and_said(tmp_path, caplog, damage):
    from actcache.analysis.predict.predictor_file import read_predictor, write_predictor

    file, made = tmp_path / "x" / "top_1.safetensors", []

    def make(_unit):
        made.append(1)
        return 7

    def save(folder, value):
        facts = {"value": value}
        write_predictor(folder / file.name, {"a": np.zeros(2)}, kind="number", facts=facts)

    def load(folder):
        return read_predictor(
            folder / file.name, kind="number", parse=lambda facts, _arrays: facts["value"]
        )

    def again():
        artifact = Artifact(folder=file.parent, fingerprint={"store": "s"}, unit=None)
        [value] = load_or_make([artifact], load=load, make=make, save=save)
        return value

    assert (again(), again(), len(made)) == (7, 7, 1)
    (file.parent / "notes.txt").write_text("mine")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert again() == 7
    assert len(made) == 2
    [record] = caplog.records
    assert "cannot be read, so it is trained again" in record.message
    assert again() == 7
    assert len(made) == 2
    assert (file.parent / "notes.txt").read_text() == "mine"
