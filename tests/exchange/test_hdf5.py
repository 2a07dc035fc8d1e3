"""HDF5 exports: plain arrays for other programs, and the same store again."""

import json
from pathlib import Path

import h5py
import numpy as np
from hypothesis import given, settings

from actcache.exchange import export, import_store
from actcache.store.store import open_store
from tests.support.stores import build, example, file_bytes, scratch, shaped, shapes


@settings(max_examples=15)
@given(shape=shapes())
def test_a_store_comes_back_from_hdf5_byte_for_byte(shape):
    with scratch() as scratch_folder:
        folder = Path(scratch_folder)
        source = build(folder / "s.zarr", *shaped(**shape), certificate={"x": [1.5]})
        for values in ("float32", "bits"):
            export(source, folder / f"{values}.h5", to="hdf5", values=values)
            imported = import_store(folder / f"{values}.h5", folder / f"{values}.zarr")
            assert file_bytes(imported.path) == file_bytes(source)


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


def test_provenance_longer_than_a_header_of_hdf5_is_kept(tmp_path):
    given_, values = example()
    given_["provenance"]["left_out"] = [{"id": f"row-{i}", "reason": "x" * 90} for i in range(1500)]
    source = build(tmp_path / "s.zarr", given_, values)
    export(source, tmp_path / "s.h5", to="hdf5")

    imported = import_store(tmp_path / "s.h5", tmp_path / "t.zarr")
    assert imported.digest == open_store(source).digest
