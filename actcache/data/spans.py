"""Marked spans of prompts, as the characters that a row's `span` names.

Attention-guided steering asks how much attention falls on a part of the prompt, such as the prefix
that names a concept. `actcache.prompts.spans` finds the tokens of those characters.
"""

from dataclasses import dataclass
from typing import Any, Literal

from actcache.data.readers import RawRow, json_type
from actcache.errors import RowError

Part = Literal["prompt", "system", "persona"]
"""The text that a marked span lies in: the prompt, the system message, or, until variants are
expanded, perhaps a persona's sentence."""

Span = tuple[int, int]
"""`[start, end)`, in characters or in tokens. One that ends where it starts marks nothing."""

SPAN = "span"
"""The column of a store with the marked tokens of each prompt, `[n, 2]`; only stores with attention
have it."""

CONTROL_SPAN = "control_span"
"""The column with the tokens of a random span of equal length, likewise."""


@dataclass(frozen=True)
class Mark:
    """What a row marks."""

    span: Span | None = None
    """Characters of `part`; None where the row does not say, or its text is not found yet."""

    part: Part = "prompt"

    text: str = ""
    """The marked text, where the row gave one."""


NOTHING: Span = (0, 0)
"""Of a row that marks nothing on purpose."""


def marked_span(row: RawRow, *, prompt: str, system: str | None) -> Mark:
    """Find what a row marks.

    The row's `span` is `[start, end]`, counted in characters of the prompt from 0, the one at `end`
    excluded (equal ends mark nothing), or a text that occurs once in the prompt and the row's
    system message together. A text that occurs in neither may still be in a persona's sentence:
    see `span_in_persona`.
    """
    value: Any = row.values.get("span")
    if value is None:
        return Mark()
    if isinstance(value, str):
        texts: dict[Part, str] = {"prompt": prompt, "system": system or ""}
        places = [
            Mark((start, start + len(value)), part, value)
            for part, text in texts.items()
            for start in _occurrences(value, text)
        ]
        if len(places) > 1 or not value:
            where = "the prompt" if system is None else "prompt and system message"
            raise RowError(
                f"{row.place}: 'span' is {value!r}, which occurs in {where} {len(places)} "
                "times, expected once. Write a longer text, or the characters as [start, end]."
            )
        return places[0] if places else Mark(None, "persona", value)
    if not isinstance(value, list | tuple) or [type(part) for part in value] != [int, int]:
        shown = repr(value) if isinstance(value, list | tuple) else json_type(value)
        raise RowError(
            f"{row.place}: 'span' is {shown[:60]}, expected a text that occurs in the prompt once, "
            "or its characters as [start, end]. Write one of them, or drop the key."
        )
    start, end = value
    if not 0 <= start <= end <= len(prompt):
        raise RowError(
            f"{row.place}: 'span' is [{start}, {end}], but the prompt has {len(prompt)} "
            "characters, expected 0 ≤ start ≤ end within it. Count from 0; end is exclusive."
        )
    return Mark((start, end))


def span_in_persona(text: str, sentence: str) -> Span:
    """Find a marked text in a persona's sentence; an empty span where it is not there once."""
    places = _occurrences(text, sentence)
    return (places[0], places[0] + len(text)) if len(places) == 1 else NOTHING


def _occurrences(part: str, text: str) -> list[int]:
    return [i for i in range(len(text)) if part and text.startswith(part, i)]
