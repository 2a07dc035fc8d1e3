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
