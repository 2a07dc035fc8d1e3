"""The exact sweep of one batch: propensity of every layer and multiplier, for about one pass.

Adding a vector after block ℓ to the tokens from some position on changes nothing before that
position, and nothing below ℓ. So one pass over the trees (`run_trees`) leaves everything that the
cells (direction set, layer, multiplier) share: the prefix's keys and values, and each steered
token's residual after each block. A cell then starts at its own layer from `residual + λ ·
direction`, and all cells pass through the blocks above together (`JoinedCells`), so that each
block's weights are read once. A cell of the last layer runs no block at all. `reference_cell` in
`reference` is the definition that this must equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from actcache.conventions import FIRST_STEERED, SCORES
from actcache.engine.forward import ForwardResult, JoinedCells, run_trees
from actcache.engine.fused_functions import fused_functions
from actcache.engine.model import LanguageModel
from actcache.errors import MismatchError
from actcache.prompts.render import Rendered
from actcache.prompts.token_tree import TreeBatch, pack_trees
from actcache.settings import check_word


@dataclass(frozen=True, kw_only=True)
class SteeringRule:
    """The conventions of a sweep in which published codes differ; recorded with its results."""

    first_steered: str = "fork"
    """First token that is steered; all later ones are too."""

    score: str = "letter"
    """How a completion is scored."""

    def __post_init__(self) -> None:
        check_word("first_steered", self.first_steered, FIRST_STEERED, error=MismatchError)
        check_word("score", self.score, SCORES, error=MismatchError)

    @property
    def unit(self) -> str:
        """Unit of propensity."""
        return {"logprob": "nats", "probability": "probability"}.get(self.score, "logits")

    @property
    def whole(self) -> bool:
        """Whether the completions' tokens after the letter are scored."""
        return self.score in ("logprob", "logit")


@dataclass(frozen=True)
class _Nodes:
    """The tokens of each sample that cells replace or read, and the tokens that are scored there.

    A score is a sum of terms, each the logit of one completion token, predicted at one node.
    """

    columns: Int64[Tensor, "b node"]
    """Columns in the batch, ascending."""

    live: Bool[Tensor, "b node"]
    """False at padding, where a sample has fewer nodes than others."""

    steered: Bool[Tensor, "b node"]
    """False at a fork that is read, but steered from the token after it on."""

    predictor: Int64[Tensor, "b side term"]
    """Node whose residual predicts the term's token; sides are positive, negative."""

    token: Int64[Tensor, "b side term"]
    """Token id."""

    scored: Bool[Tensor, "b side term"]
    """False where there is no such term."""


def score_grid(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    directions: Float[Tensor, "set layer d"] | Float[Tensor, "set b layer d"],
    multipliers: Sequence[float],
    rule: SteeringRule,
    layers: Sequence[int],
    dense: bool = False,
) -> Float[np.ndarray, "b set steered multiplier"]:
    """Compute the propensity of a batch for every direction set, layer and multiplier.

    Equal, to rounding, to one full forward pass a cell and completion with the vector added to the
    block's output at every token from the first steered one on (Tan et al. 2024).

    Args:
        model: the model.
        rows: `b` rendered pairs of completions.
        directions: `[set, layer, d]`, or per sample `[set, b, layer, d]`; all layers.
        multipliers: factors λ on the directions. λ = 0 is read once, from the unsteered pass.
        rule: the conventions.
        layers: which layers are steered, ascending, without repeats.
        dense: keep cells apart by one dense mask even where attention can be split
            (`JoinedCells`); equal to rounding, slower, and there for comparison.

    Returns:
        Score of the positive minus score of the negative completion (log-odds, or for
        `probability` a share), in the model's arithmetic; float32, or float64 of such a model.
    """
    beginnings = model.find_beginnings([sweep_head(row, rule) for row in rows])
    trees = [row.tree(*_tokens_run(row, rule)) for row in rows]
    tree = pack_trees(trees, pad=0, beginnings=beginnings)
    nodes = _find_nodes(rows, tree, rule, model.device)
    if directions.ndim == 3:
        directions = directions[:, None].expand(-1, len(rows), -1, -1)
    with fused_functions(model.anatomy):
        result = run_trees(model.anatomy, tree, read=nodes.columns, keep_cache=True)
        # The vector is added in float32 (or wider) and the sum rounded once, as steering-vectors'
        # float32 mask does.
        wide = torch.promote_types(result.residuals.dtype, torch.float32)
        steps = torch.tensor([x for x in multipliers if x != 0], dtype=wide, device=model.device)
        cells = _run_cells(model, tree, nodes, result, directions, steps, layers, dense)

    unsteered = _score(model, result.residuals[:, -1][:, None], nodes, rule)  # [b, 1]
    n_sets = len(directions)
    steered = _score(model, cells, nodes, rule).view(len(rows), len(layers), n_sets, len(steps))
    out = unsteered[:, :, None, None].expand(-1, n_sets, len(layers), len(multipliers)).clone()
    out[..., [i for i, x in enumerate(multipliers) if x != 0]] = steered.movedim(1, 2)
    return out.cpu().numpy()


