"""The exact sweep of one batch: propensity of every layer and multiplier, for about one pass.

Adding a vector after block ℓ to the tokens from some position on changes nothing before that
position, and nothing below ℓ. So one pass over the trees (`run_trees`) leaves all that the cells
(direction set, layer, multiplier) share: the prefix's keys and values, and each steered token's
residual after each block. A cell then starts at its own layer from `residual + λ · direction`, and
all cells walk the blocks above together (`JoinedCells`), each block's weights read once. At the
last layer no block is run at all. See `methods` of the README for what is equal to what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actcache.conventions import FIRST_STEERED, SCORES
from actcache.engine.forward import JoinedCells, residual_of, run_trees
from actcache.engine.model import LanguageModel
from actcache.errors import MismatchError
from actcache.prompts.render import Rendered
from actcache.prompts.token_tree import pack_trees


@dataclass(frozen=True, kw_only=True)
class SteeringRule:
    """The conventions of a sweep in which published codes differ; recorded with its results."""

    first_steered: str = "fork"
    """First token that is steered; all later ones are too."""

    score: str = "letter"
    """What propensity is made of."""

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("first_steered", self.first_steered, FIRST_STEERED),
            ("score", self.score, SCORES),
        ):
            if value not in allowed:
                raise MismatchError(
                    f"{field} is '{value}', expected {', '.join(allowed)}. Pass one of them."
                )

    @property
    def unit(self) -> str:
        """What propensity is measured in."""
        return {"logprob": "nats", "probability": "probability"}.get(self.score, "logits")

    @property
    def whole(self) -> bool:
        """Whether the completions' tokens after the letter count."""
        return self.score in ("logprob", "logit")


@dataclass(frozen=True)
class _Nodes:
    """The tokens of each sample that cells replace or read, and what is read there."""

    columns: np.ndarray  # [b, node] int64: columns of the batch
    valid: np.ndarray  # [b, node] bool
    steered: np.ndarray  # [b, node] bool
    at: np.ndarray  # [b, 2, term] int64: node that predicts the term's token
    token: np.ndarray  # [b, 2, term] int64
    counts: np.ndarray  # [b, 2, term] bool: false where there is no such term


def score_grid(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    directions: Float[Tensor, "set layer d"] | Float[Tensor, "set b layer d"],
    multipliers: Sequence[float],
    rule: SteeringRule,
    layers: Sequence[int],
) -> Float[np.ndarray, "b set steered multiplier"]:
    """Propensity of a batch under every direction set, layer and multiplier.

    Equal, to rounding, to one full forward pass a cell and completion with the vector added to the
    block's output at every token from the first steered one on (Tan et al. 2024).

    Args:
        model: the model.
        rows: `b` rendered pairs of completions.
        directions: `[set, layer, d]`, or per sample `[set, b, layer, d]`; all layers.
        multipliers: factors λ on the directions. λ = 0 is read once, from the unsteered pass.
        rule: the conventions.
        layers: which layers are steered, ascending, without repeats.

    Returns:
        Score of the positive minus score of the negative completion (log-odds, or for
        `probability` a share), in the model's arithmetic; float32, or float64 of such a model.
    """
    device = model.device
    tree = pack_trees(
        [row.tree(_read(row.positive, rule), _read(row.negative, rule)) for row in rows], pad=0
    )
    nodes = _nodes(rows, tree.starts, tree.branch_starts, rule)
    columns = torch.from_numpy(nodes.columns).to(device)
    done = run_trees(model.anatomy, tree, read=columns, own=model.own, keep_cache=True)

    # Added in float32 (or wider) and rounded once, as steering-vectors' float32 mask does.
    wide = torch.promote_types(done.residuals.dtype, torch.float32)
    steps = torch.tensor([x for x in multipliers if x != 0], dtype=wide, device=device)
    n_sets, n_nodes = len(directions), nodes.columns.shape[1]
    if directions.ndim == 3:
        directions = directions[:, None].expand(-1, len(rows), -1, -1)
    steered = torch.from_numpy(nodes.steered).to(device)[:, None, :, None]
    prefix = np.arange(tree.ids.shape[1])[None] < nodes.columns[:, :1]
    join = JoinedCells(
        model.anatomy,
        done,
        columns=columns,
        valid=torch.from_numpy(nodes.valid).to(device),
        prefix=torch.from_numpy(prefix & tree.valid).to(device),
        n_cells=sum(layer < model.n_layers - 1 for layer in layers) * n_sets * len(steps),
        own=model.own,
    )

    d = done.residuals.shape[-1]
    moved = done.residuals.new_zeros(len(rows), 0, d)  # [b, row, d], rows cell-major
    wanted = set(layers) if len(steps) else set()
    for layer in range(min(layers, default=0), model.n_layers):
        if moved.shape[1]:
            moved = join.run_block(layer, moved)
        if layer in wanted:
            push = directions[:, :, layer].to(device, wide).movedim(0, 1)  # [b, set, d]
            push = (steps[None, None, :, None] * push[:, :, None]).flatten(1, 2)[:, :, None]
            start = done.residuals[:, layer][:, None].to(wide)  # [b, 1, node, d]
            cells = (start + push * steered).to(moved.dtype)  # [b, set·λ, node, d]
            moved = torch.cat([moved, cells.flatten(1, 2)], 1)

    base = _score(model, done.residuals[:, -1][:, None], nodes, rule)  # [b, 1]
    cells = moved.view(len(rows), -1, n_nodes, d)
    found = _score(model, cells, nodes, rule).view(len(rows), len(layers), n_sets, -1)
    out = base[:, :, None, None].expand(-1, n_sets, len(layers), len(multipliers)).clone()
    out[..., [i for i, x in enumerate(multipliers) if x != 0]] = found.movedim(1, 2)
    return out.cpu().numpy()


