"""Texts read by the unsteered model, and completions scored by the steered one.

All texts of one prompt are branches of one token tree, so that the prompt is computed once, and a
text that several configurations wrote is read once. No logits are kept: those of a text's tokens
are computed a few at a time from the last block's output. `reference_text` in `tests/reference` is
the definition that `score_texts` must equal: a row alone, in a plain forward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from actcache.engine.batching import Budget, run_batches
from actcache.engine.forward import run_trees
from actcache.engine.model import LanguageModel
from actcache.engine.sites import find_taps
from actcache.progress import SILENT, Progress
from actcache.prompts.token_tree import Tree, TreeBatch, pack_trees
from actcache.steering.hooks import claim_model, steer
from actcache.steering.steering import AnySteering

_BRANCH_TOKENS = 256
"""Tokens of texts in one tree: attention costs its square, a prompt once more costs linearly."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextScores:
    """What the unsteered model makes of some texts."""

    nll_unsteered: Float64[np.ndarray, " n"]
    """Mean negative log-probability of a text's tokens after its prompt, in nats per token; NaN of
    a text without tokens."""

    mean_residual: Float32[np.ndarray, "n layer d"]
    """Mean of `resid_post` over a text's tokens at the layers that were asked for; NaN likewise."""


@dataclass(frozen=True)
class _Branches:
    """A tree's prompt and its distinct texts."""

    prompt: Tokens
    texts: tuple[Tokens, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.texts))


def score_texts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    read_layers: Sequence[int] = (),
    batch_tokens: int = 8192,
    progress: Progress = SILENT,
) -> TextScores:
    """Read texts after their prompts with the model as it is, without steering.

    Args:
        model: the model.
        prompts: token ids of each text's prompt; each has one or more.
        texts: token ids of each text, `n` in all; may be empty.
        read_layers: layers whose mean residual over the text is returned, in that order.
        batch_tokens: most tokens in a pass, padding included; halves when memory runs out.
        progress: shows how many distinct texts are read.

    Raises:
        ModelError: the model is being steered.
    """
    pairs = [(tuple(p), tuple(t)) for p, t in zip(prompts, texts, strict=True)]
    distinct = {pair: i for i, pair in enumerate(dict.fromkeys(p for p in pairs if p[1]))}
    trees = _group(list(distinct))
    nll = np.full(len(distinct) + 1, np.nan)  # the last is that of a text without tokens
    means = np.full((len(distinct) + 1, len(read_layers), model.d_model), np.nan, np.float32)

    with claim_model(model), progress.steps("read texts", len(distinct)) as advance:

        def run(chosen: Int64[np.ndarray, " _"]) -> None:
            batch = [trees[i] for i in chosen]
            places = [distinct[tree.prompt, text] for tree in batch for text in tree.texts]
            nll[places], means[places] = _read(model, batch, read_layers)
            advance(len(places))

        run_batches([tree.n_tokens for tree in trees], budget=Budget(batch_tokens), run=run)
    of_text = [distinct.get(pair, len(distinct)) for pair in pairs]
    return TextScores(nll_unsteered=nll[of_text], mean_residual=means[of_text])


def score_choices(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    steerings: Sequence[AnySteering | None],
    *,
    batch_tokens: int = 8192,
    progress: Progress = SILENT,
) -> Float64[np.ndarray, "n choice"]:
    """Compute the log-probability of each row's completions after its prompt, under its steering.

    Which row's likelier completion is still the one without steering says what a steering keeps of
    the model's abilities.

    Args:
        model: the model.
        prompts: token ids of each row's prompt.
        choices: token ids of each row's completions, as many in every row, each with a token.
        steerings: one a row; None leaves the row as it is. Completions count as generated tokens.
        batch_tokens: most tokens in a pass, padding included; halves when memory runs out.
        progress: shows how many completions are scored.

    Returns:
        Sums over a completion's tokens, in nats.

    Raises:
        MismatchError, ModelError: as `steer`.
    """
    n_choices = len(choices[0]) if choices else 0
    sequences = [
        (tuple(prompt), tuple(choice))
        for prompt, of_row in zip(prompts, choices, strict=True)
        for choice in of_row
    ]
    steered = [steering for steering in steerings for _ in range(n_choices)]
    scores = np.zeros(len(sequences))

    with progress.steps("score choices", len(sequences)) as advance:

        def run(chosen: Int64[np.ndarray, " _"]) -> None:
            batch = [sequences[i] for i in chosen]
            scores[chosen] = _score_completions(model, batch, [steered[i] for i in chosen])
            advance(len(chosen))

        costs = [len(prompt) + len(choice) for prompt, choice in sequences]
        run_batches(costs, budget=Budget(batch_tokens), run=run)
    return scores.reshape(len(prompts), n_choices)


