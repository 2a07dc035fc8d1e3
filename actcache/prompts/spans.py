"""Marked spans of prompts: from characters of the prompt to tokens of the rendered text."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from actcache.data.spans import Span
from actcache.errors import RenderError

MARKS = ("\ufdd0", "\ufdd1")
"""Put around the span to find it again in the rendered text: code points that no text may hold."""


def require_spans(spans: Sequence[Span | None], names: Sequence[str]) -> None:
    """Refuse rows without a marked span, which attention needs; names the first."""
    without = [name for name, span in zip(names, spans, strict=True) if span is None]
    if without:
        raise RenderError(
            f"{len(without)} of {len(names)} rows mark no span (the first: '{without[0]}'), which "
            'the site attention needs. Add the key "span": a text of the prompt or [start, end], '
            "and [0, 0] where there is nothing to mark; or leave attention out of --sites."
        )


def random_span(prompt: Sequence[int], span: Span, *, n_read: int) -> Span:
    """Draw a span of as many tokens elsewhere in the prompt, the same for the same tokens.

    The first token, which draws attention whatever it is, and the last `n_read` ones, which are
    read, are left out. Where no gap is as long as the span, the longest one is taken whole.
    """
    stop = len(prompt) - n_read
    gaps = [(1, min(span[0], stop)), (max(span[1], 1), stop)]
    longest = max(end - start for start, end in gaps)
    length = min(span[1] - span[0], longest)
    if length <= 0:
        return 0, 0
    starts = [i for start, end in gaps for i in range(start, end - length + 1)]
    digest = hashlib.sha256(repr((tuple(prompt), span)).encode()).digest()
    start = starts[int.from_bytes(digest[:8], "big") % len(starts)]
    return start, start + length


def span_in_text(
    render: Callable[[str], str], prompt: str, span: Span, *, text: str, name: str
) -> Span:
    """Find the characters of the rendered `text` that a span of the prompt became.

    The prompt is rendered once more with a mark on either side of the span, so that a chat template
    may trim the prompt, or contain the same words elsewhere. `text` is `render(prompt)`; `name` is
    the row's id, for messages. `prompt` may also be the system message, with its own `render`.
    """
    start, end = span
    if start == end:
        return 0, 0
    part = prompt[start:end]
    # The template may trim white space at the ends of a span.
    inner = (start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip()))
    for first, last in (span, inner):
        if first >= last:
            continue
        marked = render(prompt[:first] + MARKS[0] + prompt[first:last] + MARKS[1] + prompt[last:])
        if marked.replace(MARKS[0], "").replace(MARKS[1], "") == text and all(
            marked.count(mark) == 1 for mark in MARKS
        ):
            return marked.index(MARKS[0]), marked.index(MARKS[1]) - 1
    raise RenderError(
        f"row '{name}': the marked span {part[:60]!r} does not appear once and unchanged in "
        "the rendered prompt. Mark visible text, or pass another --template."
    )


def span_in_tokens(
    tokenizer: Any, tokens: Sequence[int], span: Span, *, text: str, name: str
) -> Span:
    """Find the tokens `[start, end)` that overlap a span of the rendered text.

    A fast tokenizer reports the offsets of its tokens; with a slow one, beginnings of the text are
    tokenized until one ends where a token does. `tokens` are those of `text`, with any BOS in
    front; `name` is the row's id, for messages.
    """
    if span[0] == span[1]:
        return 0, 0
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids = list(encoded["input_ids"])
    n_before = len(tokens) - len(ids)
    # Rendering may have changed how many BOS come first, and nothing else.
    bos = tokenizer.bos_token_id
    n_same = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    same = n_before + n_same >= 0 and list(tokens[n_before + n_same :]) == ids[n_same:]
    first, last = (
        _overlap(encoded["offset_mapping"], span)
        if fast
        else _by_prefix(
            lambda part: list(tokenizer(part, add_special_tokens=False)["input_ids"]),
            ids,
            span,
            text,
        )
    )
    if not same or not 0 <= first < last or first + n_before < 0:
        raise RenderError(
            f"row '{name}': no token of the prompt is known to cover the marked span "
            f"{text[slice(*span)][:60]!r}. Mark more of the text, or pass another --bos."
        )
    return first + n_before, last + n_before


def _overlap(offsets: Iterable[tuple[int, int]], span: Span) -> Span:
    """Find the tokens that share a character with the span."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < span[1] and b > span[0]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _by_prefix(
    tokenized: Callable[[str], list[int]], ids: list[int], span: Span, text: str
) -> Span:
    """Find them by tokenizing beginnings of the text: the nearest token ends around the span."""

    def boundary(ends: Iterable[int]) -> int:
        for end in ends:
            part = tokenized(text[:end])
            if ids[: len(part)] == part:
                return len(part)
        return -1

    start = boundary(range(span[0], -1, -1))
    return start, boundary(range(span[1], len(text) + 1))
