"""Residuals of the store as embeddings."""

import json

import numpy as np
import pytest

from actcache.encoders import encode
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from tests.encoders.examples import store_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["cache:2", "cache:mean:2"])
def test_cached_residuals_are_the_layer_at_length_one(name, dtype, tmp_path):
    arrays = [RowArray(f"resid_post/{p}", 3, 4, dtype) for p in ("prompt", "mean")]
    store = store_of(tmp_path, arrays=arrays)
    embeddings = encode(store, name)
    rows = store.resid("mean" if "mean" in name else "prompt").layer(2).astype(np.float64)
    expected = np.array([row / np.sqrt((row**2).sum()) for row in rows])
    np.testing.assert_allclose(embeddings.values, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings.values, axis=1), 1, rtol=1e-6)
    assert embeddings.name == name
    assert (embeddings.n_new, embeddings.n_cached, embeddings.tokens) == (0, 11, 0)
    assert (embeddings.settings["layer"], embeddings.settings["dimension"]) == (2, 4)
    assert embeddings.settings["weights_sha256"] == "ab" * 32
    json.dumps(embeddings.settings)


def test_the_middle_layer_is_the_default(tmp_path):
    store = store_of(tmp_path)
    embeddings = encode(store, "cache")
    assert (embeddings.name, embeddings.settings["layer"]) == ("cache:1", 1)


def test_a_layer_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"reads layer 3, .* layers 0 to 2. Pass one"):
        encode(store_of(tmp_path), "cache:3")


def test_a_missing_position_names_the_flag(tmp_path):
    with pytest.raises(MismatchError, match="with --positions prompt,fork,mean"):
        encode(store_of(tmp_path), "cache:mean:0")


def test_a_residual_of_zeros_names_the_sample(tmp_path):
    zeros = np.ones((11, 3, 4), np.float16)
    zeros[7, 1] = 0
    store = store_of(tmp_path, values={"resid_post/prompt": zeros})
    with pytest.raises(MismatchError, match=r"after layer 1 of sample 'row-7' is all zeros"):
        encode(store, "cache:1")
