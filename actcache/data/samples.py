"""Samples: one prompt with two completions, a label or neither; its digest and its letter."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actcache.data.spans import Part, Span

TEXT_COLUMNS = (
    *("id", "behavior", "variant", "split", "label", "letter"),
    *("prompt", "positive", "negative", "system", "digest"),
)
"""The text columns of a store, one value per sample; empty where a sample has none."""

HISTORY = "history"
"""The column of a store with the turns before each prompt, as JSON messages; only stores that have
such turns have it."""

History = tuple[tuple[str, str], ...]
"""Turns of a conversation: role (user or assistant) and text."""

_ONE_WORD = re.compile(r"\W*(\w+)\W*")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, with two completions, with a class label, or alone.

    Samples are compared by everything but `source`.
    """

    id: str
    """Unique in a build; `<behavior>/<row number from 0>` unless the row has one."""

    behavior: str
    """The data set that the sample belongs to."""

    variant: str = "base"
    """One of `VARIANTS`."""

    prompt: str
    """The user's message, without system message, chat template or BOS."""

    positive: str | None
    """The completion that shows the behavior, as given, leading space included; None without."""

    negative: str | None
    """The completion that does not; None without."""

    label: str | None
    """The class of the prompt; None where there are completions, and of a plain prompt."""

    letter: str
    """The positive answer, for example `A` or `Yes`; empty unless both are one word."""

    split: str = ""
    """One of `SPLITS`; empty until one is assigned."""

    system: str | None = None
    """The row's own system message; with None the build's is used."""

    span: Span | None = None
    """The marked part of the prompt (see `span_part`), as characters `[start, end)`. An empty one
    marks nothing on purpose; None where the row does not say."""

    span_part: Part = "prompt"
    """The text that `span` counts characters of."""

    span_text: str = field(default="", compare=False)
    """The marked text where the row gave one; looked for in the persona's sentences of variants."""

    source: str = field(default="", compare=False)
    """Where the sample was read, for messages: file name and line or row. Not in the store."""

    history: History = ()
    """Turns of the conversation before the prompt."""

    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else the row says, by key: columns of the store. Not in the digest."""

    @property
    def kind(self) -> str:
        """What it is: `pair`, `label` or `prompt`."""
        if self.positive is not None:
            return "pair"
        return "prompt" if self.label is None else "label"

    @property
    def conversation(self) -> str:
        """The earlier turns and the prompt as one text, for comparing and embedding."""
        return "\n\n".join([*(text for _, text in self.history), self.prompt])

    @property
    def base_id(self) -> str:
        """The id of the row of which this is a variant; its own id for `base`."""
        return self.id if self.variant == "base" else self.id.removesuffix(f"@{self.variant}")

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over behavior, variant, all texts, span and history.

        Id, split, source and extra keys are left out: a row that moves or gets a split keeps its
        digest.
        """
        content: tuple[object, ...] = (
            self.behavior,
            self.variant,
            self.system,
            self.prompt,
            self.positive,
            self.negative,
            self.label,
        )
        # Appended only where there is one, so that other samples keep the digest they always had.
        if self.history:
            content = (*content, self.span, self.history)
        elif self.span is not None:
            content = (*content, self.span)
        if self.span_part == "system":
            content = (*content, self.span_part)
        return _sha256(content)[:16]


def letter_of(positive: str | None, negative: str | None) -> str:
    """Name the positive answer if both completions are one word: `A` for " (A)".

    Published behaviors ask for a letter or a word, and models lean to one of them: results are
    balanced and shown by this letter. Empty where either completion is not one word.

    Example:
        >>> letter_of(" (A)", " (B)"), letter_of(" Yes", " No"), letter_of("I do.", "No.")
        ('A', 'Yes', '')
    """
    if positive is None or negative is None:
        return ""
    match = _ONE_WORD.fullmatch(positive)
    return match[1] if match and _ONE_WORD.fullmatch(negative) else ""


def samples_digest(samples: Iterable[Sample]) -> str:
    """Hash the data of a store: 64 hex digits of SHA-256 over all ids, splits and digests."""
    return rows_digest((sample.id, sample.split, sample.digest) for sample in samples)


def rows_digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """Hash rows given as id, split and digest; equals `samples_digest` of the same samples."""
    return _sha256(list(rows))


def _sha256(content: object) -> str:
    # JSON keeps None, "" and the borders of texts apart; ASCII escapes avoid any encoding choice.
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
