"""Does the comparison of outputs report one flipped number, in each file that holds numbers?"""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from actcache.store.schema import RowArray
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.compare_outputs import main


def write_store(path, values, *, model="/old/model"):
    with Writer.create(
        path,
        StoreContents(
            kind="residuals",
            n=len(values),
            arrays=[RowArray("resid_post/prompt", 2, 4, "float32")],
            columns={"id": [f"row {i}" for i in range(len(values))]},
            config={"model": model, "seed": 0},
            provenance={"model": {"name": model}, "versions": {"torch": "1"}},
        ),
    ) as writer:
        writer.commit({"resid_post/prompt": values})
        writer.finish()


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)


@pytest.fixture
def folders(tmp_path, values):
    """Two equal OUT folders; the new one calls two things by other names."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, top in ((old, "W2S Top-1"), (new, "w2s_top1")):
        folder.mkdir()
        save_file({"tidy/difference_of_means": values[0]}, folder / "directions.safetensors")
        slope = np.arange(6.0)
        np.savez(folder / "steerability.npz", slope=slope, id=np.array(list("abcdef")))
        np.savez(folder / "predictors.npz", **{f"caa/{top}/layer": np.arange(6)})  # type: ignore[arg-type]  # mypy takes it for allow_pickle
        write_store(folder / "sweep.zarr", values)
        kind = "worth" if top == "W2S Top-1" else "strategies"
        summary = {"sweep": {"mean": [0.25, 0.5]}, kind: {top: {"gain": 0.125}}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return old, new


def compare(old, new, capsys, *flags):
    """The exit status and what was printed."""
    status = main([str(old), str(new), *flags])
    return status, capsys.readouterr().out


def test_equal_outputs_are_equal_under_new_names(folders, capsys):
    status, printed = compare(*folders, capsys)

    assert status == 0, printed
    assert "predictors.npz/caa/W2S Top-1/layer → predictors.npz/caa/w2s_top1/layer" in printed
    assert "1 found under the same last name" in printed  # gain


@pytest.mark.parametrize(
    ("file", "name", "position", "change"),
    [
        ("steerability.npz", "slope", 3, 1e-4),
        ("steerability.npz", "id", 2, None),
        ("predictors.npz", "caa/w2s_top1/layer", 5, 1),
    ],
)
def test_a_flipped_number_in_an_npz_is_reported(file, name, position, change, folders, capsys):
    with np.load(folders[1] / file) as document:
        arrays = dict(document)
    arrays[name][position] = "z" if change is None else arrays[name][position] + change
    np.savez(folders[1] / file, **arrays)

    status, printed = compare(*folders, capsys)

    assert status == 1
    assert f"DIFFERS  {file}/" in printed
    assert f"the first at [{position}]" in printed


def test_a_flipped_number_in_directions_and_sweep_is_reported(folders, values, capsys):
    changed = values.copy()
    changed[0, 1, 2] += 0.001
    save_file({"tidy/difference_of_means": changed[0]}, folders[1] / "directions.safetensors")
    shutil.rmtree(folders[1] / "sweep.zarr")
    write_store(folders[1] / "sweep.zarr", changed)

    status, printed = compare(*folders, capsys)

    assert status == 1
    assert "directions.safetensors/tidy/difference_of_means: 1 of 8 values differ" in printed
    assert "sweep.zarr/resid_post/prompt: 1 of 48 values differ" in printed


@pytest.mark.parametrize("place", ["sweep", "strategies"])
def test_a_flipped_number_of_the_summary_is_reported(place, folders, capsys):
    path = folders[1] / "summary.json"
    summary = json.loads(path.read_text())
    if place == "sweep":
        summary["sweep"]["mean"][1] = 0.5001
    else:
        summary["strategies"]["w2s_top1"]["gain"] = 0.1251
    path.write_text(json.dumps(summary))

    status, printed = compare(*folders, capsys)

    assert status == 1
    assert "DIFFERS  summary.json, " in printed


def test_another_order_of_summation_is_within_the_tolerance(folders, values, capsys):
    nudged = np.nextafter(values[0], np.float32(np.inf))
    save_file({"tidy/difference_of_means": nudged}, folders[1] / "directions.safetensors")

    status, printed = compare(*folders, capsys)

    assert status == 0
    assert "| directions.safetensors | 1 | 0 | " in printed
    assert compare(*folders, capsys, "--tolerance", "1e-12")[0] == 1


def test_a_missing_array_is_reported(folders, capsys):
    np.savez(folders[1] / "steerability.npz", id=np.array(list("abcdef")))

    assert "steerability.npz/slope is missing" in compare(*folders, capsys)[1]


def test_stores_may_differ_in_paths_and_versions_alone(tmp_path, values, capsys):
    write_store(tmp_path / "old.zarr", values)
    write_store(tmp_path / "new.zarr", values, model="/new/model")
    write_store(tmp_path / "flipped.zarr", values + (np.arange(4) == 3).astype(np.float32))

    status, printed = compare(tmp_path / "old.zarr", tmp_path / "new.zarr", capsys, "--store")
    assert status == 0, printed
    assert '| zarr.json | attributes.config.model | "/old/model" | "/new/model" |' in printed

    status, printed = compare(tmp_path / "old.zarr", tmp_path / "flipped.zarr", capsys, "--store")
    assert status == 1
    assert "DIFFERS  resid_post/prompt/c.0.0.0: " in printed


def test_a_store_whose_settings_or_log_changed_is_reported(tmp_path, values, capsys):
    for name in ("old", "seed", "log"):
        write_store(tmp_path / name, values)
    root = tmp_path / "seed" / "zarr.json"
    root.write_text(root.read_text().replace('"seed": 0', '"seed": 1'))

    printed = compare(tmp_path / "old", tmp_path / "seed", capsys, "--store")[1]
    assert "attributes.config.seed was 0 and is 1" in printed
    assert "the last record of the new store's log does not vouch for its zarr.json" in printed

    record = tmp_path / "log" / "commits" / "c.1.0"
    record.write_bytes(
        record.read_bytes().replace(b'"previous":"', b'"previous":"0')[: len(record.read_bytes())]
    )
    assert compare(tmp_path / "old", tmp_path / "log", capsys, "--store")[0] == 1