def _read(branch: Sequence[int], rule: SteeringRule) -> int:
    """How many tokens of a branch must be run: the last one predicts nothing that is scored."""
    return len(branch) - 1 if rule.whole else 0


def _nodes(
    rows: Sequence[Rendered], starts: np.ndarray, branch_starts: np.ndarray, rule: SteeringRule
) -> _Nodes:
    found = []
    for row, start, branches in zip(rows, starts, branch_starts, strict=True):
        fork = len(row.chain) - 1
        first = _first_steered(row, rule)
        begin = min(first, fork)  # the fork is read even where steering begins after it
        columns = [start + i for i in range(begin, fork + 1)]
        steered = [i >= first for i in range(begin, fork + 1)]
        terms = []
        for tokens, at in zip((row.positive, row.negative), branches, strict=True):
            n = _read(tokens, rule)
            reads = [fork - begin, *range(len(columns), len(columns) + n)]
            terms.append(list(zip(reads, tokens[: n + 1], strict=True)))
            columns += [at + i for i in range(n)]
            steered += [True] * n
        # Nodes go in the order of the batch, where the longer branch comes first.
        order = np.argsort(columns, kind="stable")
        rank = np.argsort(order, kind="stable")
        found.append(
            (
                np.array(columns)[order],
                np.array(steered)[order],
                [[(int(rank[at]), token) for at, token in side] for side in terms],
            )
        )
    n_nodes = max(len(columns) for columns, _, _ in found)
    n_terms = max(len(side) for _, _, terms in found for side in terms)
    shape, deep = (len(rows), n_nodes), (len(rows), 2, n_terms)
    nodes = _Nodes(
        np.zeros(shape, np.int64),
        np.zeros(shape, np.bool_),
        np.zeros(shape, np.bool_),
        np.zeros(deep, np.int64),
        np.zeros(deep, np.int64),
        np.zeros(deep, np.bool_),
    )
    for i, (at_columns, is_steered, terms) in enumerate(found):
        n = len(at_columns)
        nodes.columns[i, :n], nodes.columns[i, n:] = at_columns, at_columns[-1]
        nodes.valid[i, :n], nodes.steered[i, :n] = True, is_steered
        for side, pairs in enumerate(terms):
            for term, (at, token) in enumerate(pairs):
                nodes.at[i, side, term], nodes.token[i, side, term] = at, token
                nodes.counts[i, side, term] = True
    return nodes


