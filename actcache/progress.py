"""What a long run tells whoever watches it: how far it is, and what it will cost."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from actcache.notebook import in_notebook, notebook_bar


@runtime_checkable
class Progress(Protocol):
    """Watches long runs. The command line draws bars; a notebook or a test may do as it likes."""

    def steps(self, title: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar.

        Args:
            title: what runs, such as "sweep".
            total: steps until it is done; None where that is not known.

        Returns:
            A context manager; it gives a function that moves the bar on by so many steps.
        """
        ...

    def cost(self, estimate: object) -> None:
        """Hear what a paid service will charge, before it is asked; may raise to stop the run.

        Args:
            estimate: its `str` is one line for a person.
        """
        ...


class Silent:
    """Shows nothing; the default of most functions that take a `Progress`."""

    @contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open a bar that nobody sees."""
        yield lambda _n: None

    def cost(self, estimate: object) -> None:
        """Accept any cost."""


SILENT = Silent()
"""The one that everything can share."""


class Automatic:
    """Draws a bar in a notebook, and nothing elsewhere; the default of the front door."""

    def steps(self, title: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar, if this runs in a notebook."""
        return notebook_bar(title, total) if in_notebook() else SILENT.steps(title, total)

    def cost(self, estimate: object) -> None:
        """Accept any cost; print it in a notebook."""
        if in_notebook():
            print(estimate)  # noqa: T201 - a cell's output


AUTOMATIC = Automatic()
"""The one that everything can share."""
