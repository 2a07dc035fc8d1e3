"""Tasks that workers run, and the answers that they send back. Everything here is pickled."""

import logging
import os
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from actcache.errors import ActcacheError


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One piece of work. It may be run twice, so running it again must change nothing."""

    name: Hashable
    """By which other tasks need it, and messages call it."""

    work: Callable[[Any], Any]
    """Called with what the worker loaded; it and what it returns are pickled."""

    needs: frozenset[Hashable] = frozenset()
    """Names of the tasks that must be done before; those of other jobs count as done."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker holds for its tasks."""

    value: Any
    """A model, for example; it stays with the worker."""

    statement: Mapping[str, Any]
    """What must be equal in all workers, as JSON: digest and dtype of the model, versions, …."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker sends back."""

    value: Any = None
    error: BaseException | None = None
    """Why there is no value."""

    warnings: tuple[str, ...] = ()
    """What was logged meanwhile, for the one who waits."""

    seconds: float = 0.0


class WorkerError(RuntimeError):
    """A mistake in a task, with its traceback."""


class Worker:
    """Loads once, then runs tasks: the actor that runs in a process of its own.

    Args:
        load: from which tasks get their value.
        folder: in which relative paths are.
    """

    def __init__(self, load: Callable[[], Loaded], folder: str):
        with suppress(OSError):  # another machine may not have it
            os.chdir(folder)
        self._load = load
        self._value: Any = None

    def load(self) -> Answer:
        """Load what tasks need; the answer is the statement."""
        return _answer(self._loaded_statement)

    def run(self, work: Callable[[Any], Any]) -> Answer:
        """Run a task."""
        return _answer(lambda: work(self._value))

    def _loaded_statement(self) -> Mapping[str, Any]:
        loaded = self._load()
        self._value = loaded.value
        return loaded.statement


class _Warnings(logging.Handler):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _answer(call: Callable[[], Any]) -> Answer:
    warnings, log = _Warnings(), logging.getLogger("actcache")
    log.addHandler(warnings)
    value, error, start = None, None, time.perf_counter()
    try:
        value = call()
    except Exception as raised:
        error = _picklable(raised)
    finally:
        log.removeHandler(warnings)
    return Answer(
        value=value,
        error=error,
        warnings=tuple(warnings.texts),
        seconds=time.perf_counter() - start,
    )


def _picklable(error: Exception) -> BaseException:
    """Keep an error that a user can mend; of another its traceback."""
    if not isinstance(error, ActcacheError | MemoryError):
        return WorkerError("".join(traceback.format_exception(error)))
    try:
        copy = type(error)(str(error))
    except TypeError:  # it is made of other things than its message
        return ActcacheError(str(error))
    return copy if str(copy) == str(error) else ActcacheError(str(error))
