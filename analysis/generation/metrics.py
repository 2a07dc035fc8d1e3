"""What a text itself shows: repetition, compression, script, form, refusal phrases.

None of it needs a model. `nll_unsteered` and `read_back` come from `actcache.steering.scoring`.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_GRAM = 4
_APOSTROPHES = str.maketrans("’‘ʼ＇", "''''")


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Metrics of one text; None where a text has too little to measure."""

    n: int
    """Generated tokens."""

    ended: bool
    """Whether it ended by itself, not at the limit of new tokens."""

    empty: bool
    """Whether it has nothing but white space."""

    n_bytes: int
    """UTF-8 bytes: short texts compress badly, so compare texts of one length."""

    repetition: float | None
    """Share of 4-grams of words that repeat an earlier one; None under 4 words."""

    compression: float | None
    """Bytes compressed by zlib (level 9) over bytes; above 1 for short texts. None if empty."""

    script: float | None
    """Share of letters of the expected scripts; None without letters."""

    well_formed: bool | None
    """Whether the form's expression matches the whole text; None without a form."""

    refusal: bool
    """Whether it contains a refusal phrase."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How texts are measured."""

    form: re.Pattern[str] | None = None
    """Of a well-formed text, white space around it aside; None asks for no form."""

    scripts: tuple[str, ...] = ("LATIN",)
    """First words of the letters' Unicode names: LATIN, CYRILLIC, CJK, HIRAGANA, …"""

    phrases: tuple[str, ...] = ()
    """Refusal phrases, of `load_phrases`."""

    within: int | None = None
    """Look for phrases in this many first characters; None looks everywhere."""


def measure_text(text: str, *, n: int, ended: bool, rules: TextRules) -> TextMetrics:
    """Measure one generated text of `n` tokens."""
    return TextMetrics(
        n=n,
        ended=ended,
        empty=not text.strip(),
        n_bytes=len(text.encode()),
        repetition=repetition(text),
        compression=compression(text),
        script=script_consistency(text, rules.scripts),
        well_formed=None if rules.form is None else bool(rules.form.fullmatch(text.strip())),
        refusal=has_phrase(text, rules.phrases, within=rules.within),
    )


def repetition(text: str) -> float | None:
    """Compute the share of 4-grams of words that occurred before; None under 4 words.

    1 - distinct / all, as Selective Steering's code; which gives 0 to texts that have no 4-gram.

    Example:
        >>> repetition("so it goes and so it goes and so")
        0.33333333333333337
    """
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else None


def compression(text: str) -> float | None:
    """Compute bytes after zlib at level 9 over bytes before; None for an empty text."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else None


def script_consistency(text: str, scripts: Sequence[str]) -> float | None:
    """Compute the share of letters whose script is expected; None without letters.

    Digits, punctuation, symbols and marks belong to no script. The text is normalized (NFC).
    """
    of_letters = [s for c in unicodedata.normalize("NFC", text) if (s := _script(c)) is not None]
    return sum(s in scripts for s in of_letters) / len(of_letters) if of_letters else None


@lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    """The first word of a letter's name (LATIN, CYRILLIC, CJK, …); None if it is no letter."""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return None
    # Full-width, bold and ordinal letters are named for their shape; their plain form for a script.
    plain = unicodedata.normalize("NFKC", character)[0]
    return unicodedata.name(plain, "UNNAMED").split()[0]


def has_phrase(
    text: str, phrases: tuple[str, ...], *, within: int | None = None, whole: bool = False
) -> bool:
    """Whether a text has one of some phrases, whatever the case and the kind of apostrophe.

    Args:
        text: a text.
        phrases: none is empty.
        within: look at this many first characters; None looks at all.
        whole: match whole words alone: "tidy" is not in "untidy".
    """
    if not phrases:
        return False
    return _pattern(phrases, whole).search(_normalized(text)[:within]) is not None


@lru_cache(maxsize=32)
def _pattern(phrases: tuple[str, ...], whole: bool) -> re.Pattern[str]:
    either = "|".join(re.escape(_normalized(phrase)) for phrase in phrases)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)" if whole else either)


def _normalized(text: str) -> str:
    """Lower case, plain apostrophes, single spaces: how phrases are compared."""
    return " ".join(text.translate(_APOSTROPHES).lower().split())
