"""Texts read by the unsteered model, and completions scored by the steered one.

Each prompt is computed once for several of its texts, which attend to its keys and values, and a
text that several configurations wrote is read once. No logits are kept: those of a text's tokens
are computed a few at a time from the last block's output. `reference_text` in `tests/reference` is
the definition that `score_texts` must equal: a row alone, in a plain forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Cache, DynamicCache

from actcache.engine.batching import Budget, run_batches
from actcache.engine.masks import BufferedMask
from actcache.engine.model import LanguageModel
from actcache.engine.sites import find_taps
from actcache.progress import SILENT, Progress
from actcache.steering.hooks import claim_model, steer
from actcache.steering.prefill import pad_prompts
from actcache.steering.steering import AnySteering

_GROUP_TOKENS = 2048
"""Keys, those of the prompt included, of the texts that are read together: small enough to fit."""

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
class _Group:
    """A prompt and some distinct texts of it, longest first."""

    prompt: Tokens
    texts: tuple[Tokens, ...]

    @property
    def n_keys(self) -> int:
        return len(self.texts) * (len(self.prompt) + len(self.texts[0]))


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
    groups = _group(list(distinct))
    nll = np.full(len(distinct) + 1, np.nan)  # the last is that of a text without tokens
    means = np.full((len(distinct) + 1, len(read_layers), model.d_model), np.nan, np.float32)

    with claim_model(model), progress.steps("read texts", len(distinct)) as advance:

        def run(chosen: Int64[np.ndarray, " _"]) -> None:
            batch = [groups[i] for i in chosen]
            for part in _fitting(batch, model.anatomy.buffered):
                places = [distinct[group.prompt, text] for group in part for text in group.texts]
                nll[places], means[places] = _read(model, part, read_layers)
                advance(len(places))

        run_batches([group.n_keys for group in groups], budget=Budget(batch_tokens), run=run)
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


def _group(pairs: Sequence[tuple[Tokens, Tokens]]) -> list[_Group]:
    """Gather each prompt's texts, longest first, in groups of so many keys."""
    by_prompt: dict[Tokens, list[Tokens]] = {}
    for prompt, text in pairs:
        by_prompt.setdefault(prompt, []).append(text)
    groups = []
    for prompt, texts in by_prompt.items():
        texts.sort(key=len, reverse=True)
        while texts:
            n = max(1, _GROUP_TOKENS // (len(prompt) + len(texts[0])))
            groups.append(_Group(prompt, tuple(texts[:n])))
            texts = texts[n:]
    return groups


def _fitting(
    batch: Sequence[_Group], buffered: Sequence[BufferedMask | None]
) -> Iterator[Sequence[_Group]]:
    """Split a batch whose columns a mask in a buffer (GPT-Neo) does not have, though each row fits.

    The longest prompt and the longest text may be of different rows.
    """
    columns = max(len(g.prompt) for g in batch) + max(len(g.texts[0]) for g in batch)
    if len(batch) > 1 and any(mask and columns > len(mask.allowed) for mask in buffered):
        yield from _fitting(batch[: len(batch) // 2], buffered)
        yield from _fitting(batch[len(batch) // 2 :], buffered)
    else:
        yield batch


class _SharedKeys(Cache):
    """A read-only cache: each row sees its prompt's keys and values, then its own."""

    def __init__(self, prompts: DynamicCache, prompt_of: Int64[Tensor, " b"]):
        super().__init__(layers=prompts.layers)
        self._prompt_of = prompt_of

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # Repeated for one layer at a time, and not kept: all layers' would not fit.
        layer: Any = self.layers[layer_idx]  # a DynamicLayer: the cache was made without a config
        chosen = self._prompt_of.to(layer.keys.device)
        return (
            torch.cat([layer.keys[chosen], key_states], dim=-2),
            torch.cat([layer.values[chosen], value_states], dim=-2),
        )


def _read(
    model: LanguageModel, batch: Sequence[_Group], layers: Sequence[int]
) -> tuple[Float64[np.ndarray, " text"], Float32[np.ndarray, "text layer d"]]:
    """Run the prompts of some groups, then all their texts; the texts' values in that order."""
    device = model.device
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(g.prompt for g in batch))}
    prompts = pad_prompts(list(number))
    texts = [text for group in batch for text in group.texts]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    length = torch.tensor([len(text) for text in texts])
    real = torch.arange(ids.shape[1]) < length[:, None]  # [text, t]; padding is on the right
    prompt_of = torch.tensor([number[group.prompt] for group in batch for _ in group.texts])
    starts = torch.from_numpy(prompts.starts)
    valid = torch.arange(prompts.width) >= starts[:, None]
    positions = torch.arange(prompts.width + ids.shape[1])
    means: dict[int, Tensor] = {}

    def average(layer: int, value: Float[Tensor, "text t d"]) -> None:
        """Keep the mean residual over each text's tokens, in float32 or wider."""
        tokens = real.to(value.device)[:, :, None]
        # `where` and not a product: padding may hold NaN, and 0 · NaN is NaN.
        total = torch.where(tokens, value.view(*ids.shape, -1), 0).sum(
            1, dtype=torch.promote_types(value.dtype, torch.float32)
        )
        means[layer] = (total / length.to(value.device)[:, None]).float().cpu()

    # A cache made without a config keeps every token: windows are in the masks.
    cache = DynamicCache()
    with torch.inference_mode(), ExitStack() as hooks:
        before = model.anatomy.decoder(
            input_ids=torch.from_numpy(prompts.ids).to(device),
            attention_mask=valid.to(device, torch.int64),
            # Always explicit: GPT-2 would count the padding on the left.
            position_ids=(positions[: prompts.width] - starts[:, None]).clamp(min=0).to(device),
            past_key_values=cache,
            use_cache=True,
        )[0][:, -1:]
        taps = find_taps(model.anatomy, "resid_post")
        for layer in layers:
            hooks.callback(taps[layer].attach(partial(average, layer)).remove)
        after = model.anatomy.decoder(
            input_ids=ids.to(device),
            attention_mask=torch.cat([valid[prompt_of], real], 1).to(device, torch.int64),
            # Padding may lie beyond the context, where there are no positions.
            position_ids=((positions[prompts.width :] - starts[prompt_of, None]) * real).to(device),
            past_key_values=_SharedKeys(cache, prompt_of),
            use_cache=True,
        )[0]
        # What predicts each token: the prompt's last one, then the text's.
        normed = torch.cat([before[prompt_of.to(before.device)], after[:, :-1]], 1)
        nll = token_nll(model, normed[real.to(normed.device)], ids[real].to(device))
    by_text = torch.zeros(ids.shape, dtype=torch.float64)
    by_text[real] = nll.double().cpu()
    stacked = [means[layer] for layer in layers]
    residuals = torch.stack(stacked, 1) if stacked else torch.zeros(len(texts), 0, model.d_model)
    return (by_text.sum(-1) / length).numpy(), residuals.numpy()


def token_nll(
    model: LanguageModel,
    normed: Float[Tensor, "token d"],
    targets: Int64[Tensor, " token"],
    *,
    logits_at_once: int = 1 << 22,
) -> Float[Tensor, " token"]:
    """Compute negative log-probabilities of tokens from the final norm's output before them.

    In float32 or wider. `logits_at_once` bounds memory: 16 MB in float32.
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
            nll = cross_entropy(logits, target.to(logits.device), reduction="none")
            parts.append(nll.to(targets.device))
    return torch.cat(parts)
