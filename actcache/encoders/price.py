"""What a service will charge, told before it is asked. Estimates; asks nothing."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

PRICES = {
    "text-embedding-3-large": 0.13,
    "text-embedding-3-small": 0.02,
    "text-embedding-ada-002": 0.10,
}
"""Dollars for a million tokens, at OpenAI's own endpoint."""

PRICES_OF = "2026-05"
"""Month in which they were looked up."""

OPENAI = "https://api.openai.com/v1"
"""Where those prices hold."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is about to be asked of a service. `str` gives it as one line."""

    model: str
    endpoint: str
    """The service's address, without anything secret."""

    n_new: int
    """Distinct texts that will be sent."""

    n_kept: int
    """Distinct texts that were paid for before."""

    tokens: int
    """Of the new texts, estimated."""

    dollars: float | None
    """Estimated; None where the price is not known."""

    def __str__(self) -> str:
        price = (
            "price unknown"
            if self.dollars is None
            else f"about ${self.dollars:.4f} at prices of {PRICES_OF}"
        )
        return (
            f"{self.n_new:,} new texts for {self.model} at {self.endpoint} ({self.n_kept:,} are "
            f"kept): about {self.tokens:,} tokens, {price}"
        )


def estimate_cost(texts: Sequence[str], *, model: str, endpoint: str, n_kept: int) -> Cost:
    """Tokens and dollars of new texts.

    A token is taken to be four bytes of UTF-8, which is about right for English. At OpenAI's own
    endpoint tokens are counted where the package tiktoken is installed; elsewhere the tokenizer is
    not known, and tiktoken fetches its tables from the network.

    Args:
        texts: those that will be sent.
        model: the service's name of the model.
        endpoint: the service's address.
        n_kept: texts that will not be sent, for the record.
    """
    at_openai = endpoint == OPENAI
    tokens = _counted(texts, model) if at_openai else None
    if tokens is None:
        tokens = sum(-(-len(text.encode()) // 4) for text in texts)
    price = PRICES.get(model) if at_openai else None
    return Cost(
        model=model,
        endpoint=endpoint,
        n_new=len(texts),
        n_kept=n_kept,
        tokens=tokens,
        dollars=None if price is None else price * tokens / 1e6,
    )


def _counted(texts: Sequence[str], model: str) -> int | None:
    try:
        encoding = importlib.import_module("tiktoken").encoding_for_model(model)
        return sum(len(encoding.encode_ordinary(text)) for text in texts)
    except Exception:  # not installed, its tables not to be had, a model it does not know: estimate
        return None
