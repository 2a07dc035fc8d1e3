"""What do build and sweep cost at the shape of Llama-2-7B beside the naive loops?

Random weights made on the device; `--shape tiny` runs the same code on a CPU. The naive
loop is a full forward for every layer, multiplier and completion, at batch size 1 (as steering-bench
does) and over length-sorted batches of all prompts. It is timed on a sample of the cells and scaled
up, and the figures say so. Utilisation is the floating-point operations of the tokens that are run,
without padding, over the peak of `--peak-tflops` or of the device's data sheet.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actcache.engine.batching import Budget, plan_batches, run_batches
from actcache.engine.forward import residual_of
from actcache.engine.model import LanguageModel
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.engine.tree_capture import capture, tokens_run
from actcache.prompts.render import Rendered
from actcache.prompts.token_tree import Tree, pack_trees
from benchmarks.support.models import plain_forwards, random_llama, random_rows
from benchmarks.support.turns import arguments, in_turns, ratio, report

MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
POSITIONS = ("prompt", "fork", "positive", "negative")
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense bfloat16 tensor operations, 1e12 a second, by the makers' data sheets (SXM)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, and of its prompts."""

    layers: int
    d_model: int
    heads: int
    mlp: int
    vocab: int
    tokens: int

    def flops(self, tokens: int, *, seen: int, layers: int | None = None) -> float:
        """Count operations of `tokens` tokens that see `seen` others each, through some blocks."""
        weights = 4 * self.d_model**2 + 3 * self.d_model * self.mlp
        blocks = self.layers if layers is None else layers
        return tokens * blocks * 2.0 * (weights + 2 * seen * self.d_model)

    def unembedding(self, tokens: int) -> float:
        """Count operations of the logits of `tokens` tokens."""
        return tokens * 2.0 * self.d_model * self.vocab


SHAPES = {
    "7b": Shape(layers=32, d_model=4096, heads=32, mlp=11008, vocab=32000, tokens=150),
    "tiny": Shape(layers=4, d_model=64, heads=4, mlp=128, vocab=97, tokens=12),
}


def naive(
    model: LanguageModel,
    rows: Sequence[Rendered],
    direction: Tensor,
    multiplier: float,
    layer: int,
    rule: SteeringRule,
    *,
    budget: int,
) -> np.ndarray:
    """Return the propensity `[n]` of one layer and multiplier: two full forwards a row."""
    push = (multiplier * direction).to(model.device)
    totals = np.zeros((2, len(rows)))
    sides = [row.positive for row in rows], [row.negative for row in rows]
    for side, completions in enumerate(sides):
        sequences = [
            (*row.chain, *completion) for row, completion in zip(rows, completions, strict=True)
        ]
        for batch in plan_batches([len(sequence) for sequence in sequences], budget=budget):
            tree = pack_trees([Tree(sequences[i]) for i in batch], pad=0)
            forks = np.array([len(rows[i].chain) - 1 for i in batch])
            steered = torch.from_numpy(np.arange(tree.ids.shape[1]) >= forks[:, None])
            with torch.inference_mode(), _pushed(model.anatomy.blocks[layer], push, steered):
                logits = model.hf(
                    input_ids=torch.from_numpy(tree.ids).to(model.device),
                    attention_mask=torch.from_numpy(tree.valid).to(model.device, torch.int64),
                    position_ids=torch.from_numpy(tree.positions).to(model.device),
                    use_cache=False,
                ).logits
                for place, i in enumerate(batch):
                    target = completions[i] if rule.whole else completions[i][:1]
                    scores = logits[place, forks[place] : forks[place] + len(target)].float()
                    if rule.score == "logprob":
                        scores = torch.log_softmax(scores, -1)
                    ids = torch.tensor(target, device=scores.device)[:, None]
                    totals[side, i] = float(scores.gather(1, ids).sum())
    difference: np.ndarray = totals[0] - totals[1]
    return difference


