"""Tables of a report, as data: written once, shown in a terminal and kept as Markdown.

Refuses to know what the numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """As many cells each as there are columns; the first names the row."""

    note: str = ""
    """What a reader must know to read it, or empty."""


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown (GitHub's), each under its title; the first column is left-aligned."""
    return "\n".join(_one(table) for table in tables)


def _one(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(table.columns) - 1)
    body = [line(table.columns), rule, *(line(row) for row in table.rows)]
    note = [table.note, ""] if table.note else []
    return "\n".join([f"## {table.title}", "", *body, "", *note])
