"""CAST: steer a row only if its prompt is like the behavior's (arXiv 2409.05907).

The condition is found on train rows of the store, without the model: the difference of mean block
inputs of the behavior's prompts and of all others', the layer, threshold and side with the largest
F1 (IBM/activation-steering, `find_best_condition_point`).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float64

from actcache.analysis.generation.methods.behavior import BehaviorInputs, chosen_layers
from actcache.analysis.generation.methods.candidate import Candidate
from actcache.errors import MismatchError
from actcache.steering.gates import PromptGate, PromptPart
from actcache.steering.prompt_gates import gate_similarities, is_met, store_similarities
from actcache.steering.steering import AnySteering
from actcache.store.store import Store

THRESHOLDS = np.arange(0, 1.005, 0.01)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A gate, and how well it tells the train rows apart."""

    gate: PromptGate
    f1: float


def cast(inputs: BehaviorInputs) -> Candidate:
    """Add CAA's vector to the rows whose prompts meet the condition.

    Rows of the store are decided from the store; other prompts by the model, unsteered.
    """
    store, behavior = inputs.store, inputs.behavior
    condition = find_condition(store, members=_members(inputs), train=_train(inputs))
    gate = condition.gate
    layers = chosen_layers(inputs)
    if layers.per_row:
        raise MismatchError(
            "layers are predicted, but cast steers all of its rows at the same ones, expected "
            "fixed, discriminative or numbers. Pass one of these with --layers."
        )
    chosen = layers.of_row(None)
    steering = inputs.steering(
        "add", "resid_post", chosen, inputs.direction[list(chosen)], method="cast", tokens="all"
    )
    gated = inputs.steering(
        "add",
        "resid_post",
        chosen,
        inputs.direction[list(chosen)],
        method="cast",
        tokens="all",
        gate=gate,
    )

    @cache
    def passes(row: int) -> bool:
        return bool(is_met(gate, store_similarities(store, gate, np.array([row])))[0])

    def make(row: int | None) -> AnySteering | None:
        if row is None:
            return gated
        return steering if passes(row) else None

    return Candidate(
        method="cast",
        behavior=behavior,
        operator="add",
        selection=layers.selection,
        notes=(*layers.notes, *_notes(inputs, condition)),
        make=make,
    )


def find_condition(
    store: Store, *, members: Bool[np.ndarray, " n"], train: Bool[np.ndarray, " n"]
) -> Condition:
    """Find the gate that tells two sets of train prompts apart best.

    It reads one block's input. Ties go to the lower layer, then to `above`, then to the middle of
    the tied thresholds.

    Args:
        store: with the position `mean` or `prompt` of `resid_post`.
        members: rows that should meet the condition.
        train: rows to search on, of both kinds.

    Raises:
        MismatchError: the rows are all of one kind, or their prompts are alike at every layer.
    """
    positive = members[train]
    if positive.all() or not positive.any():
        raise MismatchError(
            f"{positive.sum()} of {len(positive)} train rows are of the behavior, expected others "
            "too: cast steers where a prompt is like the behavior's, and needs prompts that are "
            "not. Build from two or more behaviors, or leave cast out."
        )
    over: PromptPart = "mean" if "resid_post/mean" in store.arrays else "last"
    position = "mean" if over == "mean" else "prompt"
    best: Condition | None = None
    first = 0 if f"embed/{position}" in store.arrays else 1
    for layer in range(first, store.n_layers):
        site = "resid_post" if layer else "embed"
        values = store.residuals(position, site=site).layer(max(layer - 1, 0), rows=train)
        h = np.asarray(values, np.float64)
        difference = h[positive].mean(0) - h[~positive].mean(0)
        if not difference.any():
            continue
        gate = PromptGate(
            layers=(layer,), vectors=difference[None].astype(np.float32), threshold=0.0, over=over
        )
        similarity = gate_similarities(gate, h[:, None])[:, 0]
        for above in (True, False):
            scores = _f1(similarity, positive, above=above)
            if best is None or scores.max() > best.f1:
                tied = THRESHOLDS[scores == scores.max()]
                threshold = float(tied[len(tied) // 2])
                best = Condition(
                    gate=PromptGate(
                        layers=gate.layers,
                        vectors=gate.vectors,
                        threshold=threshold,
                        above=above,
                        over=over,
                    ),
                    f1=float(scores.max()),
                )
    if best is None:
        raise MismatchError(
            "prompts of the behavior and others have equal means at every layer, expected a "
            "difference for cast. Build with --positions prompt,mean,positive,negative."
        )
    return best


def _f1(
    similarity: Float64[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], *, above: bool
) -> Float64[np.ndarray, " t"]:
    """F1 of every threshold; 0 where no row passes."""
    side = similarity > THRESHOLDS[:, None] if above else similarity < THRESHOLDS[:, None]
    right = (side & positive).sum(1)
    return np.asarray(2 * right / (side.sum(1) + positive.sum()))


def _members(inputs: BehaviorInputs) -> Bool[np.ndarray, " n"]:
    """Rows to steer: the behavior's, or those of the positive label."""
    if inputs.labels:
        return np.asarray(inputs.rows & (inputs.store["label"] == inputs.labels[0]))
    return inputs.rows


def _train(inputs: BehaviorInputs) -> Bool[np.ndarray, " n"]:
    """Unframed train rows; of labels, those of either."""
    if inputs.labels:
        return inputs.train
    store = inputs.store
    return np.asarray((store["split"] == "train") & (store["variant"] == "base"))


def _notes(inputs: BehaviorInputs, condition: Condition) -> tuple[str, ...]:
    """Say where the gate reads, and which held-out rows pass."""
    gate, store = condition.gate, inputs.store
    held_out = (store["split"] != "train") & (store["variant"] == "base")
    if inputs.labels:
        held_out &= inputs.rows
    met = is_met(gate, store_similarities(store, gate, held_out))
    members = _members(inputs)[held_out]
    side = "above" if gate.above else "below"
    note = (
        f"steers where the cosine at block {gate.layers[0]} is {side} {gate.threshold:.2f} "
        f"(F1 {condition.f1:.2f} on train): {met[members].sum()} of {members.sum()} held-out rows, "
        f"and {met[~members].sum()} of {(~members).sum()} others"
    )
    if len(set(met[members].tolist())) != 1:
        return (note,)
    return note, f"its gate passes {'all' if met[members].all() else 'none'} of its held-out rows"
