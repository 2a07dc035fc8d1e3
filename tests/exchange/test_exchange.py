"""Files of other formats: what goes out comes back the same, and nothing hostile comes in."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

from actcache.cli.main import main
from actcache.errors import ActcacheError, FormatError, MismatchError, StoreExistsError
from actcache.exchange.export import export
from actcache.exchange.read_hdf5 import import_hdf5
from actcache.store.store import open_store, verify
from tests.support.stores import as_json, build, example, file_bytes, scratch, shaped, shapes


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "s.zarr", *example(), certificate={"largest": [0.0, 0.5]})


@settings(max_examples=15, deadline=None)
@given(shape=shapes())
def test_a_store_comes_back_from_hdf5_byte_for_byte(shape):
    with scratch() as scratch_folder:
        folder = Path(scratch_folder)
        source = build(folder / "s.zarr", *shaped(**shape), certificate={"x": [1.5]})
        for values in ("float32", "bits"):
            export(source, folder / f"{values}.h5", to="hdf5", values=values)
            found = import_hdf5(folder / f"{values}.h5", folder / f"{values}.zarr")
            assert file_bytes(found.path) == file_bytes(source)


def test_hdf5_is_plain_numbers_and_text_with_named_dimensions(store, tmp_path):
    export(store, tmp_path / "s.h5", to="hdf5")
    opened = open_store(store)

    with h5py.File(tmp_path / "s.h5") as file:
        for name in opened.arrays:
            np.testing.assert_array_equal(file[name][:], opened.array(name)[:])
        prompt = file["resid_post/prompt"]
        assert [dimension.label for dimension in prompt.dims] == ["n", "layer", "d_model"]
        assert prompt.dims[0][0].name == "/id"
        assert prompt.dims[1][0][:].tolist() == [0, 1, 2]
        assert file["resid_post/fork"].dtype == np.float32
        assert file["resid_post/fork"].attrs["dtype"] == "bfloat16"
        assert file["behavior"].asstr()[:].tolist() == opened["behavior"].tolist()
        assert file["label"].dtype == np.uint8
        ragged = opened.ragged("prompt_tokens")
        np.testing.assert_array_equal(file["prompt_tokens"][:], ragged.flat)
        np.testing.assert_array_equal(file["prompt_tokens_offsets"][:], ragged.offsets)
        assert json.loads(file.attrs["config"]) == opened.config
        assert json.loads(file.attrs["provenance"]) == opened.provenance


def test_npz_and_safetensors_hold_every_array(store, tmp_path):
    from safetensors import safe_open

    export(store, tmp_path / "s.npz", to="npz")
    export(store, tmp_path / "s.safetensors", to="safetensors")
    opened = open_store(store)

    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        for name in opened.arrays:
            np.testing.assert_array_equal(file[name], opened.array(name)[:])
        for name in set(opened.columns) - {"label"}:
            np.testing.assert_array_equal(file[name], opened[name])
        assert json.loads(str(file["about/provenance"])) == opened.provenance
    import torch

    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        for name in opened.arrays:
            torch.testing.assert_close(
                file.get_tensor(name), opened.array(name).tensor(), rtol=0, atol=0
            )
        assert json.loads(file.metadata()["behavior"]) == opened["behavior"].tolist()


def test_provenance_longer_than_a_header_of_hdf5_is_kept(tmp_path):
    given_, values = example()
    given_["provenance"]["left_out"] = [{"id": f"row-{i}", "reason": "x" * 90} for i in range(1500)]
    source = build(tmp_path / "s.zarr", given_, values)
    export(source, tmp_path / "s.h5", to="hdf5")

    found = import_hdf5(tmp_path / "s.h5", tmp_path / "t.zarr")
    assert found.digest == open_store(source).digest


def test_an_export_is_whole_or_not_there(store, tmp_path, monkeypatch):
    from actcache.store.array import Residuals

    right, calls = Residuals.batches, []

    def breaks(self, *args, **how):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return right(self, *args, **how)

    monkeypatch.setattr(Residuals, "batches", breaks)
    for name, to in (("s.h5", "hdf5"), ("s.npz", "npz"), ("s.safetensors", "safetensors")):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_nothing_is_written_over_unless_asked(store, tmp_path):
    (tmp_path / "s.h5").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()

    with pytest.raises(StoreExistsError, match="--overwrite"):
        export(store, tmp_path / "s.h5", to="hdf5")
    assert (tmp_path / "s.h5").read_text(encoding="utf-8") == "mine"
    export(store, tmp_path / "s.h5", to="hdf5", overwrite=True)
    with pytest.raises(StoreExistsError, match="another path"):
        export(store, tmp_path / "folder", to="hdf5", overwrite=True)


def test_a_damaged_store_is_not_exported(store, tmp_path):
    shard = next((store / "embed" / "prompt").glob("c.0*"))
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 4
    shard.write_bytes(bytes(raw))

    for to in ("hdf5", "npz", "safetensors", "archive"):
        with pytest.raises(FormatError, match="checksum"):
            export(store, tmp_path / "out", to=to)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["resid_post/prompt"].__setitem__((4, 1, 2), 7),
        lambda f: f["prompt"].__setitem__(3, "Another?"),
        lambda f: f.attrs.__setitem__("provenance", "{}"),
    ],
)
def test_a_file_that_was_changed_since_is_refused(store, tmp_path, change):
    export(store, tmp_path / "s.h5", to="hdf5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        change(file)

    with pytest.raises(MismatchError, match="Export it again"):
        import_hdf5(tmp_path / "s.h5", tmp_path / "t.zarr")
    assert not list(tmp_path.glob("t.zarr*"))


def test_values_that_are_no_bfloat16_are_refused(store, tmp_path):
    export(store, tmp_path / "s.h5", to="hdf5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["resid_post/fork"][0, 0, 0] = np.float32(1.1)

    with pytest.raises(FormatError, match="wider than bfloat16"):
        import_hdf5(tmp_path / "s.h5", tmp_path / "t.zarr")


def foreign(path, *, n=20, n_layers=3, label=True, positions=("prompt",)):
    """A file as somebody writes it who has never heard of actcache."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for position in positions:
            values = rng.normal(size=(n, n_layers, 8)).astype(np.float32)
            values[: n // 2] += 2.0 * (position != "negative")
            file[f"resid_post/{position}"] = values
        if label:
            file["label"] = [float(i < n // 2) for i in range(n)]
        file["note"] = "something else"
    return path


def test_a_foreign_file_gives_vectors_and_layers_and_no_sweep(tmp_path, capsys):
    labels = foreign(tmp_path / "mood.h5")
    pairs = foreign(tmp_path / "pairs.h5", label=False, positions=("positive", "negative"))
    for name in ("mood", "pairs"):
        assert main(["import", str(tmp_path / f"{name}.h5"), "-o", str(tmp_path / name)]) == 0
    store = open_store(tmp_path / "mood")

    assert store["behavior"].tolist() == ["mood"] * 20
    assert set(store["label"].tolist()) == {"1", "0"}
    assert set(store["split"].tolist()) >= {"train", "test"}
    assert store.provenance["imported"]["not_read"] == ["note"]
    with h5py.File(labels) as file:
        np.testing.assert_array_equal(store.resid("prompt")[:], file["resid_post/prompt"][:])
    for name in ("mood", "pairs"):
        done = ["analyze", str(tmp_path / name), "-o", str(tmp_path / f"{name}-out")]
        assert main([*done, "--stages", "vectors,layers", "--draws", "20"]) == 0
    assert main(["info", str(tmp_path / "mood")]) == 0
    capsys.readouterr()
    for command in (
        ["analyze", str(tmp_path / "pairs"), "-o", str(tmp_path / "o"), "--draws", "20"],
        ["verify", str(tmp_path / "pairs"), "--recompute", "1"],
    ):
        assert main(command) == 1
        assert "imported without model and tokens" in capsys.readouterr().err
    assert pairs.exists()


def external(file):
    file["resid_post/prompt"] = h5py.ExternalLink("other.h5", "/x")


def soft(file):
    file["resid_post/prompt"] = h5py.SoftLink("/x")


def virtual(file):
    layout = h5py.VirtualLayout((4, 2, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 2, 3))
    file.create_virtual_dataset("resid_post/prompt", layout)


def raw_file(file):
    file.create_dataset(
        "resid_post/prompt", (4, 2, 3), np.float32, external=[("/etc/passwd", 0, 96)]
    )


def absurd(file):
    file.create_dataset(
        "resid_post/prompt", (1 << 40, 1 << 10, 1 << 12), np.float32, chunks=(1, 1, 4096)
    )


def unfilled(file):
    file.create_dataset("resid_post/prompt", (4, 2, 3), np.float32)


def bomb(file):
    file.create_dataset(
        "resid_post/prompt", (1 << 16, 64, 64), np.float32, chunks=(64, 64, 64), compression="gzip"
    )[:64] = 0


def ragged(file):
    file.create_dataset("resid_post/prompt", (4, 2, 3), dtype=h5py.vlen_dtype(np.int32))


def references(file):
    file["x"] = np.zeros((4, 2, 3), np.float32)
    file.create_dataset("resid_post/prompt", (4, 2, 3), dtype=h5py.ref_dtype)


def compound(file):
    file["resid_post/prompt"] = np.zeros((4, 2, 3), dtype=[("a", "f4"), ("b", "f4")])


def same_long_text(file):
    file["resid_post/prompt"] = np.zeros((300, 1, 1), np.float32)
    file.create_dataset("prompt", data=np.array([b"x" * 4000] * 300), compression="gzip")


def wide(file):
    file["resid_post/prompt"] = np.zeros((4, 2, 3), np.float64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external, "ExternalLink"),
        (soft, "SoftLink"),
        (virtual, "other files"),
        (raw_file, "other files"),
        (absurd, "of which are there"),
        (unfilled, "of which are there"),
        (bomb, "of which are there"),
        (ragged, "numbers or text"),
        (references, "numbers or text"),
        (compound, "numbers or text"),
        (same_long_text, "bytes of text"),
        (wide, "float32 or float16"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, make, message):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((4, 2, 3), np.float32)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        make(file)

    with pytest.raises(FormatError, match=message):
        import_hdf5(tmp_path / "bad.h5", tmp_path / "t.zarr")
    assert not list(tmp_path.glob("t.zarr*"))


def test_a_chunk_that_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("actcache.exchange.safe_hdf5.LARGEST_CHUNK", 64)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        values = np.ones((4, 2, 3), np.float32)
        file.create_dataset("resid_post/prompt", data=values, chunks=(4, 2, 3), compression="gzip")

    with pytest.raises(FormatError, match="smaller ones"):
        import_hdf5(tmp_path / "bad.h5", tmp_path / "t.zarr")


@pytest.mark.parametrize("raw", [b"", b"no file of that kind", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_hdf5_is_refused(tmp_path, raw):
    (tmp_path / "bad.h5").write_bytes(raw)

    with pytest.raises(FormatError, match=r"HDF5"):
        import_hdf5(tmp_path / "bad.h5", tmp_path / "t.zarr")


def test_a_file_cut_short_or_flipped_never_gives_another_store(store, tmp_path):
    export(store, tmp_path / "s.h5", to="hdf5")
    whole = (tmp_path / "s.h5").read_bytes()
    rng = np.random.default_rng(0)
    right = open_store(store).digest
    for trial in range(60):
        raw = bytearray(whole)
        if trial % 3:
            for at in rng.integers(0, len(raw), 3):
                raw[at] ^= 1 << rng.integers(0, 8)
        else:
            raw = raw[: rng.integers(0, len(raw))]
        (tmp_path / "bad.h5").write_bytes(bytes(raw))
        try:
            found = import_hdf5(tmp_path / "bad.h5", tmp_path / f"{trial}.zarr", overwrite=True)
        except (ActcacheError, OSError):
            continue
        assert found.digest == right


@pytest.fixture
def results(tmp_path, store):
    """A folder as analyze leaves it."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    folder = tmp_path / "out"
    folder.mkdir()
    values = rng.normal(size=(4, 8)).astype(np.float32)
    tensors = {f"mood/difference_of_means{x}": values * (2 - len(x) / 5) for x in ("", "_unit")}
    save_file(tensors, folder / "directions.safetensors", metadata={"model": "tiny"})
    np.savez(folder / "steerability.npz", id=np.array(["a", "b"]), slope=np.ones((2, 4)))
    summary = {"store": {"provenance": {"model": {"family": "llama"}}}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder, values


def test_results_are_written_as_hdf5_npz_and_safetensors(results, tmp_path):
    from safetensors.numpy import load_file

    folder, values = results
    for to in ("hdf5", "npz", "safetensors"):
        export(folder, tmp_path / to, to=to)
    name = "directions/mood/difference_of_means"
    with h5py.File(tmp_path / "hdf5") as file:
        np.testing.assert_array_equal(file[name][:], values * 2)
        assert file["steerability/id"].asstr()[:].tolist() == ["a", "b"]
        assert [d.label for d in file["steerability/slope"].dims] == ["n", "layer"]
    with np.load(tmp_path / "npz") as file:
        np.testing.assert_array_equal(file[name], values * 2)
    assert set(load_file(tmp_path / "safetensors")) == {
        "mood/difference_of_means",
        "mood/difference_of_means_unit",
    }
    export(folder, tmp_path / "one", to="safetensors", directions=["mood/difference_of_means_unit"])
    assert list(load_file(tmp_path / "one")) == ["mood/difference_of_means_unit"]
    modes = {(tmp_path / name).stat().st_mode for name in ("one", "npz", "hdf5")}
    assert len(modes) == 1
    with pytest.raises(MismatchError, match="holds results, expected a store"):
        import_hdf5(tmp_path / "hdf5", tmp_path / "s.zarr")
    with pytest.raises(MismatchError, match="no direction 'x', expected some of mood"):
        export(folder, tmp_path / "none", to="safetensors", directions=["x"])


def test_a_control_vector_has_a_direction_for_each_block_but_the_first(results, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    folder, values = results
    export(folder, tmp_path / "v.gguf", to="gguf", directions=["mood"])

    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert list(found) == ["direction.1", "direction.2", "direction.3"]
    for layer in (1, 2, 3):
        np.testing.assert_array_equal(found[f"direction.{layer}"], values[layer] * 2)
    hint = reader.get_field("controlvector.model_hint")
    assert bytes(hint.parts[-1]).decode() == "llama"
    assert bytes(reader.get_field("general.architecture").parts[-1]).decode() == "controlvector"


def test_without_the_package_gguf_the_remedy_is_named(results, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ActcacheError, match=r"actcache\[gguf\]"):
        export(results[0], tmp_path / "v.gguf", to="gguf")


@pytest.mark.parametrize(
    ("of", "how", "message"),
    [
        ("store", {"to": "gguf"}, "what actcache analyze left"),
        ("store", {"to": "hdf5", "directions": ["mood"]}, "what actcache analyze left"),
        ("results", {"to": "archive"}, "Choose another format"),
        ("results", {"to": "npz", "directions": ["mood"]}, "with --directions"),
    ],
)
def test_a_format_that_does_not_go_with_the_source_is_refused(
    store, results, tmp_path, of, how, message
):
    with pytest.raises(MismatchError, match=message):
        export(store if of == "store" else results[0], tmp_path / "x", **how)


def test_the_commands_write_and_read(store, tmp_path, capsys):
    out = str(tmp_path / "s.h5")
    assert main(["export", str(store), "--to", "hdf5", "-o", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 11
    assert facts["bytes on disk"] == Path(out).stat().st_size
    assert main(["export", str(store), "--to", "npz", "-o", str(tmp_path / "s.npz")]) == 0
    assert zipfile.ZipFile(tmp_path / "s.npz").testzip() is None
    assert "resid_post/prompt" in capsys.readouterr().out
    assert main(["export", str(store), "--to", "hdf5", "-o", out]) == 1
    assert "--overwrite" in capsys.readouterr().err
    found = import_hdf5(out, tmp_path / "t.zarr")
    assert as_json(found) == as_json(open_store(store))
    assert verify(found.path) == []


def test_the_command_offers_every_format():
    import argparse

    from actcache.cli import export as command
    from actcache.exchange.export import FORMATS, VALUES

    made = argparse.ArgumentParser()
    command.add_arguments(made)
    choices = {action.dest: action.choices for action in made._actions}
    assert choices["to"] == FORMATS
    assert choices["values"] == VALUES
