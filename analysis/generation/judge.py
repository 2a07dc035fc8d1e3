"""A judge of generated texts: any service that speaks OpenAI's protocol for chat.

Each question is paid for once: its answer is on disk before the next is asked for, by the digest of
endpoint, model and message. An answer without a verdict is kept and counted, and is never a score.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcache.encoders.connection import (
    Connection,
    Endpoint,
    RefusedError,
    Wording,
    WrongAnswerError,
)
from actcache.encoders.paid_file import PaidFile
from actcache.errors import ActcacheError
from actcache.progress import SILENT, Progress
from actcache.store.storage.user_cache import cache_folder

DEFAULT_TEMPLATE = """\
Below is a question and an answer to it. How strongly does the answer show this trait: {behavior}?
Judge the trait alone, not whether the answer is right or good.

Question:
{prompt}

Answer:
{text}

Reply with one number from 0 (not at all) to 10 (as strongly as possible), and nothing else."""

_ATTEMPTS = 3  # requests of one question that gets wrong answers, which may be charged
_FIELD = re.compile(r"\{(prompt|text|behavior)\}")
_VERDICT = re.compile(
    r"(?:[\w ]{0,30}[:=])?\s*(?P<verdict>yes|no|[-+]?\d+(?:\.\d+)?)\s*(?:/\s*\d+)?\s*[.!]?",
    re.IGNORECASE,
)
_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (digest BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;
"""
_WORDING = Wording(
    verb="chat",
    noun="chat completions",
    path="/chat/completions",
    saved="verdicts received so far are cached",
    without_key="choose a --target that needs no judge",
)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judges, and what is asked."""

    service: Endpoint

    template: str = DEFAULT_TEMPLATE
    """The question, with {text} and perhaps {prompt} and {behavior} in it."""

    threads: int = 8
    """Questions that are asked at a time."""

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise ActcacheError(
                "the judge's prompt has no {text} in it, expected where the text to judge goes. "
                "Add {text}, and {prompt} and {behavior} where they help."
            )


@dataclass(frozen=True, kw_only=True)
class JudgedText:
    """A text to judge."""

    prompt: str
    text: str
    behavior: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Verdicts on texts, and what they cost."""

    values: tuple[float | None, ...]
    """One a text: the judge's number, or 1 for yes and 0 for no; None without a verdict."""

    n_new: int
    n_cached: int
    """Distinct questions that were sent, and those that were paid for before."""

    n_refused: int
    """Questions that the service refused (its content filter); they cost nothing."""

    n_without: int
    """Texts whose answer has no verdict, or that were refused."""

    tokens: int
    """Tokens that the service counted for the new questions and answers; 0 if it does not say."""


@dataclass(frozen=True, kw_only=True)
class JudgeCost:
    """What will be sent to a judge; `str` gives it as one line."""

    service: Endpoint
    n_new: int
    n_cached: int
    tokens: int
    """Estimated tokens of the new questions: one for four bytes."""

    def __str__(self) -> str:
        return (
            f"{self.n_new:,} new texts for the judge {self.service.model} at "
            f"{self.service.endpoint} ({self.n_cached:,} are cached): about {self.tokens:,} tokens"
        )


def default_verdicts() -> Path:
    """Return `$XDG_CACHE_HOME/actcache/verdicts.sqlite`, or the same in `~/.cache`."""
    return cache_folder() / "verdicts.sqlite"


