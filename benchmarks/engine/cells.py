"""What does a sweep save where joined cells attend in two parts, and not under one dense mask?

`score_grid(…, dense=True)` is the pass before: one mask of joined tokens × (tree + joined tokens)
for each row. Both run in turns, CPU seconds of one thread; their scores are compared, and the masks
that they keep and the peak of their tensors counted.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from actcache.engine.batching import plan_batches
from actcache.engine.forward import JoinedCells, run_trees
from actcache.engine.model import LanguageModel
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.prompts.render import Rendered
from actcache.prompts.token_tree import pack_trees
from benchmarks.engine.sweep import MULTIPLIERS
from benchmarks.support.models import random_llama, random_rows
from benchmarks.support.turns import arguments, in_turns, ratio, report

VOCAB, SETS, NODES = 8192, 2, 3
"""Two direction sets; each cell replaces the fork and the letter of either completion."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model and its rows."""

    model: LanguageModel
    rows: Sequence[Rendered]
    budget: int
    """Tokens in a pass, joined ones included."""

    @property
    def n_joined(self) -> int:
        """Tokens that join for one row."""
        return NODES * SETS * self.model.n_layers * sum(x != 0 for x in MULTIPLIERS)

    def batches(self) -> list[list[Rendered]]:
        """The rows of each pass."""
        costs = [row.length + self.n_joined for row in self.rows]
        return [[self.rows[i] for i in batch] for batch in plan_batches(costs, budget=self.budget)]

    def sweep(
        self, *, dense: bool, batches: Sequence[Sequence[Rendered]], score: str
    ) -> np.ndarray:
        """Return the propensity of every row, set, layer and multiplier."""
        generator = torch.Generator().manual_seed(0)
        shape = (SETS, self.model.n_layers, self.model.d_model)
        return np.concatenate(
            [
                score_grid(
                    self.model,
                    rows,
                    directions=torch.randn(shape, generator=generator),
                    multipliers=MULTIPLIERS,
                    rule=SteeringRule(score=score),
                    layers=range(self.model.n_layers),
                    dense=dense,
                )
                for rows in batches
            ]
        )


def kept_masks(setting: Setting, *, dense: bool) -> int:
    """Bytes of the masks that the joined tokens of the first batch need."""
    rows, anatomy = setting.batches()[0], setting.model.anatomy
    tree = pack_trees([row.tree(1, 1) for row in rows], pad=0)
    # The fork, and behind it one letter of either branch.
    fork = torch.from_numpy(tree.branch_starts.min(1, keepdims=True)) - 1
    columns = fork + torch.arange(NODES)
    result = run_trees(anatomy, tree, read=columns, keep_cache=True)
    cells = JoinedCells(
        anatomy,
        result,
        columns=columns,
        live=torch.ones(columns.shape, dtype=torch.bool),
        prefix=torch.from_numpy(tree.valid) & (torch.arange(tree.ids.shape[1]) < fork),
        n_cells=setting.n_joined // NODES,
        dense=dense,
    )
    cells.run_block(1, result.residuals[:, 0].repeat(1, setting.n_joined // NODES, 1))
    return cells.mask_bytes


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest number of bytes of tensors made by `work` that were alive at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(max(itertools.accumulate(event.nbytes() for event in events)))


def compare(setting: Setting, *, score: str, repeats: int) -> dict[str, float]:
    """Measure one setting in turns."""
    batches, scores = setting.batches(), {}

    def run(name: str, *, dense: bool) -> Callable[[], None]:
        def work() -> None:
            scores[name] = setting.sweep(dense=dense, batches=batches, score=score)

        return work

    took = in_turns(
        {"dense": run("dense", dense=True), "split": run("split", dense=False)},
        repeats=repeats,
        clock=time.process_time,
    )
    masks = {dense: kept_masks(setting, dense=dense) for dense in (True, False)}
    # Logits, since a normalizer of the whole vocabulary would be larger than any mask.
    peaks = {
        dense: peak_bytes(partial(setting.sweep, dense=dense, batches=batches[:1], score="logit"))
        for dense in (True, False)
    }
    return {
        "dense / split, CPU time": ratio(took, "dense", "split"),
        "CPU seconds a row, split": min(took["split"]) / len(setting.rows),
        "masks kept, MB, dense": masks[True] / 1e6,
        "masks kept, MB, split": masks[False] / 1e6,
        "dense / split, masks": masks[True] / masks[False],
        "peak of tensors, MB, dense": peaks[True] / 1e6,
        "peak of tensors, MB, split": peaks[False] / 1e6,
        "largest difference of a score": float(np.abs(scores["dense"] - scores["split"]).max()),
        "largest effect": float(np.ptp(scores["split"], axis=-1).max()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[12, 32])
    parser.add_argument("--tokens", type=int, nargs="*", default=[128, 1024], help="of a prompt")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--score", default="logprob", choices=("logprob", "logit"))
    parser.add_argument("--n", type=int, default=4, help="rows (default 4)")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.tokens, args.d_model, args.n, args.repeats = [4], [16], 32, 2, 1
    torch.set_num_threads(args.threads)
    for layers, tokens in itertools.product(args.layers, args.tokens):
        setting = Setting(
            model=random_llama(
                layers=layers,
                d_model=args.d_model,
                heads=args.d_model // 32,
                mlp=args.d_model * 11 // 4,
                vocab=VOCAB,
            ),
            rows=random_rows(args.n, tokens=tokens, vocab=VOCAB),
            budget=args.batch_tokens,
        )
        report(
            f"joined cells: {layers} layers, prompts of about {tokens} tokens",
            compare(setting, score=args.score, repeats=args.repeats),
            about={
                "model": setting.model.name,
                "score": args.score,
                "rows": args.n,
                "rows in a pass": len(setting.batches()[0]),
                "joined tokens a row": setting.n_joined,
            },
        )


if __name__ == "__main__":
    main()
