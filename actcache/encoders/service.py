"""One request to a service that speaks OpenAI's protocol for embeddings, and its answer, checked.

Retries what may pass, says in one line what will not, and lets no message carry the key. Knows
nothing of stores, of what was asked before, or of what it costs.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from jaxtyping import Float32

from actcache.encoders.price import OPENAI
from actcache.errors import ActcacheError

if TYPE_CHECKING:  # it takes a second to import
    import openai

KEY = "OPENAI_API_KEY"
"""Name of the environment variable that holds the key; it is read nowhere else, written nowhere."""

ATTEMPTS = 3
"""How often a batch is asked for that is answered wrongly. Wrong answers may be charged."""

_NO_KEY = "none"  # a local server needs none, but the client wants a word
_WINDOW = 8  # signs of a key in a row that no message may hold


class RefusedError(ActcacheError):
    """The service refuses this batch as it is; with fewer or shorter texts it may not."""


class Service:
    """An endpoint and a model.

    The `openai` client itself waits and asks again, up to `retries` times a request and at growing
    distance, after 408, 409, 429 and 5xx, a time-out or a dropped connection; it obeys Retry-After
    up to two minutes. Here answers are checked, and wrong ones asked for again.

    Args:
        model: the service's name of the model.
        dimensions: width to ask for; None leaves it to the model.
        base_url: the service's address; by default `$OPENAI_BASE_URL`, or OpenAI's.
        timeout: seconds that the service may stay silent.
        retries: requests after the first that a batch may take.

    Raises:
        ActcacheError: the address or the key cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int | None = None,
        base_url: str | None = None,
        timeout: float = 60.0,
        retries: int = 6,
    ):
        import openai

        self.model = model
        self.endpoint = endpoint_of(base_url)
        self._dimensions = dimensions
        self._key = _key_for(self.endpoint)
        self._timeout = timeout
        self._client = openai.OpenAI(
            api_key=self._key, base_url=self.endpoint, timeout=timeout, max_retries=retries
        )

    def ask(
        self, texts: Sequence[str], *, width: int | None
    ) -> tuple[Float32[np.ndarray, "n e"], int]:
        """Embed a batch.

        Args:
            texts: distinct, none empty.
            width: what vectors must have, where it is known.

        Returns:
            Their vectors in order, finite, none all zeros, of one width, not scaled; and the
            tokens that the service says it counted, 0 where it does not say.

        Raises:
            RefusedError: 400, 413 or 422.
            ActcacheError: the service cannot be reached, refuses the key or the model, or keeps
                giving wrong answers.
        """
        wanted = self._dimensions if width is None else width
        wrong = ""
        for _ in range(ATTEMPTS):
            try:
                answer: Any = self._request(texts)
                return _vectors(answer, len(texts), wanted), _tokens(answer)
            except _WrongAnswerError as error:
                wrong = str(error)
        known = "" if wanted is None else f" of {wanted} dimensions"
        raise ActcacheError(
            f"'{self.endpoint}' gave {wrong}, {ATTEMPTS} times, expected a finite vector{known} "
            f"for each of {len(texts)} texts. Use another model or service, or try again; where a "
            "model's width has changed, keep its embeddings in another file."
        )

    def _request(self, texts: Sequence[str]) -> object:
        import openai

        try:
            # Floats, not base64: not every compatible server knows the latter.
            return self._client.embeddings.create(
                model=self.model,
                input=list(texts),
                encoding_format="float",
                extra_body=None if self._dimensions is None else {"dimensions": self._dimensions},
            )
        # The causes are cut off: they hold the request, and so the key.
        except openai.APITimeoutError:
            raise ActcacheError(
                f"'{self.endpoint}' did not answer within {self._timeout:g} s, though asked again "
                "and again. Try again later: what it gave so far is kept."
            ) from None
        except openai.APIConnectionError:
            raise ActcacheError(
                f"'{self.endpoint}' cannot be reached, or drops the connection. Check the address "
                "and the network, and try again: what it gave so far is kept."
            ) from None
        except openai.APIStatusError as error:
            raise self._explained(error.status_code, _said(error)) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise _WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None

    def _explained(self, status: int, message: str) -> ActcacheError:
        where = f"'{self.endpoint}' ({status})"
        if status in (401, 403):
            return ActcacheError(
                f"{where} refuses the key, expected one that may embed with '{self.model}'. Set "
                f"{KEY} to such a key."
            )
        said = self._harmless(message)
        if status in (400, 413, 422):
            return RefusedError(f"{where} refuses the request{said}")
        if status == 404:
            return ActcacheError(
                f"{where} has no model '{self.model}' or no embeddings{said}. Pass another model, "
                "or the address up to and without /embeddings."
            )
        if status == 429:
            return ActcacheError(
                f"{where} refuses more requests for now{said}. Wait, or see to your quota, and try "
                "again: what it gave so far is kept."
            )
        return ActcacheError(f"{where} fails{said}. Try again later: what it gave so far is kept.")

    def _harmless(self, message: str) -> str:
        """What the service said, in one line; nothing where a part of the key is in it."""
        parts = range(max(len(self._key) - _WINDOW, 0) + 1)
        if self._key != _NO_KEY and any(self._key[i : i + _WINDOW] in message for i in parts):
            return ""
        line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        return f": {line[:200]}" if line else ""

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def endpoint_of(base_url: str | None) -> str:
    """The address that is asked, in one spelling; it is shown and kept, so it holds no secret.

    Raises:
        ActcacheError: it is no address, or has a password or a query in it.
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
            f"or a query in it. Pass it without; a key belongs into {KEY}."
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def _key_for(endpoint: str) -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        if endpoint != OPENAI:
            return _NO_KEY
        raise ActcacheError(
            f"{KEY} is not set, expected a key for '{endpoint}'. Set it in the environment, or "
            "use the encoder cache, which needs none."
        )
    # The client would put such a key into the text of an error.
    if not all("!" <= sign <= "~" for sign in key):
        raise ActcacheError(
            f"{KEY} has spaces or signs in it that no key has, expected printable ASCII. Set it "
            "again, without quotes and line breaks."
        )
    return key


def _said(error: "openai.APIStatusError") -> str:
    """The service's own words, where its answer has the shape of the protocol's errors."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else str(error.message)


