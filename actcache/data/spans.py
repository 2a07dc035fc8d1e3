"""A marked span of a prompt, from a row's key to characters.

Attention-guided steering asks how much attention falls on a part of the prompt, such as the prefix
that names a concept. `actcache.prompts.spans` says which tokens those characters are.
"""

from typing import Any

from actcache.data.readers import RawRow, kind_of
from actcache.errors import RowError

Span = tuple[int, int]
"""`[start, end)`, in characters or in tokens. One that ends where it starts marks nothing."""

SPAN = "span"
"""The column of a store that keeps the marked tokens of each prompt, `[n, 2]`; it is there where
attention was read."""


def marked_span(row: RawRow, prompt: str) -> Span | None:
    """What a row's key `span` marks of its prompt.

    Args:
        row: its `span` is `[start, end]`, characters from 0 and without the one at `end` (equal
            ends mark nothing), or a text that stands in the prompt exactly once.
        prompt: the row's prompt.

    Returns:
        Characters of the prompt; None where the row has no such key.

    Raises:
        RowError: it is neither, or lies outside the prompt.
    """
    value: Any = row.values.get("span")
    if value is None:
        return None
    if isinstance(value, str):
        starts = [at for at in range(len(prompt)) if value and prompt.startswith(value, at)]
        if len(starts) != 1:
            raise RowError(
                f"{row.place}: 'span' is {value!r}, which stands in the prompt {len(starts)} "
                "times, expected once. Write a longer text, or the characters as [start, end]."
            )
        return starts[0], starts[0] + len(value)
    if not isinstance(value, list | tuple) or [type(part) for part in value] != [int, int]:
        found = repr(value) if isinstance(value, list | tuple) else kind_of(value)
        raise RowError(
            f"{row.place}: 'span' is {found[:60]}, expected a text that stands in the prompt once, "
            "or its characters as [start, end]. Write one of them, or drop the key."
        )
    start, end = value
    if not 0 <= start <= end <= len(prompt):
        raise RowError(
            f"{row.place}: 'span' is [{start}, {end}], but the prompt has {len(prompt)} "
            "characters, expected 0 ≤ start ≤ end within it. Count from 0, without the one at end."
        )
    return start, end
