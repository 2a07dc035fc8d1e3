"""A connection to a service that speaks OpenAI's protocol: its key, its retries, its errors.

The package `openai` sends requests and repeats those that may succeed later. Here errors become one
line that never holds the key. What is sent, and how answers are checked, is said by `service`
(embeddings) and by the judge of generated texts (chat).
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from actcache.errors import ActcacheError

if TYPE_CHECKING:  # it takes a second to import
    import openai

OPENAI = "https://api.openai.com/v1"

KEY = "OPENAI_API_KEY"
"""Name of the environment variable that holds the key; it is read from nowhere else."""

_NO_KEY = "none"  # a local server needs no key, but the client does not accept an empty one
_KEY_PART = 8  # characters of the key in a row that no message may hold
_LIKE_A_KEY = re.compile(r"\b(sk|pk|key|token)[-_][\w-]{12,}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A service, a model of it, and how patiently it is asked."""

    endpoint: str
    """Its address, from `endpoint_of`."""

    model: str
    """The service's name of the model."""

    timeout: float = 60.0
    """Seconds that the service may stay silent."""

    retries: int = 6
    """Requests after the first that one question may take."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What error messages call that which is asked for."""

    verb: str
    """What the key must allow: `embed`."""

    noun: str
    """What the service must have: `embeddings`."""

    path: str
    """Where it has it: `/embeddings`."""

    saved: str
    """What a failure does not lose: `embeddings received so far are cached`."""

    without_key: str
    """What to do without a key: `use the encoder cache, which needs none`."""


class RefusedError(ActcacheError):
    """The service refuses this request, but may accept fewer or shorter texts."""


class WrongAnswerError(Exception):
    """The service answered, but not with what was requested."""


class Connection:
    """A connection to a service. A context manager; threads may share it.

    The `openai` client repeats a request after 408, 409, 429 and 5xx, a timeout or a dropped
    connection, at growing intervals; it obeys Retry-After up to two minutes.
    """

    def __init__(self, endpoint: Endpoint, wording: Wording):
        import openai

        self.endpoint = endpoint
        self._wording = wording
        self._key = key_for(endpoint.endpoint, wording)
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=endpoint.endpoint,
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def request(self, call: Callable[["openai.OpenAI"], Any]) -> Any:
        """Send what `call` sends with the client; explain what fails.

        Raises:
            ActcacheError: in one line without the key; `RefusedError` where the request itself is
                refused.
            WrongAnswerError: the answer is none of the protocol.
        """
        import openai

        address, saved = self.endpoint.endpoint, self._wording.saved
        try:
            return call(self._client)
        # `from None`: the causes hold the request, and so the key.
        except openai.APITimeoutError:
            raise ActcacheError(
                f"'{address}' did not answer within {self.endpoint.timeout:g} s, even when "
                f"asked again. Try again later: {saved}."
            ) from None
        except openai.APIConnectionError:
            raise ActcacheError(
                f"'{address}' cannot be reached, or drops the connection. Check the "
                f"address and the network, and try again: {saved}."
            ) from None
        except openai.APIStatusError as error:
            raise self._error_of(error) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None

    def _error_of(self, error: "openai.APIStatusError") -> ActcacheError:
        """The error of a request that the service refused, in one line."""
        status, message = error.status_code, self._message_without_key(error)
        words = self._wording
        where = f"'{self.endpoint.endpoint}' ({status})"
        if status in (401, 403):
            return ActcacheError(
                f"{where} refuses the key, expected one that may {words.verb} with "
                f"'{self.endpoint.model}'. Set {KEY} to such a key."
            )
        if status in (400, 413, 422):
            return RefusedError(f"{where} refuses the request{message}")
        if status == 404:
            return ActcacheError(
                f"{where} has no model '{self.endpoint.model}', or no {words.noun}{message}. Pass "
                f"another model, or the address up to and without {words.path}."
            )
        problem, remedy = "fails", "Try again later"
        if status == 429:
            problem, remedy = "refuses more requests for now", "Check your quota, or try later"
        return ActcacheError(f"{where} {problem}{message}. {remedy}: {words.saved}.")

    def _message_without_key(self, error: "openai.APIStatusError") -> str:
        """The service's message after a colon, in one line; nothing if it holds part of the key."""
        message = error.body.get("message") if isinstance(error.body, dict) else None
        message = message if isinstance(message, str) else str(error.message)
        parts = range(max(len(self._key) - _KEY_PART, 0) + 1)
        if self._key != _NO_KEY and any(self._key[i : i + _KEY_PART] in message for i in parts):
            return ""
        line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
        line = line[:200].rstrip(". ")  # ours ends the sentence
        return f": {line}" if line else ""


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
    if (
        not host
        or parts.scheme not in ("http", "https")
        or set("@?#") & set(given)
        or _holds_key(given)
    ):
        raise ActcacheError(  # without the address: what is wrong with it may be a secret in it
            "base_url, the service's address, is not of the form https://HOST/v1, or has a user, a "
            f"password, a query or a key in it. Pass it without; a key belongs in {KEY}."
        )
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


def _holds_key(address: str) -> bool:
    """Whether an address holds the key of the environment, or what looks like one."""
    key = os.environ.get(KEY, "").strip()
    return (len(key) >= _KEY_PART and key in address) or bool(_LIKE_A_KEY.search(address))


def key_for(endpoint: str, wording: Wording) -> str:
    """Read the key from the environment; an address other than OpenAI's may need none."""
    key = os.environ.get(KEY, "").strip()
    if not key and endpoint != OPENAI:
        return _NO_KEY
    if not key:
        raise ActcacheError(
            f"{KEY} is not set, expected a key for '{endpoint}'. Set it in the environment, or "
            f"{wording.without_key}."
        )
    if not all("!" <= character <= "~" for character in key):  # the client's error would show it
        raise ActcacheError(
            f"{KEY} has spaces or characters that no key has, expected printable ASCII. Set it "
            "again, without quotes and line breaks."
        )
    return key
