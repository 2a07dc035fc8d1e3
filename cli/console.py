"""What the terminal shows: data on stdout, progress on stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_WIDE = 130  # columns of a table in a file or pipe, where no terminal sets a width


def out() -> Console:
    """Where data goes. Made at each call, so that a redirected stdout is honoured."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE)


def err() -> Console:
    """Where progress and messages go."""
    return Console(stderr=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


class _Rate(ProgressColumn):
    """Rows a second since the start of this run."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "")


@contextmanager
def progress(
    title: str, *, total: int | None, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, where stderr is a terminal; yields what moves it on."""
    console = err()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    ) as bars:
        task = bars.add_task(title, total=total)
        yield lambda n: bars.advance(task, n)


class Bars:
    """Progress on the terminal: a bar for each long loop, a line for each cost."""

    def __init__(self, *, quiet: bool = False):
        self._quiet = quiet

    def steps(self, title: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar."""
        return progress(title, total=total, quiet=self._quiet)

    def cost(self, estimate: object) -> None:
        """Say what a service will charge."""
        err().print(str(estimate), highlight=False, markup=False, soft_wrap=True)


def size(n_bytes: float) -> str:
    """`n_bytes` in a unit that reads well: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def print_facts(facts: dict[str, Any]) -> None:
    """A two-column table on stdout; numbers of bytes in a unit that reads well."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = (
            size(float(value)) if "bytes" in name else f"{value:,}" if type(value) is int else value
        )
        table.add_row(name, Text(str(shown)))
    out().print(table)
