"""How objects look in a notebook: small HTML tables, every value escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
