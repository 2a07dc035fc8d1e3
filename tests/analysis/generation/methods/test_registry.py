"""Every method by its name, with its controls; what it does to a running model."""

import numpy as np
import pytest

from actcache.analysis.generation.methods import candidates
from actcache.analysis.generation.methods.registry import CONTROLS, METHODS
from actcache.build.replay import rendered_rows
from actcache.errors import ActcacheError, MismatchError
from actcache.steering.loop import generate
from actcache.steering.sampling import Request

pytestmark = pytest.mark.model
BLOCKS = (1, 2)  # a random model may have no discriminative block


def named(made):
    return [(candidate.method, candidate.selection, candidate.control) for candidate in made]


def test_every_behavior_has_every_method_once_and_controls_last(results, store):
    made = candidates(results, store, methods=["caa", "w2s", "random"])

    assert [candidate.behavior for candidate in made] == ["bold"] * 3 + ["kind"] * 3
    assert named(made[:3]) == [
        ("caa", "fixed", False),
        ("w2s", "predicted", False),
        ("random", "fixed", True),
    ]


def test_controls_fit_the_methods(results, store):
    def of(*methods):
        made = candidates(results, store, methods=methods, behaviors=["kind"], layers=(1,))
        return [(c.method, c.selection, c.unit) for c in made if c.control]

    vector = ("random", "layer 1", "multiplier")
    removed = ("random", "ablation: all sites", "share")
    sites = [("ss", "all sites", "degrees"), ("ss", "random half", "degrees")]
    assert of("caa") == []
    assert of("caa", "random") == [vector]
    assert of("random") == [vector]
    assert of("ablation", "random") == [removed]
    assert of("ss") == sites
    assert of("ss", "random") == [*sites, ("random_plane", "ss: layer 1", "degrees")]
    assert of("caa", "sas", "random") == [vector, ("random_plane", "sas: layer 1", "degrees")]
    assert of("sas", "aas", "random_plane") == [
        ("random_plane", "sas: layer 1", "degrees"),
        ("random_plane", "aas: layer 1", "degrees"),
    ]
    assert of("random_plane") == [("random_plane", "ss: layer 1", "degrees")]
    assert of("caa", "ablation", "random") == [vector, removed]


def test_beside_l2s_layers_are_predicted_for_its_vectors_too(results, store):
    made = candidates(results, store, methods=["w2s", "l2s"], behaviors=["kind"])

    assert [c.selection for c in made] == ["predicted", "predicted, vectors of l2s", "fixed"]
    assert [c.method for c in made] == ["w2s", "w2s", "l2s"]


@pytest.mark.parametrize("method", [*METHODS, *CONTROLS])
def test_every_method_changes_texts_and_its_identity_does_not(method, results, store, model):
    made = candidates(
        results,
        store,
        methods=[method],
        behaviors=["kind"],
        contrast=("Love", "Hate"),
        model=lambda: model,
        layers="fixed" if method in ("w2s", "ablation", "actadd") else BLOCKS,
    )[0]
    rows = np.flatnonzero(store.rows(behavior="kind", split=["validation", "test"])).tolist()
    prompts = [row.prompt for row in rendered_rows(store)]

    def texts(strength):
        requests = [
            Request(
                prompt=prompts[row],
                steering=None if strength is None else made.steering(row, strength),
            )
            for row in rows
        ]
        return [text.tokens for text in generate(model, requests, max_new=8, end_tokens=[])]

    unsteered = texts(None)
    strong = {"multiplier": 30.0, "degrees": 120.0, "share": 1.0}[made.unit]
    assert sum(a != b for a, b in zip(texts(strong), unsteered, strict=True)) > len(rows) / 4
    if made.identity is not None:
        assert texts(made.identity) == unsteered


def test_what_no_method_can_use_is_refused(results, store):
    with pytest.raises(ActcacheError, match="sauce"):
        candidates(results, store, methods=["sauce"])
    with pytest.raises(ActcacheError, match="fixed, predicted, discriminative"):
        candidates(results, store, methods=["caa"], layers="best")
    with pytest.raises(MismatchError, match="0 to 3"):
        candidates(results, store, methods=["ss"], layers=(9,))
    with pytest.raises(MismatchError, match="ascending"):
        candidates(results, store, methods=["ss"], layers=(2, 1))
    with pytest.raises(MismatchError, match=r"front with caa.*--method actadd"):
        candidates(results, store, methods=["caa"], tokens="front")
