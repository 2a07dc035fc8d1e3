"""One request to a service that speaks OpenAI's protocol for embeddings, and its checked answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from actcache.encoders.connection import (
    Connection,
    Endpoint,
    Wording,
    WrongAnswerError,
    key_for,
)
from actcache.errors import ActcacheError

_ATTEMPTS = 3  # requests for a batch that gets wrong answers, which may be charged

_WORDING = Wording(
    verb="embed",
    noun="embeddings",
    path="/embeddings",
    saved="embeddings received so far are cached",
    without_key="use the encoder cache, which needs none",
)


@dataclass(frozen=True, kw_only=True)
class Service(Endpoint):
    """An endpoint, a model of it, and how it is asked."""

    dimensions: int | None = None
    """The width to request; None leaves it to the model."""

    batch_texts: int = 128
    """Texts in a request. OpenAI takes 2048, others as few as 10: a refused batch is halved. A
    killed run loses one batch at most."""

    batch_bytes: int = 250_000
    """UTF-8 bytes in a request, more only for a single text: below OpenAI's limit of 300,000
    tokens, since a token is at least a byte."""


def require_key(endpoint: str) -> None:
    """Refuse a service that needs a key which the environment does not have."""
    key_for(endpoint, _WORDING)


class Client:
    """A connection to a service that embeds. A context manager."""

    def __init__(self, service: Service):
        self.service = service
        self._connection = Connection(service, _WORDING)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def embed(
        self, texts: Sequence[str], *, width: int | None
    ) -> tuple[Float32[np.ndarray, "n e"], int]:
        """Request the vectors of a batch, and the tokens that the service counted (or 0).

        `width` is what the vectors must have, if it is known. They are finite, not scaled, and none
        is all zeros.
        """
        width = self.service.dimensions if width is None else width
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                answer = _parse(self._request(texts))
                vectors = _checked_vectors(answer.get("data"), len(texts), width)
            except WrongAnswerError as error:
                problem = str(error)
                continue
            usage = answer.get("usage")
            counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
            return vectors, counted if isinstance(counted, int) and counted > 0 else 0
        of_width = "" if width is None else f" of {width} dimensions"
        raise ActcacheError(
            f"'{self.service.endpoint}' returned {problem}, {_ATTEMPTS} times, expected a finite "
            f"vector{of_width} for each of {len(texts)} texts. Use another model or service, or "
            "try again; if a model's width has changed, cache its embeddings in another file."
        )

    def _request(self, texts: Sequence[str]) -> bytes:
        service = self.service
        asked = None if service.dimensions is None else {"dimensions": service.dimensions}
        content: bytes = self._connection.request(
            # Floats, not base64: not every compatible server knows the latter.
            # The raw answer: the client's types would turn true into 1.0.
            lambda client: (
                client.embeddings.with_raw_response.create(
                    model=service.model,
                    input=list(texts),
                    encoding_format="float",
                    extra_body=asked,
                ).http_response.content
            )
        )
        return content


def _parse(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise WrongAnswerError("no answer of the protocol (no JSON)") from None
    if not isinstance(answer, dict):
        raise WrongAnswerError(f"no answer of the protocol ({type(answer).__name__})")
    return answer


def _checked_vectors(items: Any, n: int, width: int | None) -> Float32[np.ndarray, "n e"]:
    """The vectors of an answer in order; nothing of it was checked."""
    try:
        items = sorted(items, key=lambda item: int(item["index"]))
        with np.errstate(over="ignore"):
            vectors = np.array([item["embedding"] for item in items], np.float32)  # [n, e]
        others = {type(x) for item in items for x in item["embedding"]} - {int, float}
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None
    # NumPy reads true as 1 and "0.5" as 0.5: neither is a number of the protocol.
    if others:
        raise WrongAnswerError(f"values of type {', '.join(sorted(x.__name__ for x in others))}")
    if len(items) != n:
        raise WrongAnswerError(f"{len(items)} vectors for {n} texts")
    if [int(item["index"]) for item in items] != list(range(n)):
        raise WrongAnswerError("vectors whose indices do not run from 0")
    if vectors.ndim != 2 or not vectors.size:
        raise WrongAnswerError("vectors without values")
    if width is not None and vectors.shape[1] != width:
        raise WrongAnswerError(f"vectors of {vectors.shape[1]} dimensions")
    if not np.isfinite(vectors).all():
        raise WrongAnswerError("a vector that is not finite")
    if not vectors.any(axis=1).all():
        raise WrongAnswerError("a vector of zeros")
    return vectors
