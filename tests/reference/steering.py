"""Steered generation by its definition: one row, no cache, no padding, every step a whole pass.

Written apart from `actcache.steering`: operators are dense matrices in float64, each family's
modules are named by hand, and the steered tokens are a list of positions.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from actcache.steering import PromptGate, Steering, TokenGate

LLAMA = {
    "ln1": "input_layernorm",
    "attn_out": "self_attn",
    "ln2": "post_attention_layernorm",
    "mlp_out": "mlp",
}
GEMMA = {
    "ln1": "input_layernorm",
    "attn_out": "post_attention_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}
GPT2 = {"ln1": "ln_1", "attn_out": "attn", "ln2": "ln_2", "mlp_out": "mlp"}
MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "gpt2": ("transformer.h", GPT2),
    "gpt_neo": ("transformer.h", GPT2),
    "gpt_neox": ("gpt_neox.layers", {**LLAMA, "attn_out": "attention"}),
    "opt": (
        "model.decoder.layers",
        {
            "ln1": "self_attn_layer_norm",
            "attn_out": "self_attn",
            "ln2": "final_layer_norm",
            "mlp_out": "fc2",
        },
    ),
    "gemma2": ("model.layers", GEMMA),
    "gemma3": ("model.layers", GEMMA),
    "bloom": (
        "transformer.h",
        {**LLAMA, "attn_out": "self_attention.dense", "mlp_out": "mlp.dense_4h_to_h"},
    ),
    "cohere": (
        "model.layers",
        {"ln1": "input_layernorm", "attn_out": "self_attn", "mlp_out": "mlp"},
    ),
}
"""For each family its list of blocks, and the module in a block whose output is a site; families
that are not here are named as Llama's."""

ADDED_TIMES = {"granite": 0.5}
"""What attention and MLP put out is multiplied by this before it is added."""


def blocks_of(hf, family: str):
    return hf.get_submodule(MODULES.get(family, ("model.layers", LLAMA))[0])


def sites_of(family: str):
    """The sites that a family's blocks have."""
    return ("resid_post", "resid_pre", *MODULES.get(family, ("", LLAMA))[1])


def steered_vector(part: Steering, k: int, a: np.ndarray, token: int):
    """One token's value `a` [d], steered by a part at its k-th layer."""
    a, s, eye = a.astype(np.float64), part.strength, np.eye(len(a))
    if part.tokens == "front":
        changed = a + s * part.vectors[token].astype(np.float64)
    elif part.operator == "add":
        changed = a + s * part.vectors[k].astype(np.float64)
    elif part.operator in ("ablate", "set"):
        b = part.vectors[k].astype(np.float64)
        projector = np.outer(b, b)
        changed = (
            (eye - s * projector) @ a
            if part.operator == "ablate"
            else (eye - projector) @ a + s * b
        )
    else:
        basis = part.vectors[k].astype(np.float64).T  # [d, 2]
        projector = basis @ basis.T
        cos, sin = np.cos(np.deg2rad(s)), np.sin(np.deg2rad(s))
        if part.operator == "turn_to":
            changed = a - projector @ a + np.linalg.norm(basis.T @ a) * basis @ np.array([cos, sin])
        else:
            turn = np.array([[cos, -sin], [sin, cos]])
            changed = (eye - projector + basis @ turn @ basis.T) @ a
    if isinstance(part.gate, TokenGate):
        b = part.vectors[k].reshape(-1, len(a))[0].astype(np.float64)
        if not a @ b / np.linalg.norm(b) > part.gate.threshold:
            return a
    if part.renorm:
        changed = changed * np.linalg.norm(a) / np.linalg.norm(changed)
    return changed


def steered_positions(part: Steering, n_prompt: int, n: int) -> list[int]:
    """Which of a sequence's n tokens are steered."""
    positions = []
    for i in range(n):
        last = n_prompt - 1
        meant = {
            "all": True,
            "prompt": i >= last,
            "completion": i > last,
            "front": i < len(part.vectors) and i <= last,
        }[part.tokens]
        if part.window is not None:
            step = i - last if i > last else 0  # all of the prompt is computed in step 0
            start, stop = part.window
            meant = meant and start <= step and (stop is None or step < stop)
        if meant:
            positions.append(i)
    return positions


