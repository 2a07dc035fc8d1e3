"""Methods that add a vector to the residual: CAA, L2S, W2S, and a random vector of equal norm."""

from functools import cache

import numpy as np
from jaxtyping import Float32

from actcache.analysis.directions.difference_of_means import random_directions
from actcache.analysis.generation.methods.behavior import (
    BehaviorInputs,
    ChosenLayers,
    chosen_layers,
    predicted_layers,
)
from actcache.analysis.generation.methods.candidate import Candidate, Make
from actcache.analysis.names import CAA, L2S
from actcache.errors import MismatchError
from actcache.steering.steering import AnySteering


def caa(inputs: BehaviorInputs) -> Candidate:
    """Add the behavior's difference of means (Rimsky et al. 2024)."""
    return _added(inputs, inputs.direction, chosen_layers(inputs), method="caa")


def random_vector(inputs: BehaviorInputs) -> Candidate:
    """Add a random vector, as long as the difference of means at every layer."""
    rng = inputs.rng("random vector")
    vectors = random_directions(inputs.direction, rng, count=1)[0]
    layers = chosen_layers(inputs)
    return _added(inputs, vectors, layers, method="random", control=True, seed=inputs.settings.seed)


def w2s(inputs: BehaviorInputs, *, vectors: str = CAA) -> Candidate:
    """Add CAA's vectors, or L2S's, at each row's predicted layer.

    The layer predictor ("Where to Steer") is the one that was trained for these vectors.
    """
    layers = predicted_layers(inputs, vectors=vectors)
    if vectors == L2S:
        return _learned(inputs, layers, method="w2s", selection="predicted, vectors of l2s")
    return _added(inputs, inputs.direction, layers, method="w2s")


def l2s(inputs: BehaviorInputs) -> Candidate:
    """Add the vector that is learned for each row ("Learning to Steer")."""
    inputs.results.vector_predictor(inputs.behavior)  # or says which stage trains it
    scores = inputs.results.summary.predictors
    assert scores is not None
    fixed = scores.sets[L2S].fixed_layer[inputs.behavior]
    layers = chosen_layers(inputs, fixed=fixed, vectors=L2S)
    return _learned(inputs, layers, method="l2s", selection=layers.selection)


def _added(
    inputs: BehaviorInputs,
    vectors: Float32[np.ndarray, "layer d"],
    layers: ChosenLayers,
    *,
    method: str,
    control: bool = False,
    seed: int | None = None,
) -> Candidate:
    """Add one vector a layer to all rows, but where it is zero."""
    zero = {layer for layer in range(len(vectors)) if not vectors[layer].any()}

    @cache
    def at(chosen: tuple[int, ...]) -> AnySteering | None:
        if not chosen:  # a prompt without a predicted layer
            return None
        nonzero = [layer for layer in chosen if layer not in zero]
        if not nonzero:
            raise MismatchError(
                f"the vector of '{inputs.behavior}' is zero at layer "
                f"{', '.join(map(str, chosen))}, expected a direction. Pass other layers."
            )
        return inputs.steering(
            "add", "resid_post", nonzero, vectors[nonzero], method=method, tokens="prompt"
        )

    notes = list(layers.notes)
    if not layers.per_row:
        chosen = layers.of_row(None)
        at(chosen)  # zero at all of them is refused now
        if left := [layer for layer in chosen if layer in zero]:
            notes.append(f"left out, for its vector is zero: layer {', '.join(map(str, left))}")
    return Candidate(
        method=method,
        behavior=inputs.behavior,
        operator="add",
        control=control,
        selection=layers.selection,
        seed=seed,
        notes=tuple(notes),
        make=lambda row: at(layers.of_row(row)),
    )


def _learned(
    inputs: BehaviorInputs, layers: ChosenLayers, *, method: str, selection: str
) -> Candidate:
    """Add the vector that the networks of L2S predict from the row's prompt."""
    return Candidate(
        method=method,
        behavior=inputs.behavior,
        operator="add",
        selection=selection,
        notes=layers.notes,
        make=_predict(inputs, layers, method),
    )


def _predict(inputs: BehaviorInputs, layers: ChosenLayers, method: str) -> Make:
    networks = inputs.results.vector_predictor(inputs.behavior)
    prompt = inputs.store.resid("prompt")
    place = {layer: i for i, layer in enumerate(networks.layers.tolist())}

    @cache
    def of_row(row: int | None) -> AnySteering | None:
        if row is None:
            return None
        chosen = layers.of_row(row)
        if absent := [layer for layer in chosen if layer not in place]:
            raise MismatchError(
                f"the networks of L2S are of layers {', '.join(map(str, place))}, not of layer "
                f"{absent[0]}. Pass some of these, or run analyze with --layers of both."
            )
        vectors = networks.directions(lambda layer: prompt.layer(layer, rows=[row]))[0]
        nonzero = [layer for layer in chosen if vectors[place[layer]].any()]
        if not nonzero:  # a network that predicts nothing steers nothing
            return None
        predicted = vectors[[place[layer] for layer in nonzero]]
        return inputs.steering(
            "add", "resid_post", nonzero, predicted, method=method, tokens="prompt"
        )

    return of_row
