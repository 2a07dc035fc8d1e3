"""Tasks for pools of workers that hold no model."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from actcache.cluster.task import Loaded
from actcache.errors import DamageError, MismatchError


def load() -> Loaded:
    return Loaded(value=os.getpid(), statement={"dtype": "float16", "versions": {"torch": "2"}})


def load_differing() -> Loaded:
    """Load with a statement that differs in each process."""
    return Loaded(value=None, statement={"versions": {"torch": f"of {os.getpid()}"}})


def load_and_die() -> Loaded:
    os.kill(os.getpid(), 9)
    raise AssertionError


@dataclass(frozen=True)
class Step:
    """Logs the process that runs it, acts as `first` or `always` says, and returns its name."""

    name: str
    folder: Path
    first: str = ""
    always: str = ""

    def __call__(self, pid: int) -> str:
        path = self.folder / self.name
        is_first = not path.exists()
        with path.open("a") as file:
            file.write(f"{pid}\n")
        action = self.always or (self.first if is_first else "")
        if action == "kill":
            os.kill(os.getpid(), 9)
        if action == "hang":
            time.sleep(3600)
        if action == "warn":
            logging.getLogger("actcache").warning("actcache: %s is %d", "this", 1)
        if action == "refuse":
            raise MismatchError(f"{self.name} is refused. Do this.")
        if action == "damage":
            raise DamageError("a file", "bytes", "others")
        if action == "break":
            raise KeyError(self.name)
        time.sleep(0.05)
        return self.name


def environment(_pid: int) -> tuple[str, str]:
    return os.environ["OMP_NUM_THREADS"], str(Path.cwd())
