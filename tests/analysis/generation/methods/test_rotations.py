"""Rotations turn the chosen norm outputs in the store's plane; ablation removes one direction."""

from dataclasses import replace

import numpy as np
import pytest

from actcache.analysis.directions.planes import find_plane
from actcache.analysis.generation.methods.rotations import (
    aas,
    ablation,
    random_plane,
    sas,
    ss,
    ss_controls,
)
from actcache.errors import MismatchError
from actcache.steering.gates import TokenGate
from tests.analysis.generation.methods.steered import parts

pytestmark = pytest.mark.model
EVERYWHERE = {(site, layer) for site in ("ln1", "ln2") for layer in range(4)}


@pytest.fixture
def kind(inputs):
    """Inputs of `kind` whose blocks 1 and 3 are discriminative, and of block 2 the first norm."""

    def make(**settings):
        made = inputs(**settings)
        marked = np.array([False, False, True, True, True, False, True, True])
        scores = replace(made.plane.scores, discriminative=marked)
        made.__dict__["plane"] = replace(made.plane, scores=scores)
        return made

    return make


def places(candidate):
    return {(part.site, layer) for part in parts(candidate) for layer in part.layers}


def planes(candidate):
    return np.concatenate([part.vectors for part in parts(candidate)])


def test_the_plane_is_that_of_the_behaviors_train_rows(inputs, store):
    rows = store.rows(behavior="kind", split="train")
    expected = find_plane(store, rows=rows)

    plane = inputs().plane

    np.testing.assert_array_equal(plane.basis, expected.basis)
    np.testing.assert_array_equal(plane.scores.class_mean, expected.scores.class_mean)


def test_selective_steering_rotates_the_norms_of_discriminative_blocks(kind):
    candidate = ss(kind())

    assert places(candidate) == {("ln1", 1), ("ln2", 1), ("ln1", 3), ("ln2", 3)}
    for part in parts(candidate):
        assert (part.operator, part.tokens, part.gate) == ("rotate", "all", None)
    np.testing.assert_allclose(planes(candidate), [kind().plane.basis] * 4, atol=1e-7)
    assert (candidate.unit, candidate.identity) == ("degrees", 0.0)
    assert (candidate.selection, candidate.control) == ("discriminative", False)
    by_sublayer = ss(kind(whole_blocks=False))
    assert places(by_sublayer) == {*places(candidate), ("ln1", 2)}
    listed = ss(kind(layers=(0, 2)))
    assert places(listed) == {(site, layer) for site in ("ln1", "ln2") for layer in (0, 2)}
    assert listed.selection == "layers 0, 2"


def test_its_controls_are_all_sites_and_a_random_half(kind):
    everywhere, half = ss_controls(kind())

    assert (everywhere.selection, half.selection) == ("all sites", "random half")
    assert everywhere.control
    assert half.control
    assert places(everywhere) == EVERYWHERE
    assert len(places(half)) == 4
    assert places(half) < EVERYWHERE
    assert places(ss_controls(kind())[1]) == places(half)
    seeds = {frozenset(places(ss_controls(kind(seed=seed))[1])) for seed in range(6)}
    assert len(seeds) > 1
    np.testing.assert_allclose(planes(half), [kind().plane.basis] * 4, atol=1e-7)


def test_angular_steering_turns_all_sites_to_an_angle(kind):
    standard, adaptive = sas(kind()), aas(kind())

    for candidate, gate in ((standard, None), (adaptive, TokenGate(threshold=0.0))):
        assert places(candidate) == EVERYWHERE
        assert (candidate.unit, candidate.identity) == ("degrees", None)
        for part in parts(candidate):
            assert (part.operator, part.gate, part.tokens) == ("turn_to", gate, "all")
    assert places(sas(kind(layers=(2,)))) == {("ln1", 2), ("ln2", 2)}


