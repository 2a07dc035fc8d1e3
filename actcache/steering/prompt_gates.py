"""Decide prompt gates (CAST): once for each row, from the prompt as the unsteered model reads it.

A layer's similarity is cos(h, tanh(ĉ (ĉ·h))), of the block input h and the unit condition ĉ (arXiv
2409.05907; IBM/activation-steering, `leash_layer.py`). h is the mean over the prompt's real tokens,
or its last token; IBM's mean counts padding too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from actcache.errors import MismatchError
from actcache.steering.gates import PROMPT_PARTS, PromptGate
from actcache.steering.steering import AnySteering, Steering, SteeringSum

if TYPE_CHECKING:
    from torch import Tensor

    from actcache.engine.model import LanguageModel
    from actcache.store import Store

BATCH_TOKENS = 8192
"""Tokens in one pass over prompts, padding included."""


def decide_gates(
    model: "LanguageModel", prompts: Sequence[Sequence[int]], gates: Sequence[PromptGate]
) -> Bool[np.ndarray, " n"]:
    """Decide which prompts meet the condition of their gate.

    Args:
        model: the model; prompts pass through it unsteered.
        prompts: token ids of `n` prompts, without padding.
        gates: one a prompt.

    Raises:
        MismatchError: an empty prompt, another number of gates, or a layer that the model lacks.
    """
    if len(gates) != len(prompts):
        raise MismatchError(
            f"there are {len(prompts)} prompts and {len(gates)} gates, expected one gate a prompt. "
            "Repeat a gate for every prompt that it is for."
        )
    if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
        raise MismatchError(
            f"prompt {empty[0]} is empty, expected at least one token. Leave the row out."
        )
    layers = sorted({layer for gate in gates for layer in gate.layers})
    if layers and not 0 <= layers[0] <= layers[-1] < model.n_layers:
        raise MismatchError(
            f"a gate reads layers {layers[0]} to {layers[-1]}, expected 0 to {model.n_layers - 1} "
            f"of '{model.name}'. Use conditions of this model."
        )
    inputs = _read_prompts(model, prompts, layers)
    return np.array(
        [
            is_met(gate, gate_similarities(gate, inputs[gate.over][row : row + 1, columns]))[0]
            for row, gate in enumerate(gates)
            for columns in [np.searchsorted(layers, gate.layers)]
        ],
        bool,
    )


def gate_similarities(
    gate: PromptGate, inputs: Float[np.ndarray, "n k d"]
) -> Float64[np.ndarray, "n k"]:
    """Compute how like the condition the block inputs are, at each of the gate's layers."""
    h, condition = inputs.astype(np.float64), gate.vectors.astype(np.float64)
    condition = condition / np.linalg.norm(condition, axis=-1, keepdims=True)
    projected = np.tanh((h * condition).sum(-1, keepdims=True) * condition)
    norms = np.linalg.norm(h, axis=-1) * np.linalg.norm(projected, axis=-1)
    product = (h * projected).sum(-1)
    similarities: np.ndarray = np.divide(product, norms, out=np.zeros_like(norms), where=norms > 0)
    return similarities


def is_met(gate: PromptGate, similarities: Float64[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Tell for which rows any layer's similarity lies on the gate's side of its threshold."""
    side = similarities > gate.threshold if gate.above else similarities < gate.threshold
    return np.asarray(side.any(-1))


def store_similarities(
    store: "Store", gate: PromptGate, rows: Int64[np.ndarray, " n"] | Bool[np.ndarray, " _"]
) -> Float64[np.ndarray, "n k"]:
    """Compute a gate's similarities from a store, without the model.

    A block's input is the residual after the block below it, or `embed`, read at the position
    `mean` or `prompt`. A store in float16 rounds them, by about 1e-3.

    Raises:
        ActcacheError: the store was built without such a position or site.
    """
    position = "mean" if gate.over == "mean" else "prompt"
    inputs = [
        store.residuals(position, site="resid_post" if layer else "embed").layer(
            max(layer - 1, 0), rows=rows
        )
        for layer in gate.layers
    ]
    return gate_similarities(gate, np.stack(inputs, 1))


def pass_prompt_gates(
    model: "LanguageModel",
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[AnySteering | None],
) -> list[AnySteering | None]:
    """Decide all prompt gates; parts whose gate is not met are left out, the others lose it.

    Raises:
        MismatchError: another number of prompts than of steerings, or as `decide_gates`.
    """
    if len(prompts) != len(steerings):
        raise MismatchError(
            f"there are {len(prompts)} prompts and {len(steerings)} steerings, expected one "
            "steering (or None) a prompt. Pass the rows' prompts in the order of the steerings."
        )
    gated = [
        (row, part.gate)
        for row, steering in enumerate(steerings)
        for part in (steering.parts if steering else ())
        if isinstance(part.gate, PromptGate)
    ]
    met = decide_gates(model, [prompts[row] for row, _ in gated], [gate for _, gate in gated])
    decisions = iter(met.tolist())
    passed: list[AnySteering | None] = []
    for steering in steerings:
        parts: list[Steering] = []
        for part in steering.parts if steering else ():
            if not isinstance(part.gate, PromptGate):
                parts.append(part)
            elif next(decisions):
                parts.append(replace(part, gate=None))
        passed.append(SteeringSum(tuple(parts)) if parts else None)
    return passed


def _read_prompts(
    model: "LanguageModel", prompts: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[str, Float64[np.ndarray, "n layer d"]]:
    """The input of some blocks, as the mean over each prompt and at its last token."""
    import torch

    from actcache.engine.batching import Budget, run_batches
    from actcache.engine.sites import find_taps

    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    values = {over: np.empty((len(distinct), len(layers), model.d_model)) for over in PROMPT_PARTS}
    taps = find_taps(model.anatomy, "resid_pre")

    def run(rows: Int64[np.ndarray, " b"]) -> None:
        width = max(len(distinct[row]) for row in rows)
        ids, mask = np.zeros((2, len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, width - len(distinct[row]) :] = distinct[row]
            mask[i, width - len(distinct[row]) :] = 1
        real = torch.from_numpy(mask).to(model.device)

        def keep(number: int) -> "Callable[[Tensor], None]":
            def keep(value: "Tensor") -> None:
                mask = real.to(value.device, torch.bool)[..., None]
                wide = torch.promote_types(value.dtype, torch.float32)
                total = torch.where(mask, value, 0).sum(1, dtype=wide)
                values["mean"][rows, number] = (total / mask.sum(1)).cpu().numpy()
                values["last"][rows, number] = value[:, -1].to(total.dtype).cpu().numpy()

            return keep

        handles = [taps[layer].attach(keep(number)) for number, layer in enumerate(layers)]
        try:
            with torch.inference_mode():
                model.anatomy.decoder(
                    input_ids=torch.from_numpy(ids).to(model.device),
                    attention_mask=real,
                    position_ids=(real.cumsum(1) - 1).clamp_min(0),
                    use_cache=False,
                )
        finally:
            for handle in handles:
                handle.remove()

    run_batches([len(prompt) for prompt in distinct], budget=Budget(BATCH_TOKENS), run=run)
    number = {prompt: i for i, prompt in enumerate(distinct)}
    order = [number[tuple(prompt)] for prompt in prompts]
    return {over: array[order] for over, array in values.items()}
