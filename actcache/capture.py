"""Residuals of the decisive tokens of rendered samples: batched as trees, or one alone.

`capture` is the fast way. `capture_alone` is what it must equal: the whole sequence through the
plain model, batch size 1, no padding, no tree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actcache.model import LanguageModel
from actcache.passes import residual_of, run_trees
from actcache.render import Rendered
from actcache.tree import plant


def capture(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    positions: Sequence[str],
    answer: str,
) -> tuple[Float[Tensor, "b layer position d"], Float[Tensor, "b position d"]]:
    """Residuals at `positions`, one pass for the whole batch.

    Args:
        model: the model.
        rows: `b` rendered samples.
        positions: of prompt, fork, positive, negative.
        answer: which token of a completion is its answer token: `first` that differs, or `last`.

    Returns:
        Residuals after every block, and the input of block 0, in the model's dtype and on its
        device.
    """
    trees = [
        row.tree(_run(row.positive, "positive", positions, answer),
                 _run(row.negative, "negative", positions, answer))
        for row in rows
    ]  # fmt: skip
    tree = plant(trees, pad=0)
    columns = np.empty((len(rows), len(positions)), np.int64)
    for i, row in enumerate(rows):
        for j, position in enumerate(positions):
            match position:
                case "prompt":
                    columns[i, j] = tree.starts[i] + len(row.prompt) - 1
                case "fork":
                    columns[i, j] = tree.starts[i] + len(row.chain) - 1
                case _:
                    branch = ("positive", "negative").index(position)
                    n = len(trees[i].branches[branch])
                    columns[i, j] = tree.branch_starts[i, branch] + n - 1
    read = torch.from_numpy(columns).to(model.device)
    done = run_trees(model.anatomy, tree, read=read, own=model.own)
    return done.residuals, done.embed


def capture_alone(
    model: LanguageModel, row: Rendered, *, position: str, answer: str
) -> Float[Tensor, "layer d"]:
    """Residual after every block at one position: the row alone, unpadded, a plain forward pass."""
    branch = {"positive": row.positive, "negative": row.negative}.get(position, ())
    n = _run(branch, position, [position], answer)
    sequence = {"prompt": row.prompt}.get(position, (*row.chain, *branch[:n]))
    taken: list[Tensor] = []

    def copy(_block: nn.Module, _args: Any, output: Any) -> None:
        taken.append(residual_of(output)[0, -1].clone())

    handles = [block.register_forward_hook(copy) for block in model.anatomy.blocks]
    try:
        with torch.inference_mode():
            ids = torch.tensor([sequence], device=model.device)
            model.anatomy.decoder(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(taken)


def tokens_run(row: Rendered, *, positions: Sequence[str], answer: str) -> int:
    """How many tokens a row costs in `capture`."""
    return (
        len(row.chain)
        + _run(row.positive, "positive", positions, answer)
        + _run(row.negative, "negative", positions, answer)
    )


def _run(branch: Sequence[int], name: str, positions: Sequence[str], answer: str) -> int:
    """How many tokens of a branch must be run."""
    if name not in positions or not branch:
        return 0
    return 1 if answer == "first" else len(branch)
