"""CAA, L2S, W2S and random vectors are those of OUT, at the layers that were chosen."""

import numpy as np
import pytest

from actcache.analysis.generation.methods import candidates
from actcache.analysis.generation.methods.additive import caa, l2s, random_vector, w2s
from actcache.errors import MismatchError
from tests.analysis.generation.methods.steered import parts

pytestmark = pytest.mark.model


def test_caa_adds_the_direction_of_the_fixed_layer(inputs, results, row):
    layer = results.summary.behaviors["kind"].fixed_layer
    candidate = caa(inputs())

    (part,) = parts(candidate, row)

    assert (part.operator, part.site, part.layers, part.tokens) == (
        "add",
        "resid_post",
        (layer,),
        "prompt",
    )
    np.testing.assert_array_equal(part.vectors, results.directions["kind"][[layer]])
    assert (candidate.unit, candidate.identity, candidate.selection) == ("multiplier", 0.0, "fixed")
    assert candidate.steering(None, 0.5) == candidate.steering(row, 0.5)
    assert part.source.behavior == "kind"


def test_caa_adds_to_the_layers_that_are_listed(inputs, results, row):
    candidate = caa(inputs(layers=(1, 3), tokens="completion", window=(0, 4)))

    (part,) = parts(candidate, row)

    assert (part.layers, part.tokens, part.window) == ((1, 3), "completion", (0, 4))
    np.testing.assert_array_equal(part.vectors, results.directions["kind"][[1, 3]])
    assert candidate.selection == "layers 1, 3"


def test_a_layer_whose_vector_is_zero_is_left_out_and_said(inputs, results):
    one = inputs(layers=(0, 2))
    vectors = results.directions["kind"].copy()
    vectors[0] = 0
    one.__dict__["direction"] = vectors

    candidate = caa(one)

    assert parts(candidate)[0].layers == (2,)
    assert any("zero: layer 0" in note for note in candidate.notes)
    two = inputs(layers=(0,))
    two.__dict__["direction"] = vectors
    with pytest.raises(MismatchError, match=r"zero at layer 0.*Pass other layers"):
        caa(two)


def test_l2s_adds_what_the_networks_predict_for_the_row(inputs, results, store):
    networks = results.vector_predictor("kind")
    layer = results.summary.predictors.sets["l2s"].fixed_layer["kind"]
    made = inputs()
    made.__dict__["fixed_layer"] = (layer + 1) % 4  # CAA's, which is another one
    candidate = l2s(made)

    for row in np.flatnonzero(store.rows(behavior="kind", split="test"))[:3].tolist():
        (part,) = parts(candidate, row)
        contexts = {k: store.resid("prompt").layer(k)[[row]] for k in range(store.n_layers)}
        expected = networks.directions(contexts)[0, networks.layers.tolist().index(layer)]
        np.testing.assert_allclose(part.vectors[0], expected, rtol=1e-5, atol=1e-7)
        assert part.layers == (layer,)
    assert candidate.steering(None, 0.5) is None


def test_w2s_steers_each_row_at_its_predicted_layer(inputs, results, store):
    kind = inputs()
    with np.load(results.path / "predictors.npz") as arrays:
        key = results.summary.predictors.sets["caa"].primary
        predicted = arrays[f"caa/{key}/layer"]
    candidate = w2s(kind)

    for row in np.flatnonzero(kind.rows).tolist():
        votes = predicted[:, row].tolist()
        layer = max(sorted(set(votes)), key=votes.count)
        (part,) = parts(candidate, row)
        assert part.layers == (layer,)
        np.testing.assert_array_equal(part.vectors[0], results.directions["kind"][layer])
    assert (candidate.selection, candidate.steering(None, 1.0)) == ("predicted", None)
    same = caa(inputs(layers="predicted"))
    assert same.steering(row, 1.0) == candidate.steering(row, 1.0)


def test_w2s_chooses_layers_for_learned_vectors_too(inputs, results, store, row):
    candidate = w2s(inputs(), vectors="l2s")

    layers = parts(w2s(inputs(), vectors="l2s"), row)[0].layers
    (part,) = parts(candidate, row)

    (learned,) = parts(l2s(inputs(layers=layers)), row)
    np.testing.assert_array_equal(part.vectors, learned.vectors)
    assert candidate.selection == "predicted, vectors of l2s"


def test_a_random_vector_is_as_long_as_caas_and_is_the_same_for_one_seed(inputs, row):
    (true,), (drawn,) = parts(caa(inputs()), row), parts(random_vector(inputs()), row)

    assert drawn.layers == true.layers
    norm = np.linalg.norm(drawn.vectors, axis=1)
    np.testing.assert_allclose(norm, np.linalg.norm(true.vectors, axis=1), rtol=1e-6)
    (again,), (other,) = (parts(random_vector(inputs(seed=seed)), row) for seed in (0, 1))
    assert again == drawn
    assert other != drawn
    (bold,) = parts(random_vector(inputs("bold", layers=true.layers)))
    cosine = np.sum(bold.vectors * drawn.vectors) / norm / np.linalg.norm(bold.vectors)
    assert abs(cosine) < 0.9  # a stream of its own


def test_layers_and_predictors_that_are_not_there_name_the_flags(
    inputs, results, store, labelled, tmp_path
):
    with pytest.raises(MismatchError, match="expected some of 0 to 3"):
        caa(inputs(layers=(4,)))
    with pytest.raises(MismatchError, match=r"no direction of 'sauce'.*bold"):
        caa(inputs("sauce", layers=(1,)))
    other, out = labelled
    for method in ("l2s", "w2s"):
        with pytest.raises(MismatchError, match=r"--vectors"):
            candidates(out, other, methods=[method])
    for method, layers in (("l2s", "fixed"), ("w2s", "fixed"), ("caa", "predicted")):
        with pytest.raises(MismatchError, match=r"not in .*rows of it"):
            candidates(results, store, methods=[method], layers=layers, in_store=False)


def test_a_folder_without_a_sweep_says_how_to_get_a_fixed_layer(store, tmp_path):
    from actcache import analysis

    out = analysis.analyze(store, tmp_path / "out", stages=("vectors",))

    with pytest.raises(MismatchError, match=r"no fixed layer of 'bold'.*--stages vectors,sweep"):
        candidates(out, store, methods=["caa"])
    (kind, _) = candidates(out, store, methods=["caa"], behaviors=["kind", "bold"], layers=(2,))
    assert parts(kind)[0].layers == (2,)


def test_labels_have_the_layer_whose_direction_agrees_most(labelled):
    from actcache.analysis.directions.discriminative import mean_cosine

    store, out = labelled
    (name,) = out.directions

    (candidate,) = candidates(out, store, methods=["caa"])

    best = int(mean_cosine(out.directions[name]).argmax())
    assert parts(candidate)[0].layers == (best,)
    assert any("agrees most" in note for note in candidate.notes)