def _run_cells(
    model: LanguageModel,
    tree: TreeBatch,
    nodes: _Nodes,
    result: ForwardResult,
    directions: Float[Tensor, "set b layer d"],
    steps: Float[Tensor, " step"],
    layers: Sequence[int],
    dense: bool,
) -> Float[Tensor, "b cell node d"]:
    """The last block's output at the nodes of every cell, cells ordered by layer, set and step."""
    residuals = result.residuals  # [b, layer, node, d], unsteered
    b, _, n_nodes, d = residuals.shape
    # Nodes are in order of column, so all before the first are unchanged in every cell.
    column = torch.arange(tree.ids.shape[1], device=residuals.device)[None]
    valid = torch.from_numpy(tree.valid).to(residuals.device)
    cells = JoinedCells(
        model.anatomy,
        result,
        columns=nodes.columns,
        live=nodes.live,
        prefix=(column < nodes.columns[:, :1]) & valid,
        n_cells=sum(layer < model.n_layers - 1 for layer in layers) * len(directions) * len(steps),
        dense=dense,
    )
    joined = residuals.new_zeros(b, 0, d)
    steered_layers = set(layers) if len(steps) else set()
    for layer in range(min(layers, default=0), model.n_layers):
        if joined.shape[1]:  # the cells of lower layers pass through this block, ...
            joined = cells.run_block(layer, joined)
        if layer in steered_layers:  # ... and those of this layer start from its output
            vectors = directions[:, :, layer].to(residuals.device, steps.dtype).movedim(0, 1)
            pushes = (steps[None, None, :, None] * vectors[:, :, None]).flatten(1, 2)
            pushes = pushes[:, :, None] * nodes.steered[:, None, :, None]  # [b, set·step, node, d]
            start = residuals[:, layer][:, None].to(steps.dtype)  # [b, 1, node, d]
            started = (start + pushes).to(residuals.dtype)
            joined = torch.cat([joined, started.flatten(1, 2)], 1)
    return joined.view(b, -1, n_nodes, d)


def _find_nodes(
    rows: Sequence[Rendered], tree: TreeBatch, rule: SteeringRule, device: torch.device
) -> _Nodes:
    columns: list[np.ndarray] = []
    steered: list[np.ndarray] = []
    terms: list[list[list[tuple[int, int, int]]]] = []  # by row and side (node, token, 1)
    for row, branch_starts in zip(rows, tree.branch_starts, strict=True):
        fork = len(row.chain) - 1
        first_steered = first_steered_position(row, rule)
        first = min(first_steered, fork)  # the fork is read even where steering begins after it
        row_columns = list(range(first, fork + 1))
        row_steered = [i >= first_steered for i in range(first, fork + 1)]
        row_terms = []
        for completion, branch_start, n_run in zip(
            (row.positive, row.negative), branch_starts, _tokens_run(row, rule), strict=True
        ):
            # The fork predicts the first token; each token that is run predicts the next one.
            predictors = [fork - first, *range(len(row_columns), len(row_columns) + n_run)]
            row_terms.append(list(zip(predictors, completion[: n_run + 1], strict=True)))
            row_columns += [branch_start + i for i in range(n_run)]
            row_steered += [True] * n_run
        # Order by column: the batch puts the longer branch first. Joined masks rely on it.
        order = np.argsort(row_columns, kind="stable")
        rank = np.argsort(order, kind="stable")
        columns.append(np.array(row_columns)[order])
        steered.append(np.array(row_steered)[order])
        terms.append(
            [
                [(int(rank[node]), token, 1) for node, token in side_terms]
                for side_terms in row_terms
            ]
        )
    n_nodes = np.array([len(row_columns) for row_columns in columns])
    padding = [(0, n) for n in n_nodes.max() - n_nodes]
    n_terms = max(map(len, chain.from_iterable(terms)))
    for padded_terms in chain.from_iterable(terms):
        padded_terms += [(0, 0, 0)] * (n_terms - len(padded_terms))

    def stack(by_row: list[np.ndarray], mode: Literal["constant", "edge"]) -> Tensor:
        padded = [np.pad(row, n, mode=mode) for row, n in zip(by_row, padding, strict=True)]
        return torch.from_numpy(np.stack(padded)).to(device)

    predictor, token, scored = torch.tensor(terms, device=device).unbind(-1)
    return _Nodes(
        columns=stack(columns, "edge"),  # padding: any column that exists
        live=torch.from_numpy(np.arange(n_nodes.max()) < n_nodes[:, None]).to(device),
        steered=stack(steered, "constant"),
        predictor=predictor,
        token=token,
        scored=scored.bool(),
    )