@contextmanager
def _pushed(block: nn.Module, push: Tensor, steered: Tensor) -> Iterator[None]:
    """Add a vector to a block's output at some tokens."""

    def steer(_block: nn.Module, _args: Any, output: Any) -> Any:
        residual = residual_of(output)
        moved = residual + (steered.to(residual.device)[:, :, None] * push).to(residual.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = block.register_forward_hook(steer)
    try:
        yield
    finally:
        handle.remove()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", help="default: cuda for 7b, cpu for tiny")
    parser.add_argument("--n", type=int, default=128, help="prompts (default 128)")
    parser.add_argument("--score", default="logprob", choices=("letter", "logit", "logprob"))
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--cells", type=int, default=16, help="naive cells that are timed")
    parser.add_argument("--peak-tflops", type=float, help="of the device, bfloat16, dense")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    device = args.device or ("cuda" if args.shape == "7b" else "cpu")
    model = random_llama(
        layers=shape.layers,
        d_model=shape.d_model,
        heads=shape.heads,
        mlp=shape.mlp,
        vocab=shape.vocab,
        device=device,
        dtype=torch.bfloat16 if args.shape == "7b" else torch.float32,
    )
    rows = random_rows(args.n, tokens=shape.tokens, vocab=shape.vocab)
    figures = {
        **sweep_figures(model, shape, rows, args),
        **build_figures(model, shape, rows, args),
    }
    if device.startswith("cuda"):
        figures["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    about = {"model": model.name, "shape": args.shape, "device": device, "rows": len(rows),
             "score": args.score, "sampled cells": args.cells,
             "of cells": len(rows) * shape.layers * len(MULTIPLIERS)}  # fmt: skip
    report("gpu", figures, about=about)
    return figures


def sweep_figures(
    model: LanguageModel, shape: Shape, rows: Sequence[Rendered], args: Any
) -> dict[str, Any]:
    """Measure every layer × 7 multipliers × both completions, against both naive loops."""
    rule = SteeringRule(score=args.score)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(shape.layers, shape.d_model, generator=generator)
    rng = np.random.default_rng(0)
    all_cells = list(
        itertools.product(range(len(rows)), range(shape.layers), range(len(MULTIPLIERS)))
    )
    cells = [all_cells[i] for i in rng.choice(len(all_cells), args.cells, replace=False)]
    grid = list(itertools.product(range(shape.layers), range(len(MULTIPLIERS))))
    sampled = [grid[i] for i in rng.choice(len(grid), max(1, args.cells // 8), replace=False)]
    nodes = 3 if rule.whole else 1  # the fork, and each completion's letter
    in_cells = shape.layers * (len(MULTIPLIERS) - 1) * nodes
    fast = np.empty((len(rows), shape.layers, len(MULTIPLIERS)))
    one, many = np.empty(len(cells)), np.empty((len(sampled), len(rows)))
    budget = Budget(args.batch_tokens)

    def run(batch: np.ndarray) -> None:
        fast[batch] = score_grid(
            model,
            [rows[i] for i in batch],
            directions=directions[None],
            multipliers=MULTIPLIERS,
            rule=rule,
            layers=range(shape.layers),
        )[:, 0]

    def run_sweep() -> None:
        run_batches([row.length + in_cells for row in rows], budget=budget, run=run)

    def naive_one() -> None:
        for number, (i, layer, m) in enumerate(cells):
            one[number] = naive(
                model, [rows[i]], directions[layer], MULTIPLIERS[m], layer, rule, budget=1
            )[0]

    def naive_batched() -> None:
        for number, (layer, m) in enumerate(sampled):
            push, x = directions[layer], MULTIPLIERS[m]
            many[number] = naive(model, rows, push, x, layer, rule, budget=args.batch_tokens)

    took = in_turns(
        {"sweep": run_sweep, "one": naive_one, "batched": naive_batched}, repeats=args.repeats
    )
    seen = shape.tokens // 2
    passes = [len(row.chain) + len(row.positive) for row in rows]
    a_pass = 2 * sum(shape.flops(n, seen=seen) + shape.unembedding(n) for n in passes)
    # A cell of layer ℓ runs the blocks above ℓ.
    above = sum(shape.layers - 1 - layer for layer in range(shape.layers))
    per_row = shape.flops(nodes * (len(MULTIPLIERS) - 1), seen=shape.tokens, layers=above)
    read = nodes * (shape.layers * (len(MULTIPLIERS) - 1) + 1)
    in_sweep = sum(
        shape.flops(row.length, seen=seen) + per_row + shape.unembedding(read) for row in rows
    )
    in_one = sum(
        2 * (shape.flops(passes[i], seen=seen) + shape.unembedding(passes[i])) for i, _, _ in cells
    )
    apart_one = [np.abs(one[number] - fast[cell]) for number, cell in enumerate(cells)]
    apart_batched = [
        np.abs(many[number] - fast[:, layer, m]).max() for number, (layer, m) in enumerate(sampled)
    ]
    return {
        "sweep: naive at batch size 1 / ours (naive on a sample of cells)": len(all_cells)
        / len(cells)
        / ratio(took, "sweep", "one"),
        "sweep: naive batched / ours (naive on a sample of layers and multipliers)": len(grid)
        / len(sampled)
        / ratio(took, "sweep", "batched"),
        "sweep: seconds": min(took["sweep"]),
        "sweep: tokens in a pass at the end": budget.tokens,
        "sweep: largest difference from naive at batch size 1": float(max(apart_one)),
        "sweep: largest difference from naive batched": float(max(apart_batched)),
        "sweep: largest effect": float(np.abs(fast - fast[..., 3:4]).max()),
        **utilisation("sweep", in_sweep, took["sweep"], args),
        **utilisation("sweep, naive at batch size 1", in_one, took["one"], args),
        **utilisation("sweep, naive batched", a_pass * len(sampled), took["batched"], args),
    }


def build_figures(
    model: LanguageModel, shape: Shape, rows: Sequence[Rendered], args: Any
) -> dict[str, Any]:
    """Measure all layers at four tokens, copied to the host, against full forwards.

    No files are written: `benchmarks.store.speed` and `benchmarks.build.forwards --model` time them.
    """
    costs = [tokens_run(row, positions=POSITIONS, answer="first") for row in rows]
    both = [row.chain + row.positive for row in rows], [row.chain + row.negative for row in rows]
    few = range(0, len(rows), max(1, len(rows) // args.cells))
    budget = Budget(args.batch_tokens)

    def run(batch: np.ndarray) -> None:
        residuals = capture(
            model,
            [rows[i] for i in batch],
            positions=POSITIONS,
            answer="first",
            sites=("resid_post",),
        )
        residuals["resid_post"].cpu()

    def one() -> None:
        for i in few:
            for side in both:
                ids = torch.tensor([side[i]], device=model.device)
                with torch.inference_mode():
                    states = model.hf(ids, output_hidden_states=True, use_cache=False).hidden_states
                torch.stack([state[0, -4:] for state in states]).cpu()

    def batched() -> None:
        for side in both:
            plain_forwards(model, side, budget=args.batch_tokens, logits=True)

    variants = {
        "build": lambda: run_batches(costs, budget=budget, run=run),
        "one": one,
        "batched": batched,
    }
    took = in_turns(variants, repeats=args.repeats)
    seen = shape.tokens // 2
    ran = sum(shape.flops(n, seen=seen) for n in costs)
    plain = [2 * (shape.flops(len(s), seen=seen) + shape.unembedding(len(s))) for s in both[0]]
    return {
        "build: hidden states at batch size 1 / ours (on a sample of rows)": len(rows)
        / len(few)
        / ratio(took, "build", "one"),
        "build: two plain batched forwards / ours": 1 / ratio(took, "build", "batched"),
        "build: rows a second": len(rows) / min(took["build"]),
        **utilisation("build", ran, took["build"], args),
        **utilisation("build, batch size 1", sum(plain[i] for i in few), took["one"], args),
        **utilisation("build, plain batched", sum(plain), took["batched"], args),
    }


def utilisation(work: str, flops: float, seconds: Sequence[float], args: Any) -> dict[str, float]:
    """Return operations a second of the fastest round, and their share of a known peak."""
    rate = flops / 1e12 / min(seconds)
    figures = {f"{work}: TFLOP/s": rate}
    peak = args.peak_tflops
    if peak is None and torch.cuda.is_available() and args.shape == "7b":
        name = torch.cuda.get_device_name()
        peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak is not None:
        figures[f"{work}: share of the peak"] = rate / peak
    return figures


if __name__ == "__main__":
    main()
