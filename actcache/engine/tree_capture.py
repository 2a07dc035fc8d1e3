"""The model's values at the decisive tokens of rendered samples, a batch in one pass.

`reference_capture` in `reference` is the definition that `capture` must equal.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from actcache.conventions import ATTENTION, ATTENTION_CONTROL, MASS_SITES, MEAN, check_sites
from actcache.engine.forward import run_trees
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
    """Read `sites` at `positions`, in one pass for the whole batch.

    Args:
        model: the model.
        rows: `b` rendered samples.
        positions: of prompt, fork, positive, negative, mean, template_-1, template_-2, …
        answer: which token of a completion is its answer token: `first` that differs, or `last`.
        sites: of `conventions.SITES`.

    Returns:
        For each site `[b, layer, position, width]` in the model's dtype and on its device. `embed`
        has one layer; `attention` is float32.

    Raises:
        ActcacheError: the blocks have no such site, attention is asked for at the mean, or for rows
            without a span.
    """
    check_sites(sites, positions)
    if ATTENTION in sites:
        require_spans([row.span for row in rows], [str(i) for i in range(len(rows))])
    trees = [
        row.tree(
            branch_length(row, "positive", positions=positions, answer=answer),
            branch_length(row, "negative", positions=positions, answer=answer),
        )
        for row in rows
    ]
    heads = [capture_head(row, positions=positions) for row in rows]
    tree = pack_trees(trees, pad=0, beginnings=model.find_beginnings(heads))
    tokens = [position for position in positions if position != MEAN]
    columns = _columns(rows, tree, tokens, branches=[tree.branches for tree in trees])
    mean_over = span = None
    if MEAN in positions:
        mean_over = _between(tree, [(0, len(row.prompt)) for row in rows]).to(model.device)
    if ATTENTION in sites:
        span = _between(tree, [row.span for row in rows if row.span]).to(model.device)
    if span is not None and ATTENTION_CONTROL in sites:
        control = _between(tree, [row.control_span or (0, 0) for row in rows])
        span = torch.stack([span, control.to(model.device)])
    result = run_trees(
        model.anatomy,
        tree,
        read=torch.from_numpy(columns).to(model.device),
        mean_over=mean_over,
        span=span,
        taps={site: find_taps(model.anatomy, site) for site in sites if site in HOOKS},
    )
    values = {"resid_post": result.residuals, "embed": result.embed[:, None], **result.sites}
    if ATTENTION_CONTROL in sites:  # both masses in one, a head of the span's before the control's
        masses = values[ATTENTION].chunk(2, dim=-1)
        values |= dict(zip(MASS_SITES, masses, strict=True))
    # The mean is the last read; move it to where it was asked for.
    order = [tokens.index(name) if name != MEAN else len(tokens) for name in positions]
    if order == list(range(len(order))):
        return {site: values[site] for site in sites}
    return {site: values[site][:, :, order] for site in sites}


def _columns(
    rows: Sequence[Rendered],
    tree: TreeBatch,
    positions: Sequence[str],
    *,
    branches: Sequence[Sequence[Sequence[int]]],
) -> Int64[np.ndarray, "b position"]:
    """The column of each row's token at each position."""
    columns = np.empty((len(rows), len(positions)), np.int64)
    for i, row in enumerate(rows):
        for j, position in enumerate(positions):
            if (back := from_the_end(position)) is not None:
                columns[i, j] = len(row.prompt) - back
            elif position == "fork":
                columns[i, j] = len(row.chain) - 1
            else:  # the last token that is run of a completion
                side = ("positive", "negative").index(position)
                columns[i, j] = tree.branch_starts[i, side] + len(branches[i][side]) - 1
    return columns


def _between(tree: TreeBatch, ranges: Sequence[tuple[int, int]]) -> Bool[Tensor, "b t"]:
    """Mark the tokens `[start, end)` of each row's sequence in its columns."""
    bounds = torch.tensor(ranges)  # [b, 2]
    token = torch.arange(tree.ids.shape[1])
    return (token >= bounds[:, :1]) & (token < bounds[:, 1:])


def tokens_run(row: Rendered, *, positions: Sequence[str], answer: str) -> int:
    """Count the tokens that `capture` runs for a row."""
    return len(row.chain) + sum(
        branch_length(row, side, positions=positions, answer=answer)
        for side in ("positive", "negative")
    )


def capture_head(row: Rendered, *, positions: Sequence[str]) -> tuple[int, ...]:
    """The tokens before the first one that `capture` reads; rows may share them.

    The mean is read over the whole prompt, and a beginning may be part of that.
    """
    lasts = [from_the_end(position) or 0 for position in positions]
    reads_prompt = MEAN in positions or any(lasts)
    first_read = len(row.prompt) - max(1, *lasts) if reads_prompt else len(row.chain) - 1
    return row.chain[:first_read]


def branch_length(row: Rendered, side: str, *, positions: Sequence[str], answer: str) -> int:
    """Count the tokens of a completion that must be run, so that its answer token is the last."""
    completion = {"positive": row.positive, "negative": row.negative}.get(side, ())
    if side not in positions or not completion:
        return 0
    return 1 if answer == "first" else len(completion)
