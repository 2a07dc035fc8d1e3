"""Show a summary on the terminal: what was found, then the numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from actcache.cli.terminal import console
from actcache.cli.terminal.text import printable

if TYPE_CHECKING:
    from actcache.analysis.generation.folder import Generations
    from actcache.analysis.report.findings import Finding
    from actcache.analysis.report.tables import Table
    from actcache.analysis.summary import Summary

STYLES = {"good": "bold green", "bad": "bold red", "mixed": "bold yellow"}
"""Of a finding's subject, where there are colors."""


MOST_TEXTS = 60
"""Texts that are printed at most."""


def show_or_print(summary: "Summary", *, as_json: bool, out: Path) -> None:
    """Print a summary as tables, or as one JSON document."""
    if as_json:
        from actcache.analysis.files import plain

        console.print_json(plain(summary))
    else:
        show(summary)
        if "concepts" in summary.config.stages and (out / "concepts.json").is_file():
            _show_concepts(out)
        console.say(f"results: {out}; to look at: {out / 'report.html'}")


def _show_concepts(out: Path) -> None:
    """Print the table of all concepts, and what it does not tell."""
    from actcache.analysis.concepts.summary import ConceptSummary
    from actcache.analysis.report.concept_pages import NO_VERDICT, overview_table

    _show_table(overview_table(ConceptSummary.read(out)))
    _wrapped(Text(NO_VERDICT))


def show(summary: "Summary") -> None:
    """Print what was found, in a sentence a behavior, and below it the numbers, on stdout."""
    from actcache.analysis.report.findings import findings
    from actcache.analysis.report.pages import terminal_tables

    for finding in findings(summary):
        _finding(finding)
    for reason in summary.left_out:
        _line(f"left out: {reason}")
    tables = terminal_tables(summary)
    for table in tables:
        _show_table(table)
    if summary.sweep is not None:
        check = summary.sweep.self_check
        _line(
            f"self-check: cells against full passes differ by {check.naive_error:.1e}; cells that "
            f"add nothing spread by {check.noise_floor:.1e}"
        )
    if summary.sweep or summary.predictors:
        _line("all tables, and the numbers behind each verdict: tables.md")
    if not tables:
        for name, vector in (summary.vectors or {}).items():
            norms = ", ".join(f"{norm:.3g}" for norm in vector.norm)
            _line(f"{name}: norm of the direction by layer: {norms}")


def _show_table(table: "Table") -> None:
    """Print a table; where it is wider than the terminal, a block for each row instead."""
    out, shown = console.out(), _rich(table)
    out.print()
    if shown.__rich_measure__(out, out.options.update(max_width=10_000)).maximum <= out.width:
        out.print(shown)
        return
    _line(table.title)
    for name, *cells in table.rows:
        out.print(Text(printable(name), style="bold"), soft_wrap=True)
        numbers = [
            f"{column} {printable(cell)}"
            for column, cell in zip(table.columns[1:], cells, strict=True)
        ]
        _wrapped(Text("  " + " · ".join(numbers)))


def _finding(finding: "Finding") -> None:
    line = Text(printable(str(finding)))
    line.stylize(STYLES[finding.mood], 0, len(printable(finding.about)))
    _wrapped(line)


def _wrapped(line: Text) -> None:
    """Print a line; on a terminal its continuation is indented, elsewhere it stays one line."""
    out = console.out()
    if not out.is_terminal:
        out.print(line, highlight=False, soft_wrap=True)
        return
    first, *rest = line.wrap(out, out.width - 2)
    for part in (first, *(Text("  ") + part for part in rest)):
        part.rstrip()
        out.print(part, highlight=False)


def show_texts(texts: "Generations") -> None:
    """Print what was found of steered texts, and the table of effects, on stdout."""
    from actcache.analysis.report.generation_pages import findings, short_tables
    from actcache.analysis.report.generation_tables import noise_sentence

    summary = texts.summary
    for reason in summary.left_out:
        _line(f"left out: {reason}")
    for sentence in findings(summary):
        _wrapped(Text(printable(sentence)))
    for table in short_tables(summary):
        _show_table(table)
    if not any(method.choice for method in summary.methods):
        _show_lines(texts)
    _line(noise_sentence(summary))
    _line("all tables, strength by strength: tables.md")


def _show_lines(texts: "Generations") -> None:
    """Print the first texts themselves, where no strength was chosen: of prompts, for example."""
    from actcache.analysis.generation.texts import UNSTEERED_AGAIN
    from actcache.analysis.report.generation_tables import strength_label

    shown = [
        text
        for text in texts.texts()
        if texts.configurations[text.configuration].method != UNSTEERED_AGAIN
    ]
    for text in shown[:MOST_TEXTS]:
        about = texts.configurations[text.configuration]
        strength = "" if about.strength is None else strength_label(about.strength, about.unit)
        label = " ".join([about.method, strength]).strip()
        _line(f"{text.id}, {label}: {' '.join(text.text.split())}")
    if len(shown) > MOST_TEXTS:
        _line(f"… {len(shown) - MOST_TEXTS} more: generations.jsonl")


def _line(text: str) -> None:
    console.out().print(printable(text), highlight=False, markup=False)


def _rich(table: "Table") -> RichTable:
    shown = RichTable(title=_text(table.title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(table.columns):
        long = len(column) > _width(table, i)
        header = column.replace(" ", "\n").replace("-", "-\n") if long else column
        shown.add_column(_text(header), justify="right" if i else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*map(_text, row))
    return shown


def _text(cell: str) -> Text:
    """Take a cell as it is: rich would read `[red]` in a name as markup."""
    return Text(printable(cell))


def _width(table: "Table", column: int) -> int:
    return max((len(row[column]) for row in table.rows), default=0)
