"""What the generation loop is asked for, and the noise that sampled text is drawn with.

Adding independent Gumbel noise to logits / temperature and taking the largest draws a token from
their softmax (the Gumbel-max trick; Maddison, Tarlow & Minka 2014, arXiv 1411.0030). The noise is a
function of (seed, stream, step, token) alone, so that batch size, order, resuming and rows that end
early do not change what is drawn. It does not depend on the steering either: all strengths of one
prompt and stream are drawn with common random numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from actcache.errors import MismatchError
from actcache.steering.steering import AnySteering


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to write."""

    prompt: tuple[int, ...]
    """Token ids, with whatever special tokens the model needs."""

    steering: AnySteering | None = None
    """None leaves the model as it is."""

    noise: int = 0
    """Which random stream it draws from; requests of one stream share their noise."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The text that was written for one request."""

    tokens: tuple[int, ...]
    """New token ids, without the end token."""

    ended: bool
    """Whether the model ended it, within `max_new` tokens."""

    nll_steered: float
    """Mean negative log-probability of its tokens under the steered model, in nats at temperature
    1. NaN where there are no tokens; infinite where the text stops because the model's logits are
    no longer finite."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when a text ends."""

    max_new: int
    """Most new tokens of a text, the end token included."""

    end_tokens: frozenset[int]
    """Token ids that end a text."""

    temperature: float = 0.0
    """0 takes the most probable token; else tokens are drawn from softmax(logits / temperature)."""

    seed: int = 0
    """With a request's `noise` and the step, it decides every draw."""

    def __post_init__(self) -> None:
        if self.max_new < 1:
            raise MismatchError(f"max_new is {self.max_new}, expected 1 or more. Try 64.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise MismatchError(
                f"temperature is {self.temperature}, expected 0 (greedy) or more. Try 1."
            )
        _check_key("seed", self.seed)


def check_requests(
    requests: Sequence[Request], sampling: Sampling, *, vocab: int, context: int | None
) -> None:
    """Refuse requests that a model cannot serve.

    Args:
        requests: all requests of a run.
        sampling: how many tokens they may get.
        vocab: number of tokens that the model knows.
        context: most tokens that it can hold; None: no limit is known.

    Raises:
        MismatchError: names the first request that does not fit, and why.
    """
    for number, request in enumerate(requests):
        length = len(request.prompt)
        if not length:
            raise MismatchError(
                f"the prompt of request {number} is empty, expected one token at least. Start it "
                "with the model's BOS token, or leave it out."
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocab:
            raise MismatchError(
                f"the prompt of request {number} has token ids from {min(request.prompt)} to "
                f"{max(request.prompt)}, expected 0 to {vocab - 1}. Use the model's own tokenizer."
            )
        if context is not None and length + sampling.max_new > context:
            raise MismatchError(
                f"the prompt of request {number} has {length} tokens and may get "
                f"{sampling.max_new} new ones, expected {context} together at most, which is the "
                "model's context. Use a shorter prompt or a smaller max_new."
            )
        _check_key(f"noise of request {number}", request.noise)
        for part in request.steering.parts if request.steering else ():
            if part.tokens == "front" and len(part.vectors) > length:
                raise MismatchError(
                    f"the prompt of request {number} has {length} tokens, expected at least the "
                    f"{len(part.vectors)} that its steering adds to at the front. Use a longer "
                    "prompt or fewer vectors."
                )


def gumbel_noise(
    seed: int, streams: Sequence[int], *, step: int, vocab: int
) -> Float32[np.ndarray, "stream vocab"]:
    """Draw the Gumbel noise of one decode step.

    Args:
        seed: of the run.
        streams: numbers of the streams.
        step: which new token, from 0.
        vocab: number of tokens.
    """
    noise = np.empty((len(streams), vocab), np.float32)
    for row, stream in zip(noise, streams, strict=True):
        # The counter has four words. The step is the third, so steps are 2^128 blocks apart.
        key = np.array([seed, stream], np.uint64)  # a list would be rounded to float64
        bits = np.random.Philox(key=key, counter=[0, 0, step, 0])
        uniform = np.random.Generator(bits).random(vocab)  # multiples of 2^-53 in [0, 1)
        with np.errstate(divide="ignore"):  # 0 becomes -inf: that token is not drawn
            row[:] = -np.log(-np.log(uniform))
    return noise


def _check_key(name: str, value: int) -> None:
    if not 0 <= value < 1 << 64:
        raise MismatchError(f"{name} is {value}, expected 0 to 2^64 - 1. Use such a number.")
