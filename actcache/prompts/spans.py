"""A marked span of a prompt, from characters to tokens.

Attention-guided steering asks how much attention falls on a part of the prompt, such as the prefix
that names a concept. Knows a row's value, a text and a tokenizer; refuses to know what is read at
the tokens that it finds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from actcache.data.spans import Span
from actcache.errors import RenderError

MARKS = ("\ufdd0", "\ufdd1")
"""Put around the span to find it again in the rendered text: code points that no text may hold."""


def require_spans(spans: Sequence[Span | None], names: Sequence[str]) -> None:
    """Refuse rows that mark nothing where attention on what they mark was asked for.

    Raises:
        RenderError: says how many, and names the first.
    """
    without = [name for name, span in zip(names, spans, strict=True) if span is None]
    if without:
        raise RenderError(
            f"{len(without)} of {len(names)} rows mark no span (the first: '{without[0]}'), which "
            'the site attention needs. Give them the key "span": a text of the prompt or [start, '
            "end], and [0, 0] where there is nothing to mark; or leave attention out of --sites."
        )


def span_in_text(
    render: Callable[[str], str], prompt: str, span: Span, *, text: str, name: str
) -> Span:
    """Where the marked part of a prompt lies in the text that the model gets.

    The prompt is rendered once more with a mark on either side of the span, so a chat template may
    trim it, or say the same words elsewhere.

    Args:
        render: gives the text of a prompt.
        prompt: the prompt.
        span: characters of the prompt.
        text: `render(prompt)`.
        name: the row's id, for messages.

    Returns:
        Characters of `text`.

    Raises:
        RenderError: the template changes the prompt, or repeats it.
    """
    start, end = span
    if start == end:
        return 0, 0
    part = prompt[start:end]
    # White space at the ends of a span may be what the template trims off.
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
        f"row '{name}': the marked span {part[:60]!r} does not stand once and unchanged in the "
        "rendered prompt. Mark visible text, or pass another --template."
    )


def span_in_tokens(
    tokenizer: Any, tokens: Sequence[int], span: Span, *, text: str, name: str
) -> Span:
    """Which tokens of a rendered prompt overlap a span of its text.

    Args:
        tokenizer: a Hugging Face tokenizer. A fast one says where its tokens lie; of another,
            beginnings of the text are tokenized until one ends where a token does.
        tokens: the prompt's, as rendered from `text`, with any BOS in front.
        span: characters of `text`.
        text: what was tokenized.
        name: the row's id, for messages.

    Returns:
        Tokens `[start, end)`.

    Raises:
        RenderError: no token says part of the span, or these are not the tokens of that text.
    """
    if span[0] == span[1]:
        return 0, 0
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids = list(found["input_ids"])
    n_before = len(tokens) - len(ids)
    # Rendering may have changed how many BOS come first, and nothing else.
    bos = tokenizer.bos_token_id
    n_same = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    same = n_before + n_same >= 0 and list(tokens[n_before + n_same :]) == ids[n_same:]
    first, last = (
        _overlap(found["offset_mapping"], span)
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
            f"row '{name}': no token of the prompt is known to say the marked span "
            f"{text[slice(*span)][:60]!r}. Mark more of the text, or pass another --bos."
        )
    return first + n_before, last + n_before


def _overlap(offsets: Iterable[tuple[int, int]], span: Span) -> Span:
    """The tokens that share a character with the span."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < span[1] and b > span[0]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _by_prefix(
    tokenized: Callable[[str], list[int]], ids: list[int], span: Span, text: str
) -> Span:
    """The same from beginnings of the text alone: the nearest ends of tokens around the span."""

    def boundary(places: Iterable[int]) -> int:
        for at in places:
            part = tokenized(text[:at])
            if ids[: len(part)] == part:
                return len(part)
        return -1

    start = boundary(range(span[0], -1, -1))
    return start, boundary(range(span[1], len(text) + 1))