class Placed:
    """Hooks on one model by hand, for one prompt: in `batch` rows of equal length (beams)."""

    def __init__(
        self, hf, family: str, parts: Sequence[Steering], n_prompt: int, *, batch: int = 1
    ):
        self.hf, self.family, self.n_prompt, self.batch = hf, family, n_prompt, batch
        self.places: dict[tuple[str, int], list[tuple[Steering, int]]] = {}
        for part in parts:
            for k, layer in enumerate(part.layers):
                self.places.setdefault((part.site, layer), []).append((part, k))

    def __enter__(self):
        self.handles = []
        for (site, layer), parts in self.places.items():
            block = blocks_of(self.hf, self.family)[layer]
            if site == "resid_pre":
                self.handles.append(
                    block.register_forward_pre_hook(self._before(parts), with_kwargs=True)
                )
                continue
            path = MODULES.get(self.family, ("", LLAMA))[1].get(site)
            module = block if site == "resid_post" else block.get_submodule(path)
            scale = ADDED_TIMES.get(self.family, 1.0) if site in ("attn_out", "mlp_out") else 1.0
            self.handles.append(module.register_forward_hook(self._after(parts, scale)))
        return self

    def __exit__(self, *_error):
        for handle in self.handles:
            handle.remove()

    def _before(self, parts):
        def hook(_module, args, kwargs):
            if args:
                return (self._change(parts, args[0], 1.0), *args[1:]), kwargs
            return args, {
                **kwargs,
                "hidden_states": self._change(parts, kwargs["hidden_states"], 1.0),
            }

        return hook

    def _after(self, parts, scale):
        def hook(_module, _args, output):
            if isinstance(output, tuple):
                return (self._change(parts, output[0], scale), *output[1:])
            return self._change(parts, output, scale)

        return hook

    def _change(self, parts, value, scale):
        # OPT's MLP has no batch axis.
        wide = value.reshape(self.batch, -1, value.shape[-1]).double().numpy() * scale
        for row in wide:
            for part, k in parts:
                for i in steered_positions(part, self.n_prompt, len(row)):
                    row[i] = steered_vector(part, k, row[i], i)
        return torch.from_numpy(wide / scale).to(value.dtype).reshape(value.shape)


@lru_cache(maxsize=64)
def gate_similarities(hf, prompt: tuple[int, ...], gate: PromptGate) -> list[float]:
    """How like its condition the unsteered prompt is, at each layer of a gate."""
    with torch.no_grad():
        states = hf(
            torch.tensor([prompt]), use_cache=False, output_hidden_states=True
        ).hidden_states
    similarities = []
    for layer, condition in zip(gate.layers, gate.vectors.astype(np.float64), strict=True):
        tokens = states[layer][0].double().numpy()  # below the last, the input of this block
        h = tokens.mean(0) if gate.over == "mean" else tokens[-1]
        squashed = np.tanh(np.outer(condition, condition) @ h / (condition @ condition))
        similarities.append(h @ squashed / (np.linalg.norm(h) * np.linalg.norm(squashed)))
    return similarities


def gate_is_met(hf, prompt: tuple[int, ...], gate: PromptGate) -> bool:
    similarities = gate_similarities(hf, prompt, gate)
    if gate.above:
        return any(similarity > gate.threshold for similarity in similarities)
    return any(similarity < gate.threshold for similarity in similarities)


def open_parts(hf, prompt: tuple[int, ...], steering) -> list[Steering]:
    """The parts that act on a prompt: those without a gate for prompts, or with one that is met."""
    return [
        part
        for part in (steering.parts if steering is not None else ())
        if not isinstance(part.gate, PromptGate) or gate_is_met(hf, prompt, part.gate)
    ]


def reference_generate(hf, family: str, prompt: tuple[int, ...], steering, *, steps: int):
    """Generate greedily: the tokens, and the logits [steps, vocabulary] that chose them."""
    tokens, logits = list(prompt), []
    with Placed(hf, family, open_parts(hf, prompt, steering), len(prompt)), torch.no_grad():
        for _ in range(steps):
            logits.append(hf(torch.tensor([tokens]), use_cache=False).logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)
