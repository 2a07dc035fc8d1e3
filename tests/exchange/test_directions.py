"""Directions of results as safetensors and control vectors, beside the rest in HDF5 and npz."""

import sys

import h5py
import numpy as np
import pytest

from actcache.errors import ActcacheError, MismatchError
from actcache.exchange import export, import_store


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
        import_store(tmp_path / "hdf5", tmp_path / "s.zarr")
    with pytest.raises(MismatchError, match="no direction 'x', expected some of mood"):
        export(folder, tmp_path / "none", to="safetensors", directions=["x"])


def test_a_control_vector_has_a_direction_for_each_block_but_the_first(results, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    folder, values = results
    export(folder, tmp_path / "v.gguf", to="gguf", directions=["mood"])

    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]
    for layer in (1, 2, 3):
        np.testing.assert_array_equal(tensors[f"direction.{layer}"], values[layer] * 2)
    hint = reader.get_field("controlvector.model_hint")
    assert bytes(hint.parts[-1]).decode() == "llama"
    assert bytes(reader.get_field("general.architecture").parts[-1]).decode() == "controlvector"


def test_a_missing_package_gguf_names_the_remedy(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ActcacheError, match=r"actcache\[gguf\]"):
        export(results[0], tmp_path / "v.gguf", to="gguf")