def _score(
    model: LanguageModel, cells: Float[Tensor, "b cell node d"], nodes: _Nodes, rule: SteeringRule
) -> Float[Tensor, "b cell"]:
    """Read the score off the last block's output, with only the unembedding rows that it needs."""
    anatomy, device = model.anatomy, cells.device
    sample = torch.arange(len(cells), device=device)[:, None, None]
    with torch.inference_mode():
        normed = anatomy.ln_final(cells).to(device)
        # Indexing the node axis by [b, side, term]: [b, cell, side, term, d].
        read = normed.movedim(1, 2)[sample, nodes.predictor].movedim(3, 1)
        weight, bias = anatomy.unembed.weight, getattr(anatomy.unembed, "bias", None)
        assert isinstance(weight, Tensor)
        # The unembedding may lie on another device than the cells: its few rows come to them.
        token = nodes.token.to(weight.device)
        logits = torch.einsum("bcstd,bstd->bcst", read, weight[token].to(device))
        if isinstance(bias, Tensor):
            logits = logits + bias[token].to(device)[:, None]
        logits = anatomy.scale_and_cap(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if rule.score == "logprob" and read.shape[3] > 1:
            # Log-probability = logit - log-normalizer. At the fork both sides have the same
            # normalizer, which cancels in the difference; only later terms need theirs.
            logits[..., 1:] -= _log_normalizer(model, read[..., 1:, :])
        logits = torch.where(nodes.scored[:, None], logits, 0.0)
        difference = logits[..., 0, :].sum(-1) - logits[..., 1, :].sum(-1)
        # p / (p + q) of two softmax values of one token is the sigmoid of their logits' difference.
        return torch.sigmoid(difference) if rule.score == "probability" else difference


def _log_normalizer(
    model: LanguageModel, read: Float[Tensor, "b cell side term d"]
) -> Float[Tensor, "b cell side term"]:
    """Log of the sum of exponentials of the whole vocabulary's logits, of normed residuals."""
    anatomy = model.anatomy
    wide = torch.promote_types(read.dtype, torch.float32)
    weight = anatomy.unembed.weight
    assert isinstance(weight, Tensor)
    # A few tokens at a time: 32 M logits are 128 MB in float32.
    step = max(1, (1 << 25) // len(weight))
    parts = [
        torch.logsumexp(anatomy.scale_and_cap(anatomy.unembed(part)).to(wide), -1).to(read.device)
        for part in read.reshape(-1, read.shape[-1]).split(step)
    ]
    return torch.cat(parts).view(read.shape[:-1])


def _tokens_run(row: Rendered, rule: SteeringRule) -> tuple[int, int]:
    """How many tokens of each completion are run: the last one predicts nothing that is scored."""
    if not rule.whole:
        return 0, 0
    return len(row.positive) - 1, len(row.negative) - 1


def sweep_head(row: Rendered, rule: SteeringRule) -> tuple[int, ...]:
    """The tokens before the first one that is steered or read; rows may share them."""
    return row.chain[: min(first_steered_position(row, rule), len(row.chain) - 1)]


def can_move(row: Rendered, rule: SteeringRule) -> bool:
    """Whether some token that is scored is predicted at a steered one, or after it."""
    fork = len(row.chain) - 1  # predicts the first token that differs
    return first_steered_position(row, rule) <= fork or any(_tokens_run(row, rule))


def first_steered_position(row: Rendered, rule: SteeringRule) -> int:
    """Position of the first steered token in its sequence."""
    return {
        "fork": len(row.chain) - 1,
        "prompt": len(row.prompt) - 1,
        "completion": len(row.prompt),
    }[rule.first_steered]
