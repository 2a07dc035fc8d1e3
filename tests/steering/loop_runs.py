"""Runs of the generation loop, and that they equal its definition."""

import numpy as np
import pytest
import torch

from actcache.engine.batching import Budget
from actcache.steering import Continuation, Request
from actcache.steering.loop import SHARING, run_requests
from actcache.steering.sampling import Sampling
from tests.steering.cases import STEPS, Family

EARLY = ("all", "front")


def record(model, requests, *, sharing="auto", max_new=STEPS, end_tokens=(), budget=10**6):
    """Write greedily; the texts, and the logits `[steps, vocabulary]` of every request."""
    texts: dict[int, Continuation] = {}
    logits: list[list[torch.Tensor]] = [[] for _ in requests]

    def watch(numbers, step, values):
        for number, row in zip(numbers, values, strict=True):
            assert len(logits[number]) == step
            logits[number].append(row)

    sampling = Sampling(max_new=max_new, end_tokens=frozenset(end_tokens))
    run_requests(
        model,
        requests,
        sampling,
        Budget(budget),
        sharing=sharing,
        done=texts.__setitem__,
        watch=watch,
    )
    return [texts[i] for i in range(len(requests))], [torch.stack(rows) for rows in logits]


def compare(case: Family, requests, ways=SHARING) -> float:
    """Hold every way of sharing equal to the reference; the share of texts that steering changed."""
    true = [case.write(r.prompt, r.steering) for r in requests]
    steered = [i for i, r in enumerate(requests) if r.steering]
    for sharing in ways:
        places = [i for i, r in enumerate(requests) if sharing != "prefix" or not is_early(r)]
        texts, logits = record(case.model, [requests[i] for i in places], sharing=sharing)
        for i, text, row in zip(places, texts, logits, strict=True):
            tokens, expected = true[i]
            steering = requests[i].steering
            settings = sharing, [part.fields for part in steering.parts] if steering else None
            assert list(text.tokens) == tokens, settings
            assert (row - expected).abs().max() <= 1e-5 * expected.abs().max(), settings
            chosen = torch.log_softmax(expected.double(), -1)[torch.arange(STEPS), tokens]
            assert text.nll_steered == pytest.approx(-float(chosen.mean()), abs=1e-4)
    changed = [true[i][0] != case.write(requests[i].prompt, None)[0] for i in steered]
    return float(np.mean(changed))


def is_early(request: Request) -> bool:
    """Whether tokens before the prompt's last are steered."""
    parts = request.steering.parts if request.steering else ()
    return any(part.tokens in EARLY for part in parts)
