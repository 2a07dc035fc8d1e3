"""What notebooks show: small HTML tables and progress bars, every value escaped."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

SECONDS_A_FRAME = 0.2
"""How often a bar is drawn, at most: each drawing is a message to the browser."""

_CELL = "text-align: left; vertical-align: top; padding: 2px 10px"


def facts_table(title: str, facts: Mapping[str, Any]) -> str:
    """A table of two columns: what it is, and its value."""
    return rows_table(title, (), list(facts.items()))


def rows_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a caption and, if there are column names, a head.

    Args:
        title: the caption.
        columns: names above the columns; none for a table without a head.
        rows: values of each row; shown as `str`, numbers with thousands separated.
    """
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<{tag} style="{_CELL}">{escape(_shown(value))}</{tag}>'
            for tag, value in zip(["th", *["td"] * (len(row) - 1)], row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    caption = f'<caption style="{_CELL}; caption-side: top"><b>{escape(title)}</b></caption>'
    return f"<table>{caption}{head}<tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(count)}" for name, count in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if type(value) is int else str(value)


def in_notebook() -> bool:
    """Whether this runs in a kernel, whose cells show HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def notebook_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar under the cell; gives a function that moves it on by so many steps."""
    ipython: Any = importlib.import_module("IPython.display")  # of the kernel that runs this

    def drawn_now() -> Any:
        return ipython.HTML(_bar(title, done, total, time.monotonic() - start))

    done, start, drawn = 0, time.monotonic(), 0.0
    handle = ipython.display(drawn_now(), display_id=True)

    def advance(n: int) -> None:
        nonlocal done, drawn
        done += n
        now = time.monotonic()
        if now - drawn >= SECONDS_A_FRAME:
            drawn = now
            handle.update(drawn_now())

    try:
        yield advance
    finally:
        handle.update(drawn_now())


def _bar(title: str, done: int, total: int | None, seconds: float) -> str:
    """A bar as HTML, with the count and the seconds that it took or will take."""
    size = f' value="{done}" max="{total}"' if total else ""
    count = f"{done:,} of {total:,}" if total else f"{done:,}"
    left = (
        f", about {seconds / done * (total - done):.0f} s left"
        if total and 0 < done < total
        else ""
    )
    return f"<div>{escape(title)} <progress{size}></progress> {count}, {seconds:.0f} s{left}</div>"
