"""Show a summary on the terminal: its tables, and what a reader must be warned of."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table as RichTable

from actcache.cli.terminal import console

if TYPE_CHECKING:
    from actcache.analysis.generation.folder import Generations
    from actcache.analysis.report.tables import Table
    from actcache.analysis.summary import Summary


def show_or_print(summary: "Summary", *, as_json: bool, out: Path) -> None:
    """Print a summary as tables, or as one JSON document."""
    if as_json:
        from actcache.analysis.files import plain

        console.print_json(plain(summary))
    else:
        show(summary)
        console.err().print(f"results: {out}", highlight=False, soft_wrap=True)


def show(summary: "Summary") -> None:
    """Print the tables of a summary on stdout."""
    from actcache.analysis.report.pages import short_tables, warnings

    for reason in summary.left_out:
        _line(f"left out: {reason}")
    tables = short_tables(summary)
    for table in tables:
        console.out().print(_rich(table))
    for warning in warnings(summary):
        _line(warning)
    if summary.sweep is not None:
        check = summary.sweep.self_check
        _line(
            f"self-check: cells against full passes differ by {check.naive_error:.1e}; cells that "
            f"add nothing spread by {check.noise_floor:.1e}"
        )
    if summary.sweep or summary.predictors:
        _line("the sentences behind the verdicts, and all other tables: tables.md")
    if not tables:
        for name, vector in (summary.vectors or {}).items():
            norms = ", ".join(f"{norm:.3g}" for norm in vector.norm)
            _line(f"{name}: norm of the direction by layer: {norms}")


def show_texts(texts: "Generations") -> None:
    """Print what was found of steered texts, and the table of effects, on stdout."""
    from actcache.analysis.report.generation_pages import findings, short_tables
    from actcache.analysis.report.generation_tables import noise_sentence

    summary = texts.summary
    for reason in summary.left_out:
        _line(f"left out: {reason}")
    for table in short_tables(summary):
        console.out().print(_rich(table))
    for sentence in findings(summary):
        _line(sentence)
    _line(noise_sentence(summary))
    _line("all tables, strength by strength: tables.md")


def _line(text: str) -> None:
    console.out().print(text, highlight=False, markup=False)


def _rich(table: "Table") -> RichTable:
    shown = RichTable(title=table.title)
    for i, column in enumerate(table.columns):
        if i == 0 or column == "verdict":
            shown.add_column(column, overflow="fold", min_width=min(10, _width(table, i)))
        else:
            long = len(column) > _width(table, i)
            header = column.replace(" ", "\n") if long else column
            shown.add_column(header, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _width(table: "Table", column: int) -> int:
    return max((len(row[column]) for row in table.rows), default=0)
