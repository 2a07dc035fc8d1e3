"""Show how well the demo model does what the demo needs: `python -m benchmarks.demo_model.evaluate`.

Written in plain transformers and torch on purpose (whole forward passes with a hook, nothing
cached), so that it also checks the rest of the package. Every figure but the
choice of the fixed layer is of the `test` rows, whose statements the model never saw in training.
The directions and the fixed layer of each behavior come from its `train` rows.

- Persona: the share of answers that are right when the system message states a persona, over
  both personas.
- Undecided: with no persona, the share of rows with P(matching answer) in 0.35 to 0.65, and the
  mean of P(A).
- Steered: with no persona, the slope over the multipliers of logit(matching letter) minus
  logit(other letter), when multiplier times direction is added to the residual after one block at
  the "(" token; a sample is steered if its slope is positive. The direction is the mean over rows
  of the residual at the letter of the positive completion minus that of the negative one.
- Random: the same with random directions of the same norm, at the same layer. A direction and its
  opposite have opposite slopes, so one half is what to expect; `random passes` is the share of
  random directions that steer 80 % of the samples for both letters, and `slope random size` the
  mean absolute value of their mean slopes.
- By wording: of the behaviors whose questions have two wordings, the mean slope of each.
- Oracle: the mean slope when each sample picks its own best layer; and cross-fitted, where the
  layer is chosen with the multipliers of size 0.5 and 1.5 and the slope is taken from those of 1.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actcache import demo
from benchmarks.demo_model import data
from benchmarks.demo_model.dialogues import N_LAYERS

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
CHOOSE, SCORE = (0, 2, 4, 6), (1, 5)
"""Places in `MULTIPLIERS` that choose the cross-fitted oracle's layer, and that score it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts that end in "(", and each prompt's matching letter."""

    ids: Tensor
    """`[n, t]`, padded on the right."""
    fork: Tensor
    """`[n]`, position of "("."""
    is_a: NDArray[np.bool_]
    """`[n]`, whether the matching answer is A."""


class Demo:
    """The model with its tokenizer, and the few passes that the figures need."""

    def __init__(self, folder: Path) -> None:
        # Any: the types that transformers gives are too loose
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.letters = [self.tokenizer.convert_tokens_to_ids(x) for x in "AB"]
        self.layers = self.model.model.layers

    def prompts(self, rows: list[dict[str, str]], persona: str | None = None) -> Prompts:
        """Render and tokenize rows, each followed by " ("."""
        system = [{"role": "system", "content": persona}] if persona else []
        texts = [
            self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": row["prompt"]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            + " ("
            for row in rows
        ]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = max(map(len, ids)) + 1  # one more for the letter
        pad = self.tokenizer.pad_token_id
        return Prompts(
            ids=torch.tensor([x + [pad] * (width - len(x)) for x in ids]),
            fork=torch.tensor([len(x) - 1 for x in ids]),
            is_a=np.array([row["positive"] == "(A)" for row in rows]),
        )

    @torch.inference_mode()
    def margin(
        self, prompts: Prompts, layer: int = 0, delta: Tensor | None = None
    ) -> tuple[Floats, Floats]:
        """Return logit(A) - logit(B) at "(", and the probability of both together, `[n]` each.

        Padding needs no mask: it comes after every token that is read, and attention is causal.
        """
        n = torch.arange(len(prompts.ids))

        def add(_module: Any, _args: Any, resid: Tensor) -> Tensor:
            assert delta is not None
            return resid.index_put((n, prompts.fork), delta, accumulate=True)

        hook = self.layers[layer].register_forward_hook(add) if delta is not None else None
        try:
            logits = self.model(prompts.ids, use_cache=False).logits[n, prompts.fork].double()
        finally:
            if hook is not None:
                hook.remove()
        a, b = logits[:, self.letters[0]], logits[:, self.letters[1]]
        both = logits.softmax(-1)[:, self.letters].sum(-1)
        return (a - b).numpy(), both.numpy()

    @torch.inference_mode()
    def letter_residuals(self, prompts: Prompts, letters: NDArray[np.bool_]) -> Tensor:
        """Return the residual after each block at the letter, `[n, layer, d_model]`; True is A."""
        n = torch.arange(len(prompts.ids))
        ids = prompts.ids.clone()
        a, b = self.letters
        ids[n, prompts.fork + 1] = torch.tensor([a if x else b for x in letters])
        residuals: list[Tensor] = []

        def read(_module: Any, _args: Any, resid: Tensor) -> None:
            residuals.append(resid[n, prompts.fork + 1])

        hooks = [layer.register_forward_hook(read) for layer in self.layers]
        self.model(ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.stack(residuals, 1)

    def direction(self, prompts: Prompts) -> Tensor:
        """Return the difference of means at the letter token, `[layer, d_model]`."""
        positive = self.letter_residuals(prompts, prompts.is_a)
        negative = self.letter_residuals(prompts, ~prompts.is_a)
        return (positive - negative).mean(0)

    def sweep(self, prompts: Prompts, direction: Tensor, layers: list[int]) -> Floats:
        """Return logit(matching) - logit(other), `[n, layer, multiplier]`."""
        sign = np.where(prompts.is_a, 1.0, -1.0)
        plain = self.margin(prompts)[0]  # multiplier 0: the same at every layer
        return np.stack(
            [
                np.stack(
                    [
                        sign
                        * (self.margin(prompts, layer, m * direction[layer])[0] if m else plain)
                        for m in MULTIPLIERS
                    ],
                    -1,
                )
                for layer in layers
            ],
            1,
        )


def slope(scores: Floats, places: tuple[int, ...] = tuple(range(len(MULTIPLIERS)))) -> Floats:
    """Fit the least-squares slope over the multipliers at `places`, along the last axis."""
    x = np.array(MULTIPLIERS)[list(places)]
    x = x - x.mean()
    result: Floats = scores[..., list(places)] @ x / (x @ x)
    return result


def evaluate_behavior(
    model: Demo, file: Path, personas: dict[str, str], *, n_random: int, seed: int
) -> dict[str, float]:
    """Return all figures of one behavior."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    train, test = ([r for r in rows if r["split"] == s] for s in ("train", "test"))
    figures: dict[str, float] = {}

    right, parses = [], []
    for pole, sign in (("positive", 1.0), ("negative", -1.0)):
        prompts = model.prompts(test, personas[pole])
        margin, both = model.margin(prompts)
        right.append(margin * np.where(prompts.is_a, sign, -sign) > 0)
        parses.append(both)
    figures["persona_right"] = float(np.mean(right))
    figures["letter_probability"] = float(np.mean(parses))

    prompts = model.prompts(test)
    p_a = 1 / (1 + np.exp(-model.margin(prompts)[0]))
    figures["undecided"] = float(np.mean((p_a >= 0.35) & (p_a <= 0.65)))
    figures["mean_p_a"] = float(p_a.mean())

    train_prompts = model.prompts(train)
    direction = model.direction(train_prompts)
    layers = list(range(len(direction)))
    train_slope = slope(model.sweep(train_prompts, direction, layers)).mean(0)
    fixed = int(train_slope.argmax())
    scores = model.sweep(prompts, direction, layers)
    slopes = slope(scores)
    figures["layer"] = fixed
    figures["norm"] = float(direction[fixed].norm())
    for name, mask in (("a", prompts.is_a), ("b", ~prompts.is_a)):
        figures[f"steered_{name}"] = float((slopes[mask, fixed] > 0).mean())
    figures["steered"] = float((slopes[:, fixed] > 0).mean())

    generator = torch.Generator().manual_seed(seed)
    shares, sizes = [], []
    for _ in range(n_random):
        noise = torch.randn(direction.shape, generator=generator)
        noise *= direction.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        control = slope(model.sweep(prompts, noise, [fixed]))[:, 0]
        shares.append([(control[m] > 0).mean() for m in (prompts.is_a, ~prompts.is_a)])
        sizes.append(abs(control.mean()))
    figures["random_a"], figures["random_b"] = (float(x) for x in np.mean(shares, 0))
    figures["random"] = float(np.mean(shares))
    figures["random_passes"] = float(np.mean(np.min(shares, 1) >= 0.8))
    figures["slope_random_size"] = float(np.mean(sizes))

    best = slope(scores, CHOOSE).argmax(1)
    held = slope(scores, SCORE)
    n = np.arange(len(held))
    figures["slope_fixed"] = float(slopes[:, fixed].mean())
    figures["slope_oracle"] = float(slopes.max(1).mean())
    figures["slope_fixed_scored"] = float(held[:, fixed].mean())
    figures["slope_crossfit_scored"] = float(held[n, best].mean())
    figures["best_layer_differs"] = float((best != fixed).mean())
    for layer in layers:
        figures[f"steered_layer_{layer}"] = float((slopes[:, layer] > 0).mean())
        figures[f"slope_layer_{layer}"] = float(slopes[:, layer].mean())
    thought = np.array([row["prompt"].startswith(data.THINK) for row in test])
    if thought.any():  # a behavior of two wordings
        for wording, mask in (("plain", ~thought), ("thought", thought)):
            for layer in layers:
                figures[f"slope_{wording}_layer_{layer}"] = float(slopes[mask, layer].mean())
    return figures


