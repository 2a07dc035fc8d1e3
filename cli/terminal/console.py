"""What the terminal shows: data on stdout, progress and messages on stderr."""

import json
import sys
import threading
import time
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


SECONDS_A_LINE = 30.0
"""How often a line says how far a run is, where no bar can be drawn."""


class Bars(Progress):
    """Progress on stderr: a bar for each long loop, a line for each cost.

    Where stderr is no terminal, or one that cannot move its cursor, a line now and then.
    """

    def __init__(self, *, quiet: bool = False, seconds: float = SECONDS_A_LINE):
        self._quiet = quiet
        self._seconds = seconds

    @contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar with rate and time left, or lines."""
        from rich import progress
        from rich.text import Text

        if not self._quiet and (not err().is_terminal or err().is_dumb_terminal):
            with _lines(title, total, self._seconds) as advance:
                yield advance
            return

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
            disable=self._quiet,
        ) as bars:
            task = bars.add_task(printable(title), total=total)
            yield lambda n: bars.advance(task, n)

    def cost(self, estimate: object) -> None:
        """Print what a service will charge."""
        say(str(estimate))


@contextmanager
def _lines(title: str, total: int | None, seconds: float) -> Iterator[Callable[[int], None]]:
    """Say every so many seconds how far a loop is; nothing of one that is over before."""
    done, n_lines, start = 0, 0, time.monotonic()
    stopped = threading.Event()

    def line() -> str:
        took = time.monotonic() - start
        count = f"{done:,}" if not total else f"{done:,} of {total:,} ({done / total:.0%})"
        rate = f", {done / took:,.3g} a second" if done else ""
        left = f", about {duration(took / done * (total - done))} left" if done and total else ""
        return f"actcache: {title}: {count} after {duration(took)}{rate}{left}"

    def watch() -> None:
        nonlocal n_lines
        while not stopped.wait(seconds):
            n_lines += 1
            say(line())

    def advance(n: int) -> None:
        nonlocal done
        done += n

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield advance
    finally:
        stopped.set()
        watcher.join()
        if n_lines:
            say(line())


def duration(seconds: float) -> str:
    """Write a time as people say it: 45 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
