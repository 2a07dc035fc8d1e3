"""npz and safetensors hold every array of a store."""

import json

import numpy as np

from actcache.exchange import export
from actcache.store.store import open_store


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
