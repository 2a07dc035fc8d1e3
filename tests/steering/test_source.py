"""Where a steering comes from: a results folder, and the model that it was made for."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.engine.model import load_model
from actcache.errors import ActcacheError, FormatError, MismatchError, StoreNotFoundError
from actcache.steering import Steering, SteeringSource
from tests.support import tiny


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store of a tiny model and what analyze left of it."""
    folder = tmp_path_factory.mktemp("source")
    rows = tiny.lettered_rows(24, np.random.default_rng(0))
    (folder / "tidy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = tiny.save(folder / "model")
    store = actcache.build_store(folder / "tidy.jsonl", folder / "s.zarr", model=model)
    stages = ("vectors", "sweep")
    results = analysis.analyze(
        store, folder / "out", stages=stages, multipliers=(-1.0, 1.0), draws=20
    )
    return store, results


@pytest.mark.model
@pytest.mark.slow
def test_a_steering_of_results_has_their_direction_and_says_where_it_comes_from(built, tmp_path):
    store, results = built
    steering = Steering.from_results(results.path, "tidy", strength=0.5, tokens="all")

    layer = results.summary.behaviors["tidy"].fixed_layer
    assert steering.layers == (layer,)
    np.testing.assert_array_equal(steering.vectors[0], results.directions["tidy"][layer])
    assert (steering.strength, steering.tokens, steering.site) == (0.5, "all", "resid_post")
    source, model = steering.source, store.provenance["model"]
    assert source is not None
    assert (source.behavior, source.split, source.method) == (
        *("tidy", "train"),
        "difference_of_means",
    )
    assert source.weights_sha256 == model["weights_sha256"]
    assert source.tokenizer_sha256 == store.provenance["tokenizer"]["sha256"]
    assert source.n_layers == store.n_layers

    path = tmp_path / "s.safetensors"
    steering.save(path)
    loaded = load_model(model["name"])
    assert Steering.load(path, model=loaded) == steering
    assert Steering.load(path, model=model) == steering
    with pytest.raises(MismatchError, match=r"'weights_sha256': .*other_model=True"):
        replace(steering, source=replace(source, weights_sha256="00")).require_model(loaded)
    with pytest.raises(MismatchError, match="'dtype': stored 'bfloat16', found 'float32'"):
        replace(steering, source=replace(source, dtype="bfloat16")).require_model(loaded)


SUMMARY = {
    "store": {
        "provenance": {
            "model": {"name": "org/tiny", "family": "llama", "n_layers": 3, "d_model": 4},
            "data_sha256": "ab",
        }
    },
    "labels": None,
    "sweep": {"behaviors": {"tidy": {"fixed_layer": 1}}},
}
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


@pytest.fixture
def out(tmp_path):
    """Write a results folder with one behavior."""

    def write(summary=SUMMARY, values=VALUES):
        from safetensors.numpy import save_file

        tensors = {"tidy/difference_of_means": values, "tidy/difference_of_means_unit": values / 2}
        save_file(tensors, tmp_path / "directions.safetensors")
        (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return tmp_path

    return write


def test_layers_are_the_fixed_one_a_number_or_several(out):
    assert Steering.from_results(out(), "tidy").layers == (1,)
    assert Steering.from_results(out(), "tidy", layer=2).layers == (2,)
    several = Steering.from_results(out(), "tidy", layer=(0, 2), operator="add")
    np.testing.assert_array_equal(several.vectors, VALUES[[0, 2]])
    for operator in ("ablate", "set"):
        unit = Steering.from_results(out(), "tidy", operator=operator).vectors
        np.testing.assert_allclose(unit[0], VALUES[1] / np.linalg.norm(VALUES[1]), rtol=1e-6)


def test_what_the_folder_lacks_is_named_with_the_flags_that_make_it(out, tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"no directions at .*--stages vectors,sweep"):
        Steering.from_results(tmp_path / "no", "tidy")
    without = {**SUMMARY, "sweep": None}
    with pytest.raises(MismatchError, match=r"no fixed layer .*--stages vectors,sweep; or pass a"):
        Steering.from_results(out(without), "tidy")
    assert Steering.from_results(out(without), "tidy", layer=1).layers == (1,)
    labelled = {**without, "labels": ["a", "b"]}
    with pytest.raises(MismatchError, match="Labelled prompts have no sweep; or pass a number"):
        Steering.from_results(out(labelled), "tidy")
    with pytest.raises(MismatchError, match="no direction of 'lazy', expected one of tidy"):
        Steering.from_results(out(), "lazy")
    for layer in (3, (0, 3)):
        with pytest.raises(MismatchError, match=r"layer is 3, expected 0 to 2, .* or 'fixed'"):
            Steering.from_results(out(), "tidy", layer=layer)
    with pytest.raises(ActcacheError, match="layer is 'best', expected several block numbers"):
        Steering.from_results(out(), "tidy", layer="best")  # type: ignore[arg-type]
    with pytest.raises(ActcacheError, match="vectors is zero at layer 1"):
        Steering.from_results(out(values=VALUES * 0), "tidy", operator="ablate")
    with pytest.raises(MismatchError, match="directions of 2 layers, expected the model's 3"):
        Steering.from_results(out(values=VALUES[:2]), "tidy")


def test_a_damaged_folder_is_refused(out):
    folder = out()
    (folder / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=r"is damaged .*Run analyze again"):
        Steering.from_results(folder, "tidy")
    (folder / "summary.json").unlink()
    with pytest.raises(StoreNotFoundError, match=r"no summary at .*Run analyze again"):
        Steering.from_results(folder, "tidy")
    (folder / "directions.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(FormatError, match=r"is damaged .*Run analyze again"):
        Steering.from_results(folder, "tidy")
    with pytest.raises(FormatError, match="of dtype float16 and shape"):
        Steering.from_results(out(values=VALUES.astype(np.float16)), "tidy")


@pytest.mark.parametrize("provenance", [{}, {"model": 3, "tokenizer": {}}, {"tokenizer": None}])
def test_an_imported_store_may_not_say_which_model_it_is_of(provenance):
    source = SteeringSource.from_provenance(provenance, behavior="tidy")
    assert source == SteeringSource(behavior="tidy")


def test_a_template_is_recorded_by_its_digest():
    provenance = {"tokenizer": {"sha256": "ab", "template": "{{ x }}"}}
    source = SteeringSource.from_provenance(provenance)
    assert source.tokenizer_sha256 == "ab"
    assert source.template_sha256 == sha256(b"{{ x }}").hexdigest()