def evaluate(
    folder: Path | None = None, *, n_random: int = 10, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the figures of each behavior, and under `mean`, `min` and `max` those over all.

    Args:
        folder: a folder that holds `model/`, `rows/` and `personas.json`; the shipped one if None.
        n_random: random directions drawn for each behavior.
        seed: seed of the first behavior's random directions; each further behavior adds one.
    """
    model = Demo(folder / "model" if folder else demo.model_path())
    files = sorted((folder / "rows").glob("*.jsonl")) if folder else demo.row_files()
    lines = (folder / "personas.json" if folder else demo.personas_path()).read_text("utf-8")
    result = {
        file.stem: evaluate_behavior(
            model, file, json.loads(lines)[file.stem], n_random=n_random, seed=seed + number
        )
        for number, file in enumerate(files)  # a seed each: independent random directions
    }
    behaviors = list(result.values())
    names = dict.fromkeys(name for figures in behaviors for name in figures)
    for label, reduce in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        result[label] = {  # a figure that not all behaviors have is of those that do
            name: float(reduce([figures[name] for figures in behaviors if name in figures]))
            for name in names
        }
    return result


ANSWERS = ("persona_right", "letter_probability", "undecided", "mean_p_a")
STEERING = ("layer", "norm", "steered_a", "steered_b", "random_a", "random_b", "random_passes")
SLOPES = (
    "slope_fixed",
    "slope_random_size",
    "slope_oracle",
    "slope_fixed_scored",
    "slope_crossfit_scored",
    "best_layer_differs",
)
TITLES = {
    ANSWERS: "Answers to held-out statements",
    STEERING: "Share of held-out samples steered, matching answer A or B",
    SLOPES: "Mean slopes of held-out samples (scored: from multipliers of size 1)",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder",
        type=Path,
        help="a folder that benchmarks.demo_model.train wrote; default: the shipped model",
    )
    parser.add_argument("--n-random", type=int, default=10, help="random directions a behavior")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    result = evaluate(args.folder, n_random=args.n_random)
    if args.json:
        print(json.dumps(result))
        return
    console = Console(width=100)
    for names, title in TITLES.items():
        table = Table("behavior", *(name.replace("_", " ") for name in names), title=title)
        for label, values in result.items():
            table.add_row(label, *(f"{values[name]:.3g}" for name in names))
        console.print(table)
    shown = ("steered", "slope", "slope_plain", "slope_thought")
    table = Table(
        *("after block", "steered", "slope", "two wordings: plain", "Think first."),
        title="Test rows, mean over behaviors",
    )
    for layer in range(N_LAYERS):
        table.add_row(str(layer), *(f"{result['mean'][f'{x}_layer_{layer}']:.3f}" for x in shown))
    console.print(table)


if __name__ == "__main__":
    main()