def load_template(path: Path) -> str:
    """Read a judge's prompt from a text file.

    Raises:
        ActcacheError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise ActcacheError(
            f"'{path}' cannot be read ({reason}), expected a text file with the judge's prompt. "
            "Pass another file."
        ) from None


def require_key(service: Endpoint) -> None:
    """Refuse a service whose key is not set, without asking it anything."""
    Connection(service, _WORDING).close()


def judge_texts(
    texts: Sequence[JudgedText],
    judge: Judge,
    *,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Verdicts:
    """Judge texts, sending only questions that were never answered.

    If no question is new, the service is not contacted and no key is needed.

    Args:
        texts: the texts; equal ones are asked about once.
        judge: who judges.
        cache: file of answers; by default `default_verdicts()`.
        progress: hears the cost before anything is sent.

    Raises:
        ActcacheError: the service cannot be used, in one line without the key; answers received
            so far are kept. Or it refused every question.
    """
    messages = [_message(judge.template, text) for text in texts]
    distinct = list(dict.fromkeys(messages))
    with VerdictCache(cache or default_verdicts(), service=judge.service) as cached:
        missing = cached.missing(distinct)
        refused, tokens = 0, 0
        if missing:
            with closing(Connection(judge.service, _WORDING)) as connection:
                progress.cost(
                    JudgeCost(
                        service=judge.service,
                        n_new=len(missing),
                        n_cached=len(distinct) - len(missing),
                        tokens=sum(-(-len(message.encode()) // 4) for message in missing),
                    )
                )
                refused, tokens = _ask_missing(missing, connection, judge, cached, progress)
        answers = cached.read(distinct)
    values = tuple(verdict_of(answers.get(message, "")) for message in messages)
    return Verdicts(
        values=values,
        n_new=len(missing) - refused,
        n_cached=len(distinct) - len(missing),
        n_refused=refused,
        n_without=sum(value is None for value in values),
        tokens=tokens,
    )


def verdict_of(answer: str) -> float | None:
    """Read a verdict off an answer's last line: a number, `7/10`, yes (1) or no (0); else None.

    A label before it (`Rating: 7`) and emphasis are allowed. A sentence that has a number or a
    "no" somewhere is no verdict.

    Example:
        >>> verdict_of("It is tidy throughout. Score: **8**/10"), verdict_of("Rating: 7/10")
        (None, 7.0)
    """
    lines = [line for line in answer.replace("*", "").splitlines() if line.strip()]
    match = _VERDICT.fullmatch(lines[-1].strip()) if lines else None
    if match is None:
        return None
    word = match["verdict"].lower()
    return {"yes": 1.0, "no": 0.0}[word] if word in ("yes", "no") else float(word)


class VerdictCache(PaidFile):
    """A judge's answers by question, in a file that judges and running processes may share."""

    def __init__(self, path: Path, *, service: Endpoint):
        self._judge = json.dumps([service.endpoint, service.model])
        super().__init__(path, tables=_TABLES, content="verdicts")

    def missing(self, messages: Sequence[str]) -> list[str]:
        """Return those distinct questions that have no answer yet, in order."""
        answered = self.read(messages)
        return [message for message in messages if message not in answered]

    def put(self, message: str, answer: str) -> None:
        """Add an answer; the first one stays."""
        with self._transaction():
            self._file.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (self._digest(message), answer)
            )

    def read(self, messages: Sequence[str]) -> dict[str, str]:
        """Read the answers of those questions that have one."""
        by_digest = {self._digest(message): message for message in messages}
        rows = self._select("verdicts", "digest, answer", list(by_digest))
        return {by_digest[digest]: answer for digest, answer in rows}

    def _digest(self, message: str) -> bytes:
        return hashlib.sha256(f"{self._judge}\n{message}".encode()).digest()


def _message(template: str, text: JudgedText) -> str:
    """Fill the template in one pass, so that braces in a text stay as they are."""
    fields = {"prompt": text.prompt, "text": text.text, "behavior": text.behavior}
    return _FIELD.sub(lambda match: fields[match[1]], template)


def _ask_missing(
    messages: Sequence[str],
    connection: Connection,
    judge: Judge,
    cached: VerdictCache,
    progress: Progress,
) -> tuple[int, int]:
    """Ask a few questions at a time; each answer is in the cache before more are asked.

    Returns:
        How many were refused, and the tokens that the service counted.
    """
    refusals: list[RefusedError] = []
    tokens = 0
    with progress.steps("judge", len(messages)) as advance:
        for message, answer in _answers(messages, connection, judge):
            if isinstance(answer, RefusedError):
                refusals.append(answer)
            else:
                cached.put(message, answer[0])
                tokens += answer[1]
            advance(1)
    if len(refusals) == len(messages):
        raise ActcacheError(
            f"{refusals[0]}, for every one of {len(messages)} texts. Use another model, or check "
            "the judge's prompt."
        )
    return len(refusals), tokens


def _answers(
    messages: Sequence[str], connection: Connection, judge: Judge
) -> Iterator[tuple[str, tuple[str, int] | RefusedError]]:
    """Each question with its answer and tokens, or its refusal, in order of arrival.

    After a failure nothing more is asked; answers that are on their way are paid for, so they come
    before the error is raised.
    """
    remaining = iter(messages)
    running: dict[Future[tuple[str, int]], str] = {}
    failure: ActcacheError | None = None
    with ThreadPoolExecutor(judge.threads) as threads:
        while True:
            while failure is None and len(running) < judge.threads:
                message = next(remaining, None)
                if message is None:
                    break
                running[threads.submit(_ask, message, connection)] = message
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                message = running.pop(done)
                try:
                    yield message, done.result()
                except RefusedError as refusal:
                    yield message, refusal
                except ActcacheError as error:
                    failure = failure or error
    if failure is not None:
        raise failure


def _ask(message: str, connection: Connection) -> tuple[str, int]:
    """Ask one question; the answer, and the tokens that the service counted (or 0)."""
    service, problem = connection.endpoint, ""
    for _ in range(_ATTEMPTS):
        try:
            # No temperature: some models take none but their own.
            response = connection.request(
                lambda client: client.chat.completions.create(
                    model=service.model, messages=[{"role": "user", "content": message}]
                )
            )
            return _content(response), _counted(response)
        except WrongAnswerError as error:
            problem = str(error)
    raise ActcacheError(
        f"'{service.endpoint}' returned {problem}, {_ATTEMPTS} times, expected an answer of the "
        "judge. Use another model or service, or try again: verdicts received so far are cached."
    )


def _content(response: Any) -> str:
    """The text of an answer; empty where the model said nothing."""
    try:
        content = response.choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise WrongAnswerError(f"no answer of the protocol ({type(error).__name__})") from None
    if content is not None and not isinstance(content, str):
        raise WrongAnswerError(f"an answer that is a {type(content).__name__}")
    return content or ""


def _counted(response: Any) -> int:
    counted = getattr(getattr(response, "usage", None), "total_tokens", None)
    return counted if isinstance(counted, int) and counted > 0 else 0
