"""Work cut into units that share nothing: a loop runs them, or the workers of a cluster do."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@runtime_checkable
class MapUnits(Protocol):
    """Calls a pure function on each unit, and gives the results in the units' order.

    The built-in `map` is one: a plain loop, a unit at a time. Another may run the units elsewhere
    and in another order, so function, units and results can be pickled, and a unit reads nothing
    that another one wrote.
    """

    def __call__(
        self, function: Callable[[Unit], Result], units: Iterable[Unit], /
    ) -> Iterator[Result]:
        """Start, and give each result as soon as it and all before it are there."""
        ...


class UnitSteps:
    """Moves a bar within units that run in this process, or once each is done elsewhere.

    Units call it with steps that are done. One that was pickled moves nothing, so whoever takes the
    results calls `finish_unit` for each.
    """

    def __init__(self, advance: Callable[[int], object], *, of_unit: int):
        """Move a bar with `advance`, by `of_unit` steps for each unit."""
        self._advance = advance
        self._of_unit = of_unit
        self._done = 0

    def __call__(self, n: int) -> None:
        """Move the bar by steps of the unit that runs."""
        self._done += n
        self._advance(n)

    def finish_unit(self) -> None:
        """Move the bar by the steps of a unit that it has not heard of."""
        self._advance(self._of_unit - self._done)
        self._done = 0

    def __reduce__(self) -> tuple[Callable[[], Callable[[int], None]], tuple[()]]:
        return _unwatched, ()


def _unwatched() -> Callable[[int], None]:
    return _move_nothing


def _move_nothing(_n: int) -> None:
    pass
