"""A pool of workers: tasks go out, answers come back, in whatever order they are done.

A worker that dies is started again, and only its task is begun again. A task that takes far longer
than the others is given to a second worker as well, and the first answer counts.
"""

import logging
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcache.cluster.session import Session
from actcache.cluster.task import Answer, Loaded, Task, Worker
from actcache.errors import ActcacheError, MismatchError
from actcache.identity import first_difference

log = logging.getLogger("actcache")

SLOW = 3.0
"""A task is slow when it takes so many times the median of those that are done."""

SLOW_SECONDS = 30.0
"""But not before that: tasks of seconds differ by what the machines do besides."""

MAX_DEATHS = 3
"""Workers that may die over one task, or one after the other while they load."""

_LOOK_SECONDS = 0.5
_HEAD_SECONDS = 5.0
"""Between two looks at whether Ray's head is there."""


@dataclass(eq=False)
class _Seat:
    """The place of one worker in the pool; who sits there may die and be replaced."""

    actor: Any
    reference: Any
    """Of the answer that is awaited; None if the worker is idle."""

    task: Task | None = None
    """None while it loads."""

    since: float = 0.0
    deaths: int = 0
    """Workers that died while they loaded, since one last did."""


class Pool:
    """Workers that each load the same, and run tasks. Use it as a context manager.

    Args:
        session: from `connect`.
        load: called once in each worker, also in one that replaces another; picklable.
        slow_seconds: no task counts as slow before.
    """

    def __init__(
        self,
        session: Session,
        load: Callable[[], Loaded],
        *,
        slow_seconds: float = SLOW_SECONDS,
    ):
        self._session = session
        self._load = load
        self._slow_seconds = slow_seconds
        self._statement: Mapping[str, Any] | None = None
        self._seats = [self._take_seat() for _ in range(session.workers)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for seat in self._seats:
            self._session.ray.kill(seat.actor)
        self._seats = []

    def ask(self, work: Callable[[Any], Any]) -> Any:
        """Run one task on any worker, and return what it returns."""
        [(_, value)] = self.run([Task(name="question", work=work)])
        return value

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Run tasks, and yield each with what it returned, as they are done.

        Raises:
            ActcacheError: a task raised it; or workers died again and again.
            LostError: Ray's head is gone, or Ray has ended on this machine.
            MismatchError: a worker that started states something else than the first one.
            WorkerError: a task raised another error.
        """
        job, seen = _Job(tasks, self._slow_seconds), time.monotonic()
        while not job.done:
            if time.monotonic() - seen > _HEAD_SECONDS:
                self._session.require_head()
                seen = time.monotonic()
            self._hand_out(job)
            awaited = {seat.reference: seat for seat in self._seats if seat.reference is not None}
            ready, _ = self._session.ray.wait(list(awaited), timeout=_LOOK_SECONDS)
            for reference in ready:
                yield from self._take_answer(awaited[reference], job)

    def _hand_out(self, job: "_Job") -> None:
        for seat in self._seats:
            if seat.reference is None:
                task = job.next(self._running())
                if task is None:
                    return
                seat.task, seat.since = task, time.monotonic()
                seat.reference = seat.actor.run.remote(task.work)

    def _running(self) -> list[tuple[Task, float]]:
        """The tasks that workers run, and since when."""
        return [(seat.task, seat.since) for seat in self._seats if seat.task is not None]

    def _take_answer(self, seat: _Seat, job: "_Job") -> Iterator[tuple[Task, Any]]:
        errors = self._session.ray.exceptions
        try:
            answer: Answer = self._session.ray.get(seat.reference)
        except (
            *(errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError),
            *(errors.ObjectLostError, errors.LocalRayletDiedError),
        ) as error:
            if "ModuleNotFoundError" in str(error):
                raise ActcacheError(
                    "a machine of the cluster does not find actcache, or what it needs, expected "
                    "the same environment on all. Install it there."
                ) from error
            self._session.require_here()
            self._replace(seat, job)
            return
        for text in answer.warnings:
            log.warning("%s", text)
        task, seat.task, seat.reference = seat.task, None, None
        if answer.error is not None and (task is None or task in job):
            raise answer.error
        if task is None:
            self._compare(answer.value)
            seat.deaths = 0
        elif job.finish(task, answer.seconds):
            yield task, answer.value

    def _compare(self, statement: Mapping[str, Any]) -> None:
        """Refuse a worker whose values would not be those of the others."""
        if self._statement is None:
            self._statement = statement
        difference = first_difference(self._statement, statement)
        if difference is not None:
            field, first, other = difference
            raise MismatchError(
                f"a worker that started has {field} {other!r}, the first one {first!r}; expected "
                "the same of all, since their values lie in one store. Use machines of one kind, "
                "with the same versions and weights, and continue with --resume."
            )

    def _replace(self, seat: _Seat, job: "_Job") -> None:
        """Start another worker in the place of one that died; its task waits again."""
        task, deaths = seat.task, seat.deaths + (seat.task is None)
        seat.task = None
        if task is not None:
            job.begin_again(task, self._running())
        if deaths == MAX_DEATHS:
            raise ActcacheError(
                f"{MAX_DEATHS} workers ended one after the other while they loaded, expected them "
                "to run: perhaps their machine has too little memory. Use fewer --workers."
            )
        self._session.ray.kill(seat.actor)  # it may live on where nobody reaches it
        new = self._take_seat()
        seat.actor, seat.reference, seat.deaths = new.actor, new.reference, deaths

    def _take_seat(self) -> _Seat:
        session = self._session
        actor = (
            session.ray.remote(Worker)
            .options(
                num_cpus=session.threads,
                num_gpus=session.gpus,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(session.threads)}},
            )
            .remote(self._load, str(Path.cwd()))
        )
        return _Seat(actor, actor.load.remote())


class _Job:
    """What is waiting, and what is done, of the tasks of one `Pool.run`."""

    def __init__(self, tasks: Sequence[Task], slow_seconds: float):
        self._tasks = {task.name: task for task in tasks}
        self._waiting = list(tasks)
        self._unfinished: set[Hashable] = set(self._tasks)
        self._seconds: list[float] = []
        self._slow_seconds = slow_seconds
        self._deaths: dict[Hashable, int] = {}

    @property
    def done(self) -> bool:
        return not self._unfinished

    def __contains__(self, task: Task) -> bool:
        """Whether it is of this job, and nobody has answered it."""
        return self._tasks.get(task.name) is task and task.name in self._unfinished

    def next(self, running: Sequence[tuple[Task, float]]) -> Task | None:
        """Choose what an idle worker does; None if there is nothing.

        `running` are the tasks that workers run, and since when.
        """
        for task in self._waiting:
            if not task.needs & self._unfinished:
                self._waiting.remove(task)
                return task
        slow = 10 * self._slow_seconds  # while there is nothing to compare with
        if self._seconds:
            slow = max(SLOW * statistics.median(self._seconds), self._slow_seconds)
        tasks, now = [task for task, _ in running], time.monotonic()
        for task, since in running:
            if task in self and now - since > slow and tasks.count(task) == 1:
                return task
        return None

    def finish(self, task: Task, seconds: float) -> bool:
        """Note that a task is done; False if it was already, or is of another job."""
        if task not in self:
            return False
        self._unfinished.remove(task.name)
        self._seconds.append(seconds)
        return True

    def begin_again(self, task: Task, running: Sequence[tuple[Task, float]]) -> None:
        """Let a task wait again whose worker died, unless another one runs it."""
        if task not in self:
            return
        deaths = self._deaths[task.name] = self._deaths.get(task.name, 0) + 1
        if deaths == MAX_DEATHS:
            raise ActcacheError(
                f"{MAX_DEATHS} workers ended over {task.name}, expected one to finish it: perhaps "
                "their machine has too little memory. Use fewer --workers, or a smaller "
                "--batch-tokens."
            )
        if all(other is not task for other, _ in running):
            self._waiting.insert(0, task)