def _score_completions(
    model: LanguageModel,
    batch: Sequence[tuple[Tokens, Tokens]],
    steerings: Sequence[AnySteering | None],
) -> Float64[np.ndarray, " b"]:
    """Run one batch whose prompts end in one column; the completions follow."""
    prompt_width = max(len(prompt) for prompt, _ in batch)
    width = prompt_width + max(len(completion) for _, completion in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    valid = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(batch):
        columns = slice(prompt_width - len(prompt), prompt_width + len(completion))
        ids[row, columns] = torch.tensor([*prompt, *completion])
        valid[row, columns] = 1
    first = valid.argmax(-1, keepdim=True)
    positions = (torch.arange(width) - first).clamp(min=0)
    prompts = [prompt for prompt, _ in batch]
    with (
        torch.inference_mode(),
        steer(model, steerings, prompt_width=prompt_width, prompts=prompts),
    ):
        normed = model.anatomy.decoder(
            input_ids=ids.to(model.device),
            attention_mask=valid.to(model.device),
            # Always explicit: GPT-2 would count the padding on the left.
            position_ids=positions.to(model.device),
            use_cache=False,
        )[0]
    scored = valid[:, prompt_width:].bool()  # [b, completion]
    before = normed[:, prompt_width - 1 : -1][scored.to(normed.device)]
    nll = token_nll(model, before, ids[:, prompt_width:][scored].to(model.device))
    by_row = torch.zeros(scored.shape, dtype=torch.float64)
    by_row[scored] = nll.double().cpu()
    return -by_row.sum(-1).numpy()


def _group(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[_Branches]:
    """Make trees of each prompt's texts, longest first, with at most so many tokens of texts."""
    by_prompt: dict[Tokens, list[Tokens]] = {}
    for prompt, text in pairs:
        by_prompt.setdefault(prompt, []).append(text)
    trees = []
    for prompt, texts in by_prompt.items():
        branches: list[Tokens] = []
        for text in sorted(texts, key=len, reverse=True):
            if branches and sum(map(len, branches)) + len(text) > _BRANCH_TOKENS:
                trees.append(_Branches(prompt, tuple(branches)))
                branches = []
            branches.append(text)
        trees.append(_Branches(prompt, tuple(branches)))
    return trees


def _read(
    model: LanguageModel, batch: Sequence[_Branches], layers: Sequence[int]
) -> tuple[Float64[np.ndarray, " text"], Float32[np.ndarray, "text layer d"]]:
    """Run one batch; the texts' values in the order of trees and their branches."""
    most = max(len(tree.texts) for tree in batch)
    packed = pack_trees(
        [Tree(b.prompt, [*b.texts, *[()] * (most - len(b.texts))]) for b in batch], pad=0
    )
    rows, columns, predictors, texts = _text_tokens(batch, packed, model.device)
    n_texts = int(texts[-1]) + 1
    length = torch.bincount(texts, minlength=n_texts)
    means: dict[int, Tensor] = {}
    normed: list[Tensor] = []

    def average(layer: int, value: Tensor) -> None:
        """Keep the mean residual over each text's tokens, in float32 or wider."""
        tokens = value[rows.to(value.device), columns.to(value.device)]  # [token, d]
        wide = tokens.to(torch.promote_types(value.dtype, torch.float32))
        total = wide.new_zeros(n_texts, wide.shape[1])
        total.index_add_(0, texts.to(value.device), wide)
        means[layer] = (total / length.to(value.device)[:, None]).cpu()

    def keep_last(_decoder: nn.Module, _args: object, output: object) -> None:
        last: Tensor = output[0]  # type: ignore[index]  # a ModelOutput, or a tuple
        normed.append(last[rows.to(last.device), predictors.to(last.device)])

    with ExitStack() as hooks:
        taps = find_taps(model.anatomy, "resid_post")
        for layer in layers:
            hooks.callback(taps[layer].attach(partial(average, layer)).remove)
        hooks.callback(model.anatomy.decoder.register_forward_hook(keep_last).remove)
        nothing = torch.zeros(len(batch), 0, dtype=torch.int64, device=model.device)
        run_trees(model.anatomy, packed, read=nothing)
    targets = torch.from_numpy(packed.ids).to(model.device)[rows, columns]
    nll = token_nll(model, normed[0], targets).double()
    total = torch.zeros(n_texts, dtype=torch.float64, device=nll.device)
    total.index_add_(0, texts.to(nll.device), nll)
    stacked = [means[layer] for layer in layers]
    shape = (n_texts, len(layers), model.d_model)
    residuals = torch.stack(stacked, 1) if stacked else torch.zeros(shape)
    return (total / length.to(nll.device)).cpu().numpy(), residuals.float().numpy()


def _text_tokens(
    batch: Sequence[_Branches], packed: TreeBatch, device: torch.device
) -> tuple[Int64[Tensor, " token"], ...]:
    """Find every text token's row, its column, the column that predicts it, and its text."""
    parts: list[Int64[np.ndarray, "token 4"]] = []
    n_texts = 0
    for row, branches in enumerate(batch):
        fork = packed.starts[row] + len(branches.prompt) - 1
        for start, text in zip(packed.branch_starts[row], branches.texts, strict=False):
            columns = start + np.arange(len(text))
            predictors = np.concatenate([[fork], columns[:-1]])
            same = np.ones_like(columns)
            parts.append(np.stack([row * same, columns, predictors, n_texts * same], 1))
            n_texts += 1
    return torch.from_numpy(np.concatenate(parts)).to(device).unbind(1)


def token_nll(
    model: LanguageModel,
    normed: Float[Tensor, "token d"],
    targets: Int64[Tensor, " token"],
    *,
    logits_at_once: int = 1 << 25,
) -> Float[Tensor, " token"]:
    """Compute negative log-probabilities of tokens from the final norm's output before them.

    In float32 or wider. `logits_at_once` bounds memory: 128 MB in float32.
    """
    anatomy = model.anatomy
    wide = torch.promote_types(normed.dtype, torch.float32)
    unembed: Callable[[Tensor], Tensor] = anatomy.unembed
    weight = anatomy.unembed.weight
    assert isinstance(weight, Tensor)
    step = max(1, logits_at_once // len(weight))
    parts = []
    with torch.inference_mode():
        for tokens, target in zip(normed.split(step), targets.split(step), strict=True):
            logits = anatomy.scale_and_cap(unembed(tokens.to(weight.device))).to(wide)
            chosen = logits.gather(1, target.to(logits.device)[:, None])[:, 0]
            parts.append((torch.logsumexp(logits, -1) - chosen).to(targets.device))
    return torch.cat(parts)
