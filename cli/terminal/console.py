"""What the terminal shows: data on stdout, progress and messages on stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from actcache.cli.terminal.text import printable
from actcache.progress import Progress

if TYPE_CHECKING:  # imported where it is used: `actcache --help` starts without it
    from rich.console import Console
    from rich.progress import Task

_WIDE = 130  # columns of a table in a file or pipe, where no terminal sets a width


def out() -> "Console":
    """Open stdout; at each call, so that a redirected stdout is honoured."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # where rich would exit with 1

    return Output(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE)


def err() -> "Console":
    """Open stderr, for progress and messages."""
    from rich.console import Console

    return Console(stderr=True)


def say(text: str) -> None:
    """Print one line on stderr, as it is."""
    err().print(printable(text), highlight=False, markup=False, soft_wrap=True)


class Bars(Progress):
    """Progress on the terminal: a bar for each long loop, a line for each cost."""

    def __init__(self, *, quiet: bool = False):
        self._quiet = quiet

    @contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar with rate and time left, where stderr is a terminal."""
        from rich import progress
        from rich.text import Text

        class Rate(progress.ProgressColumn):
            def render(self, task: "Task") -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.0f} rows/s" if speed else "")

        console = err()
        with progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            Rate(),
            progress.TimeRemainingColumn(),
            console=console,
            disable=self._quiet or not console.is_terminal,
        ) as bars:
            task = bars.add_task(printable(title), total=total)
            yield lambda n: bars.advance(task, n)

    def cost(self, estimate: object) -> None:
        """Print what a service will charge."""
        say(str(estimate))


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_result(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what a command found, as JSON or as a table without the facts that are None."""
    if as_json:
        print_json(facts)
    else:
        print_facts({name: value for name, value in facts.items() if value is not None})


def print_facts(facts: dict[str, Any]) -> None:
    """Print a table of two columns; numbers of bytes in a unit that reads well."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if "bytes" in name:
            shown = size(float(value))
        else:
            shown = f"{value:,}" if type(value) is int else str(value)
        table.add_row(Text(printable(name)), Text(printable(shown)))
    out().print(table)


def size(n_bytes: float) -> str:
    """Write a number of bytes in a unit that reads well: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError
