"""Directions from files: which sets, for which behavior, of which model, at which norm."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from actcache.analysis.sweep.direction_files import read_direction_sets
from actcache.analysis.sweep.given import norms_of, scaled
from actcache.errors import MismatchError, NotFiniteError
from actcache.steering.files.control_vector import write_control_vector
from tests.analysis.directions.test_token_choice import write_store

L, D, N = 3, 5, 12
SHA = "ab" * 32


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    sides = {
        f"resid_post/{side}": rng.normal(3, 1, (N, L, D)).astype(np.float32)
        for side in ("positive", "negative")
    }
    columns = {
        "behavior": ["tidy" if i % 2 else "calm" for i in range(N)],
        "split": ["train"] * N,
        "variant": ["base"] * N,
        "label": [""] * N,
    }
    return write_store(
        tmp_path / "s.zarr", sides, columns=columns, provenance={"model": {"weights_sha256": SHA}}
    )


def directions(seed=0):
    return np.random.default_rng(seed).normal(size=(L, D)).astype(np.float32)


def write(path, tensors, **about):
    save_file(tensors, path, metadata={"weights_sha256": SHA, **about})
    return str(path)


def test_a_key_that_each_behavior_has_is_one_set(store, tmp_path):
    tensors = {
        f"{b}/{k}": directions(i)
        for i, (b, k) in enumerate(
            [("tidy", "mean"), ("calm", "mean"), ("tidy", "rfm"), ("calm", "rfm")]
        )
    }
    path = write(
        tmp_path / "d.safetensors",
        {**tensors, "tidy/mean_unit": directions(9), "calm/mean_unit": directions(9)},
    )

    both = read_direction_sets([path], store)
    one = read_direction_sets([f"{path}:rfm"], store)
    shared = read_direction_sets([f"{path}:tidy/mean"], store)

    assert [s.name for s in both] == ["mean", "rfm"]
    assert [s.name for s in one] == ["rfm"]
    for behavior in ("tidy", "calm"):
        np.testing.assert_array_equal(one[0].values[behavior], tensors[f"{behavior}/rfm"])
        np.testing.assert_array_equal(shared[0].values[behavior], tensors["tidy/mean"])


def test_a_tensor_for_each_layer_steers_all_behaviors(store, tmp_path):
    layers = {0: directions()[0], 2: directions()[2]}
    path = tmp_path / "vectors.safetensors"
    save_file({f"layer.{n}": v for n, v in layers.items()}, path)  # without metadata

    [read] = read_direction_sets([str(path)], store)

    assert read.name == "vectors"
    for behavior in ("tidy", "calm"):
        for layer in (0, 2):
            np.testing.assert_array_equal(read.values[behavior][layer], layers[layer])
        assert not read.values[behavior][1].any()


def test_a_control_vector_of_repeng_steers_all_behaviors(store, tmp_path):
    path, values = tmp_path / "v.gguf", directions()
    write_control_vector(
        path, {n: values[n] for n in (1, 2)}, family="gpt2", layer_count=2, description="d"
    )

    [read] = read_direction_sets([str(path)], store)

    np.testing.assert_array_equal(read.values["tidy"][1:], values[1:])
    assert not read.values["calm"][0].any()


@pytest.mark.parametrize(
    ("tensors", "about", "key", "message"),
    [
        ({"tidy/x": directions()}, {}, "", "no direction 'calm/x', expected one for each behavior"),
        ({"tidy/x": directions()}, {}, ":y", "no direction 'calm/y'"),
        (
            {"x": directions()},
            {"weights_sha256": "cd" * 32, "model": "other"},
            ":x",
            "of the model other.*Pass directions of the same model",
        ),
        ({"x": directions()[:2]}, {}, ":x", r"shape \[2, 5\], expected \[3, 5\]"),
        ({"x": directions()[:, :4]}, {}, ":x", r"shape \[3, 4\], expected \[3, 5\]"),
        (
            {"layer3": directions()[0]},
            {},
            "",
            "a direction of layer 3, but the model .* layers 0 to 2",
        ),
        ({"layer0": directions()[0, :4]}, {}, "", r"shape \[3, 4\]"),
    ],
)
def test_directions_that_do_not_fit_are_refused(store, tmp_path, tensors, about, key, message):
    path = write(tmp_path / "d.safetensors", tensors, **about)
    with pytest.raises(MismatchError, match=message):
        read_direction_sets([path + key], store)


def test_files_that_are_none_are_refused(store, tmp_path):
    (tmp_path / "d.safetensors").write_bytes(b"not one")
    (tmp_path / "v.gguf").write_bytes(b"GGUF and no more")
    for given, message in (
        ("d.safetensors", "cannot be read as directions"),
        ("v.gguf", "no control vector"),
        ("missing.safetensors", "expected FILE or FILE:KEY"),
    ):
        with pytest.raises(MismatchError, match=message):
            read_direction_sets([str(tmp_path / given)], store)
    path = write(tmp_path / "x.safetensors", {"x": np.full((L, D), np.nan, np.float32)})
    with pytest.raises(NotFiniteError, match="not finite at layer 0"):
        read_direction_sets([f"{path}:x"], store)
    good = write(tmp_path / "y.safetensors", {"x": directions()})
    with pytest.raises(MismatchError, match="given twice"):
        read_direction_sets([f"{good}:x"] * 3, store)


def test_norms_are_those_of_the_difference_of_means_or_of_the_residuals(store):
    of_behaviors = {"tidy": directions(1), "calm": directions(2)}
    rows = np.arange(N) < 9

    caa = norms_of(store, of_behaviors, norm="caa", rows=rows)
    residual = norms_of(store, of_behaviors, norm="residual", rows=rows)

    assert norms_of(store, of_behaviors, norm="raw", rows=rows) is None
    assert caa is not None
    assert residual is not None
    for name, values in of_behaviors.items():
        np.testing.assert_allclose(caa[name], np.linalg.norm(values, axis=1), rtol=1e-6)
        of_behavior = rows & (store["behavior"] == name)
        norms = [
            np.linalg.norm(store.resid(side)[of_behavior], axis=-1)
            for side in ("positive", "negative")
        ]
        np.testing.assert_allclose(residual[name], np.concatenate(norms).mean(0), rtol=1e-6)
        long = scaled(directions(3), residual[name])
        np.testing.assert_allclose(np.linalg.norm(long, axis=1), residual[name], rtol=1e-6)
    assert not scaled(np.zeros((L, D), np.float32), np.ones(L)).any()
