"""One request to a service that speaks OpenAI's protocol for embeddings, and its checked answer.

The package `openai` sends requests and repeats those that may succeed later. Here answers are
checked, and errors become one line that never holds the key.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError

if TYPE_CHECKING:  # it takes a second to import
    import openai

OPENAI = "https://api.openai.com/v1"

KEY = "OPENAI_API_KEY"
"""Name of the environment variable that holds the key; it is read from nowhere else."""

_ATTEMPTS = 3  # requests for a batch that gets wrong answers, which may be charged
_NO_KEY = "none"  # a local server needs no key, but the client does not accept an empty one
_KEY_PART = 8  # characters of the key in a row that no message may hold


@dataclass(frozen=True, kw_only=True)
class Service:
    """An endpoint, a model of it, and how it is asked."""

    endpoint: str
    """Its address, from `endpoint_of`."""

    model: str
    """The service's name of the model."""

    dimensions: int | None = None
    """The width to request; None leaves it to the model."""

    timeout: float = 60.0
    """Seconds that the service may stay silent."""

    retries: int = 6
    """Requests after the first that a batch may take."""

    batch_texts: int = 128
    """Texts in a request. OpenAI takes 2048, others as few as 10: a refused batch is halved. A
    killed run loses one batch at most."""

    batch_bytes: int = 250_000
    """UTF-8 bytes in a request, more only for a single text: below OpenAI's limit of 300,000
    tokens, since a token is at least a byte."""


class RefusedError(ActcacheError):
    """The service refuses this batch, but may accept fewer or shorter texts."""


class _WrongAnswerError(Exception):
    """The service answered, but not with the embeddings that were requested."""


class Client:
    """A connection to a service. A context manager.

    The `openai` client repeats a request after 408, 409, 429 and 5xx, a timeout or a dropped
    connection, at growing intervals; it obeys Retry-After up to two minutes.
    """

    def __init__(self, service: Service):
        import openai

        self.service = service
        self._key = _key_for(service.endpoint)
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=service.endpoint,
            timeout=service.timeout,
            max_retries=service.retries,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._client.close()

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
                response = self._request(texts)
                vectors = _checked_vectors(response, len(texts), width)
            except _WrongAnswerError as error:
                problem = str(error)
                continue
            counted = getattr(getattr(response, "usage", None), "prompt_tokens", None)
            return vectors, counted if isinstance(counted, int) and counted > 0 else 0
        of_width = "" if width is None else f" of {width} dimensions"
        raise ActcacheError(
            f"'{self.service.endpoint}' returned {problem}, {_ATTEMPTS} times, expected a finite "
            f"vector{of_width} for each of {len(texts)} texts. Use another model or service, or "
            "try again; if a model's width has changed, cache its embeddings in another file."
        )

    def _request(self, texts: Sequence[str]) -> Any:
        import openai

        service = self.service
        asked = None if service.dimensions is None else {"dimensions": service.dimensions}
        try:
            # Floats, not base64: not every compatible server knows the latter.
            return self._client.embeddings.create(
                model=service.model,
                input=list(texts),
                encoding_format="float",
                extra_body=asked,
            )
        # `from None`: the causes hold the request, and so the key.
        except openai.APITimeoutError:
            raise ActcacheError(
                f"'{service.endpoint}' did not answer within {service.timeout:g} s, even when "
                "asked again. Try again later: embeddings received so far are cached."
            ) from None
        except openai.APIConnectionError:
            raise ActcacheError(
                f"'{service.endpoint}' cannot be reached, or drops the connection. Check the "
                "address and the network, and try again: embeddings received so far are cached."
            ) from None
        except openai.APIStatusError as error:
            raise self._error_of(error) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise _WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None

    def _error_of(self, error: "openai.APIStatusError") -> ActcacheError:
        """The error of a request that the service refused, in one line."""
        status, message = error.status_code, self._message_without_key(error)
        where = f"'{self.service.endpoint}' ({status})"
        if status in (401, 403):
            return ActcacheError(
                f"{where} refuses the key, expected one that may embed with "
                f"'{self.service.model}'. Set {KEY} to such a key."
            )
        if status in (400, 413, 422):
            return RefusedError(f"{where} refuses the request{message}")
        if status == 404:
            return ActcacheError(
                f"{where} has no model '{self.service.model}', or no embeddings{message}. Pass "
                "another model, or the address up to and without /embeddings."
            )
        problem, remedy = "fails", "Try again later"
        if status == 429:
            problem, remedy = "refuses more requests for now", "Check your quota, or try later"
        return ActcacheError(
            f"{where} {problem}{message}. {remedy}: embeddings received so far are cached."
        )

    def _message_without_key(self, error: "openai.APIStatusError") -> str:
        """The service's message after a colon, in one line; nothing if it holds part of the key."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        message = message if isinstance(message, str) else str(error.message)
        parts = range(max(len(self._key) - _KEY_PART, 0) + 1)
        if self._key != _NO_KEY and any(self._key[i : i + _KEY_PART] in message for i in parts):
            return ""
        line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        return f": {line[:200]}" if line else ""


def endpoint_of(base_url: str | None) -> str:
    """Return the service's address in one spelling; it is shown and stored, so it has no secret.

    None is `$OPENAI_BASE_URL`, or OpenAI's.
    """
    given = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    try:
        parts = urlsplit(given.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query:
        raise ActcacheError(
            "the service's address is not of the form https://HOST/v1, or has a user, a password "
            f"or a query in it. Pass it without; a key belongs in {KEY}."
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def _key_for(endpoint: str) -> str:
    key = os.environ.get(KEY, "").strip()
    if not key and endpoint != OPENAI:
        return _NO_KEY
    if not key:
        raise ActcacheError(
            f"{KEY} is not set, expected a key for '{endpoint}'. Set it in the environment, or "
            "use the encoder cache, which needs none."
        )
    if not all("!" <= character <= "~" for character in key):  # the client's error would show it
        raise ActcacheError(
            f"{KEY} has spaces or characters that no key has, expected printable ASCII. Set it "
            "again, without quotes and line breaks."
        )
    return key


def _checked_vectors(response: Any, n: int, width: int | None) -> Float32[np.ndarray, "n e"]:
    """The vectors of an answer in order; the client checks nothing of it."""
    try:
        items = sorted(response.data, key=lambda item: int(item.index))
        with np.errstate(over="ignore"):
            vectors = np.array([item.embedding for item in items], np.float32)  # [n, e]
    except (AttributeError, TypeError, ValueError) as error:
        raise _WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None
    if len(items) != n:
        raise _WrongAnswerError(f"{len(items)} vectors for {n} texts")
    if [int(item.index) for item in items] != list(range(n)):
        raise _WrongAnswerError("vectors whose indices do not run from 0")
    if vectors.ndim != 2 or not vectors.size:
        raise _WrongAnswerError("vectors without values")
    if width is not None and vectors.shape[1] != width:
        raise _WrongAnswerError(f"vectors of {vectors.shape[1]} dimensions")
    if not np.isfinite(vectors).all():
        raise _WrongAnswerError("a vector that is not finite")
    if not vectors.any(axis=1).all():
        raise _WrongAnswerError("a vector of zeros")
    return vectors