class _WrongAnswerError(Exception):
    """The service answered, but not what was asked."""


def _vectors(answer: Any, n: int, width: int | None) -> Float32[np.ndarray, "n e"]:
    """Check an answer: the client does not."""
    try:
        items = {int(item.index): item.embedding for item in answer.data}
        n_items = len(answer.data)
        with np.errstate(over="ignore"):
            rows = [np.asarray(items[i], np.float32) for i in sorted(items)]
    except (AttributeError, TypeError, ValueError) as error:
        raise _WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None
    if n_items != n:
        raise _WrongAnswerError(f"{n_items} vectors for {n} texts")
    if sorted(items) != list(range(n)):
        raise _WrongAnswerError("vectors whose numbers do not run from 0 on")
    found = {row.shape for row in rows}
    if len(found) > 1 or len(rows[0].shape) != 1 or not rows[0].size:
        raise _WrongAnswerError("vectors of different shapes")
    if width is not None and rows[0].size != width:
        raise _WrongAnswerError(f"vectors of {rows[0].size} dimensions")
    vectors = np.stack(rows)  # [n, e]
    if not np.isfinite(vectors).all():
        raise _WrongAnswerError("a vector that is not finite")
    if not vectors.any(axis=1).all():
        raise _WrongAnswerError("a vector of zeros")
    return vectors


def _tokens(answer: Any) -> int:
    counted = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
    return counted if isinstance(counted, int) and counted > 0 else 0
