"""The units of an analysis on the workers of a cluster, with the results of one machine."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from actcache.analysis.stats.units import MapUnits
from actcache.cluster.pool import Pool
from actcache.cluster.session import Session, Workers, connect
from actcache.cluster.task import Loaded, Task

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@contextmanager
def units_on(workers: Workers | None, *, device: str) -> Iterator[MapUnits]:
    """Give the function that runs units: on workers, or without any a plain loop.

    `device` is the one that workers compute on, which must be of one kind.

    Raises:
        ActcacheError: the cluster cannot be used.
    """
    if workers is None:
        yield map
        return
    with connect(workers) as session, Pool(session, LoadUnits(device=device)) as pool:
        yield PoolMap(session, pool)


class PoolMap:
    """Runs units on the workers of a pool that was loaded with `LoadUnits`: a `MapUnits`."""

    def __init__(self, session: Session, pool: Pool):
        self._ray = session.ray
        self._pool = pool
        self._sent: tuple[Any, Any] = (None, None)

    def __call__(
        self, function: Callable[[Unit], Result], units: Iterable[Unit], /
    ) -> Iterator[Result]:
        """Run units as workers are free; those that are done early wait for those before them."""
        if self._sent[0] is not function:
            self._sent = function, self._ray.put(function)  # once, however many units there are
        tasks = [
            Task(name=place, work=_CallUnit(function=self._sent[1], unit=unit))
            for place, unit in enumerate(units)
        ]
        early: dict[Any, Result] = {}
        place = 0
        for task, result in self._pool.run(tasks):
            early[task.name] = result
            while place in early:
                yield early.pop(place)
                place += 1


class UnitWorker:
    """Calls functions in a worker, and holds the last one: it may have loaded a model."""

    def __init__(self) -> None:
        self._sent: Any = None
        self._function: Callable[[Any], Any] | None = None

    def call(self, sent: Any, unit: Any) -> Any:
        """Call a function that was sent with a unit."""
        import ray

        if self._function is None or sent != self._sent:
            self._function = None  # before the next one needs its memory
            self._sent, self._function = sent, ray.get(sent)
        return self._function(unit)


@dataclass(frozen=True, kw_only=True)
class LoadUnits:
    """Loads what workers need to run units, and states what decides their values."""

    device: str

    def __call__(self) -> Loaded:
        """Load it."""
        import torch

        from actcache.analysis.predict.adamw_stack import training_device
        from actcache.build.provenance import versions
        from actcache.build.workers import kind_of_device

        return Loaded(
            value=UnitWorker(),
            statement={
                "device": kind_of_device(torch.device(training_device(self.device))),
                "threads": torch.get_num_threads(),
                "versions": versions(),
            },
        )


@dataclass(frozen=True, kw_only=True)
class _CallUnit:
    function: Any
    """Where Ray has it."""

    unit: Any

    def __call__(self, worker: UnitWorker) -> Any:
        return worker.call(self.function, self.unit)
