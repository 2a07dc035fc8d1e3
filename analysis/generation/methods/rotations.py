"""Methods that turn norm outputs in a plane (SS, SAS, AAS), their controls, and ablation.

Selective Steering (arXiv 2601.19375), Angular Steering, and directional ablation (Arditi et al.
2024), whose direction is removed wherever it is written.
"""

from typing import cast

import numpy as np
from jaxtyping import Bool, Float64

from actcache.analysis.generation.methods.behavior import (
    BehaviorInputs,
    chosen_layers,
    list_selection,
    require_layers,
    summed,
    unit_vector,
)
from actcache.analysis.generation.methods.candidate import Candidate, same_for_all
from actcache.errors import MismatchError
from actcache.steering.checks import Operator, SteeringSite
from actcache.steering.gates import TokenGate
from actcache.steering.steering import AnySteering

ALL_SITES = "all sites"

ABLATED: tuple[SteeringSite, ...] = ("resid_pre", "attn_out", "mlp_out")
"""Every place of a block where a direction can be written to the residual or read from it."""


def ss(inputs: BehaviorInputs) -> Candidate:
    """Rotate the norm outputs of discriminative blocks (Selective Steering)."""
    places, selection = _selective(inputs)
    return _turned(inputs, "rotate", places, method="ss", selection=selection)


