"""What the model computes at the decisive tokens of rendered samples: batched, or one row alone.

`capture` is the fast way. `reference_capture` is what it must equal: the whole sequence through the
plain model, batch size 1, no padding, no tree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actcache.conventions import ATTENTION, MEAN, check_sites
from actcache.engine.attention_mass import masses_alone
from actcache.engine.forward import residual_of, run_trees
from actcache.engine.model import LanguageModel
from actcache.engine.sites import HOOKS, find_taps
from actcache.prompts.positions import from_the_end
from actcache.prompts.render import Rendered
from actcache.prompts.spans import require_spans
from actcache.prompts.token_tree import TreeBatch, pack_trees


def capture(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    positions: Sequence[str],
    answer: str,
    sites: Sequence[str] = ("resid_post", "embed"),
) -> dict[str, Float[Tensor, "b layer position _"]]:
    """Read `sites` at `positions`, one pass for the whole batch.

    Args:
        model: the model.
        rows: `b` rendered samples.
        positions: of prompt, fork, positive, negative, mean, template_-1, template_-2, …
        answer: which token of a completion is its answer token: `first` that differs, or `last`.
        sites: of `conventions.SITES`.

    Returns:
        For each site `[b, layer, position, width]` in the model's dtype and on its device; of
        `embed` one layer; `attention` in float32.

    Raises:
        ModelError: the model's blocks have no such site.
        ActcacheError: attention is asked for at the mean, or of rows that mark no span.
    """
    check_sites(sites, positions)
    if ATTENTION in sites:
        require_spans([row.span for row in rows], [str(i) for i in range(len(rows))])
    trees = [
        row.tree(_run(row.positive, "positive", positions, answer),
                 _run(row.negative, "negative", positions, answer))
        for row in rows
    ]  # fmt: skip
    tree = pack_trees(trees, pad=0)
    single = [position for position in positions if position != MEAN]
    columns = np.empty((len(rows), len(single)), np.int64)
    for i, row in enumerate(rows):
        for j, position in enumerate(single):
            if (back := from_the_end(position)) is not None:
                columns[i, j] = tree.starts[i] + len(row.prompt) - back
            elif position == "fork":
                columns[i, j] = tree.starts[i] + len(row.chain) - 1
            else:
                branch = ("positive", "negative").index(position)
                n = len(trees[i].branches[branch])
                columns[i, j] = tree.branch_starts[i, branch] + n - 1
    mean_over = None
    if MEAN in positions:
        ends = tree.starts + np.array([len(row.prompt) for row in rows])
        at = np.arange(tree.ids.shape[1])
        mean_over = (at >= tree.starts[:, None]) & (at < ends[:, None])
    done = run_trees(
        model.anatomy,
        tree,
        read=torch.from_numpy(columns).to(model.device),
        own=model.own,
        mean_over=None if mean_over is None else torch.from_numpy(mean_over).to(model.device),
        span=_columns_of_spans(rows, tree).to(model.device) if ATTENTION in sites else None,
        taps={site: find_taps(model.anatomy, site) for site in sites if site in HOOKS},
    )
    found = {"resid_post": done.residuals, "embed": done.embed[:, None], **done.sites}
    # The mean was read last; put it where it was asked for.
    order = [single.index(p) if p != MEAN else len(single) for p in positions]
    moved = order != list(range(len(order)))
    return {site: found[site][:, :, order] if moved else found[site] for site in sites}


def reference_capture(
    model: LanguageModel,
    row: Rendered,
    *,
    position: str,
    answer: str,
    site: str = "resid_post",
) -> Float[Tensor, "layer _"]:
    """One site at one position: the row alone, unpadded, a plain forward pass of the model."""
    branch = {"positive": row.positive, "negative": row.negative}.get(position, ())
    n = _run(branch, position, [position], answer)
    back = from_the_end(position)
    of_prompt = back is not None or position == MEAN
    sequence = row.prompt if of_prompt else (*row.chain, *branch[:n])
    if site == ATTENTION:
        check_sites([site], [position])
        assert row.span is not None
        return masses_alone(model.hf, model.anatomy, sequence, back=back or 1, span=row.span)
    taken: list[Tensor] = []

    def see(value: Tensor) -> None:
        value = value.reshape(len(sequence), -1)
        if position == MEAN:
            wide = torch.promote_types(value.dtype, torch.float32)
            read = value.mean(0, dtype=wide).to(value.dtype)
        else:
            read = value[-(back or 1)].clone()
        taken.append(read.to(model.device))

    def after(_block: nn.Module, _args: Any, output: Any) -> None:
        see(residual_of(output))

    def before(_block: nn.Module, args: Any, kwargs: Any) -> None:
        see(args[0] if args else kwargs["hidden_states"])

    blocks = model.anatomy.blocks
    if site == "resid_post":
        handles = [block.register_forward_hook(after) for block in blocks]
    elif site == "embed":
        handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    else:
        handles = [tap.attach(see) for tap in find_taps(model.anatomy, site)]
    try:
        with torch.inference_mode():
            ids = torch.tensor([sequence], device=model.device)
            model.anatomy.decoder(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(taken)


def _columns_of_spans(rows: Sequence[Rendered], tree: TreeBatch) -> Bool[Tensor, "b t"]:
    spans = torch.tensor([row.span for row in rows])  # [b, 2]
    at = torch.arange(tree.ids.shape[1]) - torch.from_numpy(tree.starts)[:, None]
    return (at >= spans[:, :1]) & (at < spans[:, 1:])


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