def _score(
    model: LanguageModel, cells: Float[Tensor, "b cell node d"], nodes: _Nodes, rule: SteeringRule
) -> Float[Tensor, "b cell"]:
    """Read the score off the last block's output; only the unembedding rows that it needs."""
    anatomy, device = model.anatomy, cells.device
    at, token = torch.from_numpy(nodes.at).to(device), torch.from_numpy(nodes.token).to(device)
    counts = torch.from_numpy(nodes.counts).to(device)[:, None]
    batch = torch.arange(len(cells), device=device)[:, None, None]
    with torch.inference_mode():
        normed = anatomy.ln_final(cells).to(device)
        read = normed.movedim(1, 2)[batch, at].movedim(3, 1)  # [b, cell, side, term, d]
        weight, bias = anatomy.unembed.weight, getattr(anatomy.unembed, "bias", None)
        assert isinstance(weight, Tensor)
        # The unembedding may lie on another device than the rows: its few lines come to them.
        there = token.to(weight.device)
        logits = torch.einsum("bcstd,bstd->bcst", read, weight[there].to(device))
        if isinstance(bias, Tensor):
            logits = logits + bias[there].to(device)[:, None]
        logits = anatomy.shaped(logits).to(torch.promote_types(logits.dtype, torch.float32))
        if rule.score == "logprob" and read.shape[3] > 1:
            # At the fork both sides share the normalizer, which cancels; later terms need it.
            logits[..., 1:] -= _log_normalizer(model, read[..., 1:, :])
        logits = torch.where(counts, logits, 0.0)
        difference = logits[..., 0, :].sum(-1) - logits[..., 1, :].sum(-1)
        return torch.sigmoid(difference) if rule.score == "probability" else difference


def _log_normalizer(
    model: LanguageModel, read: Float[Tensor, "b cell side term d"]
) -> Float[Tensor, "b cell side term"]:
    anatomy = model.anatomy
    flat = read.reshape(-1, read.shape[-1])
    wide = torch.promote_types(read.dtype, torch.float32)
    weight = anatomy.unembed.weight
    assert isinstance(weight, Tensor)
    # Logits of the whole vocabulary, a few at a time: 32 M values are 128 MB in float32.
    step = max(1, (1 << 25) // len(weight))
    parts = [
        torch.logsumexp(anatomy.shaped(anatomy.unembed(part)).to(wide), -1).to(read.device)
        for part in flat.split(step)
    ]
    return torch.cat(parts).view(read.shape[:-1])


def reference_cell(
    model: LanguageModel,
    row: Rendered,
    direction: Float[Tensor, " d"],
    multiplier: float,
    layer: int,
    rule: SteeringRule,
) -> float:
    """One cell by its definition: two full forward passes with a hook, batch size 1, no cache.

    What `score_grid` must equal; a sweep compares a few cells with it before it starts.
    """
    first = _first_steered(row, rule)
    push = multiplier * direction.to(model.device)

    def steer(_block: nn.Module, _args: Any, output: Any) -> Any:
        residual = residual_of(output).clone()
        steered = residual[:, first:] + push.to(residual.device)
        residual[:, first:] = steered.to(residual.dtype)
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    totals = []
    for completion in (row.positive, row.negative):
        n_scored = len(completion) if rule.whole else 1
        ids = torch.tensor([[*row.chain, *completion]], device=model.device)
        handle = model.anatomy.blocks[layer].register_forward_hook(steer)
        try:
            with torch.inference_mode():
                logits = model.hf(input_ids=ids, use_cache=False).logits[0].double()
        finally:
            handle.remove()
        if rule.score == "logprob":
            logits = torch.log_softmax(logits, -1)
        at = torch.arange(n_scored, device=logits.device) + len(row.chain) - 1
        target = torch.tensor(completion[:n_scored], device=logits.device)
        totals.append(logits[at, target].sum())
    difference = totals[0] - totals[1]
    return float(torch.sigmoid(difference) if rule.score == "probability" else difference)


def _first_steered(row: Rendered, rule: SteeringRule) -> int:
    """Position of the first steered token in its sequence."""
    return {
        "fork": len(row.chain) - 1,
        "prompt": len(row.prompt) - 1,
        "completion": len(row.prompt),
    }[rule.first_steered]