@pytest.mark.parametrize(("offset", "word"), [(1e3, "all"), (-1e3, "none"), (0.0, None)])
def test_a_gate_that_passes_all_or_none_is_told(kind, store, offset, word):
    class Shifted:
        """A store whose norm outputs lie far to one side on b1."""

        def __init__(self, basis):
            self._shift = offset * basis[0]

        def __getattr__(self, name):
            return getattr(store, name)

        def __getitem__(self, name):
            return store[name]

        def resid(self, position, *, site):
            values = store.resid(position, site=site)
            shift = self._shift

            class Layer:
                def layer(self, layer, rows):
                    return values.layer(layer, rows=rows) + shift

            return Layer()

    made = kind()
    object.__setattr__(made, "store", Shifted(made.plane.basis))

    notes = [note for note in aas(made).notes if "gate" in note]

    assert bool(notes) == (word is not None)
    if word:
        assert f"passes {word} of the" in notes[0]


def test_a_random_plane_turns_the_same_sites(kind):
    for method, true in (("ss", ss(kind())), ("sas", sas(kind())), ("aas", aas(kind()))):
        candidate = random_plane(kind(), method)
        assert places(candidate) == places(true)
        assert candidate.control
        assert (candidate.method, candidate.identity) == ("random_plane", true.identity)
        assert candidate.selection == f"{method}: {true.selection}"
        drawn = planes(candidate)
        assert (drawn == drawn[0]).all()
        assert abs(drawn[0] @ kind().plane.basis.T).max() < 0.9
        assert [part.gate for part in parts(candidate)] == [part.gate for part in parts(true)]


def test_ablation_removes_one_direction_everywhere(inputs, results):
    layer = results.summary.behaviors["kind"].fixed_layer
    candidate = ablation(inputs())

    removed = parts(candidate)

    assert [part.site for part in removed] == ["resid_pre", "attn_out", "mlp_out"]
    direction = results.directions["kind"][layer].astype(np.float64)
    for part in removed:
        assert (part.operator, part.layers, part.tokens) == ("ablate", (0, 1, 2, 3), "all")
        np.testing.assert_allclose(
            part.vectors, [direction / np.linalg.norm(direction)] * 4, atol=1e-7
        )
    assert (candidate.unit, candidate.identity) == ("share", 0.0)
    other = parts(ablation(inputs(layers=(0,))))[0].vectors[0]
    first = results.directions["kind"][0]
    np.testing.assert_allclose(other, first / np.linalg.norm(first), atol=1e-6)
    control = ablation(inputs(), control=True)
    assert (control.method, control.control) == ("random", True)
    assert abs(parts(control)[0].vectors[0] @ direction) < 0.9 * np.linalg.norm(direction)


def test_what_cannot_be_turned_or_removed_is_refused(inputs, kind, results):
    made = kind()
    scores = replace(made.plane.scores, discriminative=np.zeros(8, bool))
    made.__dict__["plane"] = replace(made.plane, scores=scores)
    with pytest.raises(MismatchError, match=r"0 of 8 norm outputs do.*--layers"):
        ss(made)
    with pytest.raises(MismatchError, match=r"removes one direction.*Pass one layer"):
        ablation(inputs(layers=(1, 2)))
    zero = inputs(layers=(1,))
    zero.__dict__["direction"] = np.zeros_like(results.directions["kind"])
    with pytest.raises(MismatchError, match=r"zero at layer 1.*Pass another layer"):
        ablation(zero)


def test_a_store_without_norm_outputs_names_the_flags(results, store, folder, inputs):
    from actcache.store.copies.copy import subset
    from actcache.store.copies.selection import Selection
    from actcache.store.store import open_store

    path = folder / "plain.zarr"
    if not path.exists():
        subset(store.path, path, selection=Selection(sites=["resid_post", "embed"]))
    made = inputs()
    object.__setattr__(made, "store", open_store(path))
    with pytest.raises(MismatchError, match=r"--sites resid_post,embed,ln1,ln2"):
        ss(made)
