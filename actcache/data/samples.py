"""What one row of data is once it has been read: a sample, its identity, and its letter.

Knows the words (variant, split, letter) and how a sample is told from another. Refuses to know
files and formats (`rows`), tokens (`render`), and how splits are drawn (`splits`).
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

TEXT_COLUMNS = (
    *("id", "behavior", "variant", "split", "label", "letter"),
    *("prompt", "positive", "negative", "system", "digest"),
)
"""What a store keeps of each sample in words; empty where a sample has no such thing."""

_ONE_WORD = re.compile(r"\W*(\w+)\W*")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt with either two completions or a class label.

    Two samples are equal if everything but `source` is.
    """

    id: str
    """Unique among all samples of a build; `<behavior>/<row number from 0>` unless the row says."""

    behavior: str
    """The data set that the sample belongs to."""

    variant: str = "base"
    """One of `VARIANTS`."""

    prompt: str
    """The user's message, without system message, chat template or BOS."""

    positive: str | None
    """The completion that shows the behavior, as given, leading space and all; None for labels."""

    negative: str | None
    """The completion that does not; None for labels."""

    label: str | None
    """The class of the prompt; None where there are completions."""

    letter: str
    """Which answer is the positive one, for example `A` or `Yes`; empty where none is one word."""

    split: str = ""
    """One of `SPLITS`; empty until one is assigned."""

    system: str | None = None
    """The row's own system message; None leaves it to the build's."""

    span: tuple[int, int] | None = None
    """The part of the prompt that is marked, as characters `[start, end)`; an empty one marks
    nothing, and None says that nobody was asked."""

    source: str = field(default="", compare=False)
    """Where the sample was read, for messages: file name and line or row. Not stored."""

    @property
    def base_id(self) -> str:
        """The id of the row that this sample is a variant of; its own id for `base`."""
        return self.id if self.variant == "base" else self.id.removesuffix(f"@{self.variant}")

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over what the sample says: behavior, variant, all texts, span.

        Id, split and source are left out: a row that is moved or assigned keeps its digest.
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
        return _sha256(content if self.span is None else (*content, self.span))[:16]


def letter_of(positive: str | None, negative: str | None) -> str:
    """The positive answer, where both completions are one word: `A` for " (A)", `Yes` for " Yes".

    Published behaviors ask for a letter or a word, and models lean to one of them: results are
    balanced and shown by this letter.

    Args:
        positive: the positive completion, or None.
        negative: the negative completion, or None.

    Returns:
        The word without what surrounds it; empty where either completion is not one word.

    Example:
        >>> letter_of(" (A)", " (B)"), letter_of(" Yes", " No"), letter_of("I do.", "No.")
        ('A', 'Yes', '')
    """
    if positive is None or negative is None:
        return ""
    found = _ONE_WORD.fullmatch(positive)
    return found[1] if found and _ONE_WORD.fullmatch(negative) else ""


def samples_digest(samples: Iterable[Sample]) -> str:
    """64 hex digits of SHA-256 over id, split and digest of every sample, in order.

    What a store keeps to know its data again.
    """
    return rows_digest((sample.id, sample.split, sample.digest) for sample in samples)


def rows_digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """The same of rows of which a store keeps id, split and digest."""
    return _sha256(list(rows))


def _sha256(content: object) -> str:
    # JSON tells None from "" and one text from two; ASCII escapes leave no choice of encoding.
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
