"""Marked spans of prompts, as the characters that a row's `span` names.

Attention-guided steering asks how much attention falls on a part of the prompt, such as the prefix
that names a concept. `actcache.prompts.spans` finds the tokens of those characters.
"""

from typing import Any

from actcache.data.readers import RawRow, json_type
from actcache.errors import RowError

Span = tuple[int, int]
"""`[start, end)`, in characters or in tokens. One that ends where it starts marks nothing."""

SPAN = "span"
"""The column of a store with the marked tokens of each prompt, `[n, 2]`; only stores with attention
have it."""


def marked_span(row: RawRow, prompt: str) -> Span | None:
    """Find the characters of the prompt that a row marks.

    The row's `span` is `[start, end]`, counted in characters from 0, the one at `end` excluded
    (equal ends mark nothing), or a text that occurs in the prompt exactly once. None without it.
    """
    value: Any = row.values.get("span")
    if value is None:
        return None
    if isinstance(value, str):
        starts = [i for i in range(len(prompt)) if value and prompt.startswith(value, i)]
        if len(starts) != 1:
            raise RowError(
                f"{row.place}: 'span' is {value!r}, which occurs in the prompt {len(starts)} "
                "times, expected once. Write a longer text, or the characters as [start, end]."
            )
        return starts[0], starts[0] + len(value)
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
    return start, end