def ss_controls(inputs: BehaviorInputs) -> list[Candidate]:
    """Rotate all norm outputs instead, and a random half of them."""
    n = len(inputs.plane.scores.sites)
    half = np.zeros(n, bool)
    half[inputs.rng("random half").permutation(n)[: max(n // 2, 1)]] = True
    seed = inputs.settings.seed
    return [
        _turned(inputs, "rotate", np.ones(n, bool), method="ss", selection=ALL_SITES, control=True),
        _turned(
            inputs, "rotate", half, method="ss", selection="random half", control=True, seed=seed
        ),
    ]


def sas(inputs: BehaviorInputs) -> Candidate:
    """Turn all norm outputs to one angle (Angular Steering)."""
    places, selection = _all_or_listed(inputs)
    return _turned(inputs, "turn_to", places, method="sas", selection=selection)


def aas(inputs: BehaviorInputs) -> Candidate:
    """Turn tokens whose projection on b1 is positive to one angle (adaptive)."""
    places, selection = _all_or_listed(inputs)
    return _turned(
        inputs,
        "turn_to",
        places,
        method="aas",
        selection=selection,
        gate=TokenGate(),
        notes=_gate_notes(inputs, places),
    )


def random_plane(inputs: BehaviorInputs, method: str) -> Candidate:
    """Turn as `method` does, at the same sites, but in a random plane."""
    basis = np.linalg.qr(inputs.rng("random plane").standard_normal((inputs.store.d_model, 2)))[0].T
    selective = method == "ss"
    places, selection = (_selective if selective else _all_or_listed)(inputs)
    return _turned(
        inputs,
        "rotate" if selective else "turn_to",
        places,
        method="random_plane",
        selection=f"{method}: {selection}",
        control=True,
        seed=inputs.settings.seed,
        gate=TokenGate() if method == "aas" else None,
        basis=basis,
    )


def ablation(inputs: BehaviorInputs, *, control: bool = False) -> Candidate:
    """Remove one direction from the residual of every block.

    It is removed from block inputs and from what attention and MLP add. It is that of the fixed
    layer, or of the one layer that is asked for; the control removes a random one.
    """
    asked_layers = inputs.settings.layers
    listed = not isinstance(asked_layers, str)
    if listed and len(asked_layers) != 1:
        raise MismatchError(
            f"layers are {list(asked_layers)}, but ablation removes one direction, expected the "
            "layer that it is of. Pass one layer."
        )
    fixed = chosen_layers(inputs).of_row(None)[0] if listed else inputs.fixed_layer
    if not inputs.direction[fixed].any():
        raise MismatchError(
            f"the direction of '{inputs.behavior}' is zero at layer {fixed}, expected one to "
            "remove. Pass another layer."
        )
    direction = unit_vector(inputs.direction[fixed])
    if control:
        direction = unit_vector(inputs.rng("random ablation").standard_normal(len(direction)))
    layers = range(inputs.store.n_layers)
    vectors = np.broadcast_to(direction, (len(layers), len(direction)))
    name = "random" if control else "ablation"
    parts = [
        inputs.steering("ablate", site, layers, vectors, method=name, tokens="all")
        for site in ABLATED
    ]
    return Candidate(
        method=name,
        behavior=inputs.behavior,
        operator="ablate",
        control=control,
        selection=f"ablation: {ALL_SITES}" if control else ALL_SITES,
        seed=inputs.settings.seed if control else None,
        notes=() if control else (f"direction of layer {fixed}",),
        make=same_for_all(summed(parts)),
    )


def _selective(inputs: BehaviorInputs) -> tuple[Bool[np.ndarray, " k"], str]:
    """Norm outputs of discriminative blocks, or of those that are asked for."""
    if not isinstance(inputs.settings.layers, str):
        return _all_or_listed(inputs)
    scores, whole = inputs.plane.scores, inputs.settings.whole_blocks
    places = scores.selected(whole_blocks=whole)
    if not places.any():
        raise MismatchError(
            f"no {'block' if whole else 'norm output'} of '{inputs.behavior}' has class means on "
            f"either side of 0 ({scores.discriminative.sum()} of {len(scores.sites)} norm outputs "
            "do), expected some to rotate. Pass --layers with numbers, or use sas."
        )
    return places, "discriminative"


def _all_or_listed(inputs: BehaviorInputs) -> tuple[Bool[np.ndarray, " k"], str]:
    """All norm outputs, or those of the blocks that are asked for."""
    of_place = np.array(inputs.plane.scores.layers)
    asked_layers = inputs.settings.layers
    if isinstance(asked_layers, str):
        return np.ones(len(of_place), bool), ALL_SITES
    require_layers(asked_layers, inputs.store.n_layers)
    return np.isin(of_place, asked_layers), list_selection(asked_layers)


def _turned(
    inputs: BehaviorInputs,
    operator: Operator,
    places: Bool[np.ndarray, " k"],
    *,
    method: str,
    selection: str,
    control: bool = False,
    seed: int | None = None,
    gate: TokenGate | None = None,
    basis: Float64[np.ndarray, "2 d"] | None = None,
    notes: tuple[str, ...] = (),
) -> Candidate:
    """Turn some norm outputs in one plane."""
    scores = inputs.plane.scores
    zero = [f"{scores.sites[k]} {scores.layers[k]}" for k in np.flatnonzero(scores.zero)]
    if zero and basis is None:
        notes = (*notes, f"left out of the plane, for both classes are equal: {', '.join(zero)}")
    basis = inputs.plane.basis if basis is None else basis
    return Candidate(
        method=method,
        behavior=inputs.behavior,
        operator=operator,
        control=control,
        selection=selection,
        seed=seed,
        notes=notes,
        make=same_for_all(_at_places(inputs, operator, places, basis, method, gate)),
    )


def _at_places(
    inputs: BehaviorInputs,
    operator: Operator,
    places: Bool[np.ndarray, " k"],
    basis: Float64[np.ndarray, "2 d"],
    method: str,
    gate: TokenGate | None,
) -> AnySteering:
    """One steering a site, of all its blocks."""
    scores = inputs.plane.scores
    of_site: dict[str, list[int]] = {}
    for k in np.flatnonzero(places):
        of_site.setdefault(scores.sites[k], []).append(scores.layers[k])
    parts = [
        inputs.steering(
            operator,
            cast("SteeringSite", site),
            layers,
            np.broadcast_to(basis, (len(layers), *basis.shape)),
            method=method,
            tokens="all",
            gate=gate,
        )
        for site, layers in of_site.items()
    ]
    return summed(parts)


def _gate_notes(inputs: BehaviorInputs, places: Bool[np.ndarray, " k"]) -> tuple[str, ...]:
    """Say so where all tokens of train rows pass the gate, or none."""
    plane, store = inputs.plane, inputs.store
    passed = read = 0
    for position in dict.fromkeys(plane.scores.positions):
        for k in np.flatnonzero(places):
            values = store.resid(position, site=plane.scores.sites[k])
            projected = (
                np.asarray(values.layer(plane.scores.layers[k], rows=inputs.train), np.float64)
                @ plane.basis[0]
            )
            passed, read = passed + int((projected > 0).sum()), read + len(projected)
    if passed not in (0, read):
        return ()
    return (f"its gate passes {'all' if passed else 'none'} of the {read} values of train rows",)
