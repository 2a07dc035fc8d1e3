import json

import numpy as np
import pytest

from tests.support.stores import build, example


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "s.zarr", *example(), certificate={"largest": [0.0, 0.5]})


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
