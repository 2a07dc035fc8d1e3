"""The generation loop: many prompts under many steerings, in batches that share what they can.

`generate` writes greedy or sampled text with the model's own forward pass. A row's text depends on
its prompt, steering, seed and noise stream alone: in float32 neither batch size, order, sharing nor
rows that end early change it. `check_generation` holds three rows against plain passes (one row, no
cache, no padding) before a run.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import LanguageModel, context_length
from actcache.engine.self_check import error_bound
from actcache.errors import MismatchError, ModelError
from actcache.progress import AUTOMATIC, Progress
from actcache.settings import check_word
from actcache.steering.decoding import (
    DecodingBatch,
    Done,
    SharedPart,
    Watch,
    parts_of,
    steers_earlier_tokens,
)
from actcache.steering.gates import PromptGate
from actcache.steering.hooks import claim_model, refuse_compiled, steer
from actcache.steering.prompt_gates import pass_prompt_gates
from actcache.steering.sampling import Continuation, Request, Sampling, check_requests

Sharing = Literal["auto", "none", "prefix", "grow"]
SHARING: tuple[Sharing, ...] = get_args(Sharing)

BATCH_TOKENS = 16384
"""Default of `generate`: about 8 GB of keys and values of a Llama-2-7B in half precision."""


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    max_new: int,
    end_tokens: Collection[int],
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    sharing: Sharing = "auto",
    progress: Progress = AUTOMATIC,
    on_done: Done | None = None,
) -> list[Continuation]:
    """Write a text for each request, in batches whose rows are steered differently.

    Args:
        model: the model.
        requests: prompts with their steerings.
        max_new: most new tokens of a text, the end token included.
        end_tokens: token ids that end a text.
        temperature: 0 takes the most probable token; else tokens are drawn from
            softmax(logits / temperature).
        seed: of the noise; with a request's `noise` and the step it decides every draw.
        batch_tokens: rows × (longest prompt + new tokens) of a batch. It shrinks when the device
            runs out of memory.
        sharing: what rows of one prompt share. `prefix`: all columns before the first steered one
            (tokens `prompt` and `completion`). `grow`: every block below the first steered one.
            `auto`: for each row what shares most. `none`: nothing, for comparison.
        progress: hears of finished texts.
        on_done: called with a request's number and its text as soon as it is finished.

    Returns:
        The requests' texts, in their order.

    Raises:
        MismatchError: a request does not fit the model or a setting is out of range; nothing was
            run.
        ModelError: a site that the model's blocks lack, a compiled model, or not even a single row
            fits into memory.
    """
    sampling = Sampling(
        max_new=max_new, end_tokens=frozenset(end_tokens), temperature=temperature, seed=seed
    )
    check_run(model, requests, sampling, batch_tokens=batch_tokens, sharing=sharing)
    texts: dict[int, Continuation] = {}
    with progress.steps("generate", len(requests)) as advance:

        def done(number: int, text: Continuation) -> None:
            texts[number] = text
            if on_done is not None:
                on_done(number, text)
            advance(1)

        run_requests(model, requests, sampling, Budget(batch_tokens), sharing=sharing, done=done)
    return [texts[number] for number in range(len(requests))]


def check_run(
    model: LanguageModel,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    batch_tokens: int,
    sharing: Sharing,
) -> None:
    """Refuse what cannot be run; see `generate`."""
    refuse_compiled(model.hf)
    check_word("sharing", sharing, SHARING, error=MismatchError)
    if batch_tokens < 1:
        raise MismatchError(f"batch_tokens is {batch_tokens}, expected 1 or more. Try 2048.")
    config = model.hf.config.get_text_config()
    check_requests(requests, sampling, vocab=config.vocab_size, context=context_length(config))
    early = [i for i, request in enumerate(requests) if steers_earlier_tokens(request.steering)]
    if sharing == "prefix" and early:
        raise MismatchError(
            f"sharing is 'prefix', but request {early[0]} steers tokens before its prompt's last, "
            "expected tokens 'prompt' or 'completion'. Use sharing='auto'."
        )


def run_requests(
    model: LanguageModel,
    requests: Sequence[Request],
    sampling: Sampling,
    budget: Budget,
    *,
    sharing: Sharing,
    done: Done,
    watch: Watch | None = None,
) -> None:
    """Write every request once, in batches that share one part of their prompts."""
    requests = decide_prompt_gates(model, requests)
    finished: set[int] = set()

    def finish(number: int, text: Continuation) -> None:
        finished.add(number)
        done(number, text)

    by_part: dict[SharedPart, list[int]] = {}
    # Rows of one prompt lie beside each other, so that few batches run a prompt twice.
    for number in sorted(range(len(requests)), key=lambda number: requests[number].prompt):
        part = sharing
        if part == "auto":
            part = "grow" if steers_earlier_tokens(requests[number].steering) else "prefix"
        by_part.setdefault(part, []).append(number)

    for part, numbers in by_part.items():

        def run(
            places: Int64[np.ndarray, " _"],
            part: SharedPart = part,
            numbers: Sequence[int] = numbers,
        ) -> None:
            # A batch that ran out of memory may have finished some of its rows.
            waiting = [numbers[place] for place in places if numbers[place] not in finished]
            if waiting:
                DecodingBatch(model, requests, waiting, sampling).write(part, finish, watch)

        costs = [len(requests[number].prompt) + sampling.max_new for number in numbers]
        with claim_model(model):
            run_batches(costs, budget=budget, run=run)


def decide_prompt_gates(model: LanguageModel, requests: Sequence[Request]) -> list[Request]:
    """Replace steerings that depend on the prompt by what they are for this prompt."""
    gated = [
        number
        for number, request in enumerate(requests)
        if any(isinstance(part.gate, PromptGate) for part in parts_of(request.steering))
    ]
    decided = list(requests)
    if gated:
        prompts = [requests[number].prompt for number in gated]
        steerings = pass_prompt_gates(model, prompts, [requests[i].steering for i in gated])
        for number, steering in zip(gated, steerings, strict=True):
            decided[number] = replace(requests[number], steering=steering)
    return decided


def check_generation(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    max_new: int = 4,
    sharing: Sharing = "auto",
) -> dict[str, Any]:
    """Compare the loop with plain passes on three requests, before a run.

    They are decoded together, greedily. Then each row's whole text runs alone, without cache or
    padding, under its steering, and must give the same logits at every step.

    Args:
        model: the model.
        requests: all requests; the shortest, middle and longest prompt that are steered are taken.
        max_new: how many tokens to compare, or as many as the context has room for.
        sharing: as in `generate`.

    Returns:
        `rows`, `tokens`, `largest_relative_error` (of any logit over the largest of its step) and
        the `bound` that it is under.

    Raises:
        ModelError: it is over the bound.
        MismatchError: as in `generate`.
    """
    if not requests:
        return {"rows": 0, "tokens": 0, "largest_relative_error": 0.0, "bound": error_bound(model)}
    order = sorted(range(len(requests)), key=lambda number: len(requests[number].prompt))
    order = [number for number in order if requests[number].steering is not None] or order
    few = [requests[i] for i in dict.fromkeys((order[0], order[len(order) // 2], order[-1]))]
    if (context := context_length(model.hf.config.get_text_config())) is not None:
        # A run that writes fewer tokens may fill the context with its prompts.
        max_new = max(1, min(max_new, context - len(requests[order[-1]].prompt)))
    sampling = Sampling(max_new=max_new, end_tokens=frozenset())
    check_run(model, few, sampling, batch_tokens=1, sharing=sharing)
    steps: dict[int, list[Tensor]] = {row: [] for row in range(len(few))}
    texts: dict[int, Continuation] = {}

    def watch(numbers: Sequence[int], _step: int, logits: Float[Tensor, "b vocab"]) -> None:
        for row, values in zip(numbers, logits, strict=True):
            steps[row].append(values)

    everything = Budget(sum(len(request.prompt) + max_new for request in few) * len(few))
    run_requests(
        model, few, sampling, everything, sharing=sharing, done=texts.__setitem__, watch=watch
    )
    bound, largest = error_bound(model), 0.0
    for row, request in enumerate(few):
        for logits, plain in zip(
            steps[row], plain_logits(model, request, texts[row].tokens), strict=False
        ):
            # Where steering overflows the dtype there is nothing to compare; the text says so.
            if not torch.isfinite(plain).all():
                continue
            error = float((logits - plain).abs().max() / plain.abs().max())
            if not error <= bound:
                raise ModelError(
                    f"on '{model.name}' ({model.hf.config.model_type}) the batched logits are off "
                    f"by {error:.2g} of their size from a plain forward pass, expected at most "
                    f"{bound:g}: the loop does not handle this family or attention. Try --dtype "
                    "float32, or write with steer() and the model's own generate."
                )
            largest = max(largest, error)
    return {
        "rows": len(few),
        "tokens": sum(map(len, steps.values())),
        "largest_relative_error": largest,
        "bound": bound,
    }


def plain_logits(
    model: LanguageModel, request: Request, tokens: Sequence[int]
) -> Float[Tensor, "step vocab"]:
    """Compute a text's logits by definition: one steered pass of the row alone.

    Step i is what predicts new token i; the last one is behind all `tokens`.
    """
    sequence = torch.tensor([[*request.prompt, *tokens]], device=model.device)
    with (
        torch.inference_mode(),
        steer(
            model,
            [request.steering],
            prompt_width=len(request.prompt),
            prompts=[request.prompt],
        ),
    ):
        logits: Tensor = model.hf(input_ids=sequence, use_cache=False).logits
    return logits[0, len(request.prompt) - 1 :].to(torch.promote_types(logits.dtype, torch.float32))
