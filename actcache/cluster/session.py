"""A connection to Ray: one that is started on this machine, or a cluster that runs already.

Ray is imported here alone, and only when a session is opened: importing it takes a second, starting
it eight.
"""

import importlib.util
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from actcache.cluster.ray_folder import ray_folder
from actcache.errors import ActcacheError

SECONDS_TO_ANSWER = 40.0
"""How long a cluster may take to answer, on a busy machine; Ray would wait for two minutes."""

SECONDS_AWAY = 30.0
"""How long its head may then be away. After a minute Ray itself ends the process, as it stands."""

_THREADS, _NICENESS = "OMP_NUM_THREADS", "RAY_worker_niceness"
_ADDRESS, _TOKEN, _TOKEN_FILE, _TOKEN_MODE = (
    *("RAY_ADDRESS", "RAY_AUTH_TOKEN"),
    *("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"),
)
_OBJECT_STORE_BYTES = 256 << 20  # tasks and answers are small: values go to the store

_PROBE = """
import logging, sys, ray
ray.init(sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
ray.shutdown()
"""


class LostError(ActcacheError):
    """The cluster has gone while it was used."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers a job asks for, where, and what each of them needs.

    Raises:
        ActcacheError: none were asked for, Ray is not installed, or this machine has too few CPUs.
    """

    n: int
    """Workers, 1 or more."""

    address: str | None = None
    """Of a running cluster, HOST:PORT or auto; None starts Ray on this machine."""

    gpus: int | None = None
    """GPUs of each; None: one where the cluster has GPUs."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ActcacheError(
                f"--workers is {self.n}, expected 1 or more. Leave it out to work without Ray."
            )
        if self.gpus is not None and self.gpus < 0:
            raise ActcacheError(
                f"--gpus-per-worker is {self.gpus}, expected 0 or more. Leave it out for one where "
                "there are GPUs."
            )
        if importlib.util.find_spec("ray") is None:
            raise ActcacheError(
                "Ray is not installed, expected it for --workers. Install it with: "
                "pip install 'actcache[cluster]'"
            )
        if self.address is not None and (not self.address or "://" in self.address):
            raise ActcacheError(
                f"--cluster is '{self.address}', expected HOST:PORT of the cluster's head, or "
                "auto. Start the command on a machine of the cluster."
            )
        if self.starts_ray and self.n * self.threads > _n_cpus():
            asked = _asked(self.n, self.threads, self.gpus)
            raise ActcacheError(
                f"this machine has {_count(_n_cpus(), 'CPU')}, expected room for {asked}. "
                "Pass a smaller --workers, or the address of a larger --cluster."
            )

    @property
    def threads(self) -> int:
        """Threads of a worker, and so CPUs: as `OMP_NUM_THREADS` says here, or one."""
        text = os.environ.get(_THREADS, "")
        return max(1, int(text)) if text.isdigit() else 1

    @property
    def starts_ray(self) -> bool:
        """Whether Ray is started for this job, rather than found running."""
        return self.address is None and _ADDRESS not in os.environ


@dataclass(frozen=True, kw_only=True)
class Session:
    """An open connection to Ray."""

    ray: Any
    """The module."""

    workers: int
    threads: int
    """CPUs of a worker, and the threads that it computes with."""

    gpus: int
    """GPUs of a worker."""

    head: str
    """HOST:PORT of the process that keeps the cluster together."""

    seconds_away: float = SECONDS_AWAY

    def require_head(self) -> None:
        """Wait while Ray's head does not answer, for some seconds.

        Raises:
            LostError: it is gone.
        """
        deadline = time.monotonic() + self.seconds_away
        while why := _unreachable(self.head):
            if time.monotonic() > deadline:
                raise _gone(f"Ray's head at '{self.head}' is gone ({why})")
            time.sleep(0.5)

    def require_here(self) -> None:
        """Refuse to go on when Ray has ended on this machine: nobody would run its tasks.

        Raises:
            LostError: it has, or its head is gone.
        """
        self.require_head()
        node_id = self.ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == node_id and node["Alive"] for node in self.ray.nodes()):
            raise _gone("Ray has ended on this machine")


@contextmanager
def connect(workers: Workers, *, seconds_away: float = SECONDS_AWAY) -> Iterator[Session]:
    """Start Ray on this machine, or connect to a cluster; end at the exit what was started.

    Args:
        workers: how many, and where.
        seconds_away: how long Ray's head may be away while the session is open.

    Raises:
        ActcacheError: the cluster does not answer, refuses the token, or has too few CPUs or GPUs.
    """
    # Read when Ray is imported: of a worker that dies it would print a paragraph on stdout.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it warns of its defaults
    if ray.is_initialized():  # by the caller, who will end it
        yield _checked(workers, ray, seconds_away)
        return
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray sets another one
    with _started(workers, ray) if workers.starts_ray else _connected(workers, ray):
        lost = False
        with suppress(ValueError):  # not in the main thread
            # Ray's C++ part puts one before it, which prints a stack. Slurm ends jobs like this.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            yield _checked(workers, ray, seconds_away)
        except LostError:
            lost = True
            raise
        finally:
            if not lost:  # or this process may end here, before anybody reads why
                ray.shutdown(wait_for_processes=True)
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, on_terminate)


@contextmanager
def _started(workers: Workers, ray: Any) -> Iterator[None]:
    """Start Ray with a folder of its own, which is removed at the end."""
    # Whoever reaches Ray's ports can run code: they ask for a token, which only this process and
    # what it starts know.
    if not {_TOKEN, _TOKEN_FILE, _TOKEN_MODE} & os.environ.keys():
        os.environ[_TOKEN] = secrets.token_hex(16)
    # Ray's own is 15: beside anything else that computes, a command would wait without end.
    os.environ.setdefault(_NICENESS, "0")
    with ray_folder() as folder:
        with _stderr_held():
            ray.init(
                address="local",
                num_cpus=workers.n * workers.threads,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=str(folder),
            )
        yield


@contextmanager
def _connected(workers: Workers, ray: Any) -> Iterator[None]:
    """Connect to a cluster that runs already."""
    address = workers.address or os.environ[_ADDRESS]
    if _TOKEN in os.environ or _TOKEN_FILE in os.environ:
        os.environ.setdefault(_TOKEN_MODE, "token")  # or Ray does not send it
    _require_answer(address)
    with _stderr_held():
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Hold back what Ray's C++ part prints while it starts; what fails is raised as well."""
    with tempfile.TemporaryFile() as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _require_answer(address: str) -> None:
    """Connect from another process first: it can be ended, and what Ray prints can be held back."""
    if address != "auto" and (why := _unreachable(address)):
        raise _no_answer(address, why)
    code, printed = _probe(address)
    if code == 0:
        return
    if not any("AuthToken" in line or "authentication" in line for line in printed):
        late = f"nothing for {SECONDS_TO_ANSWER:.0f} s"
        raise _no_answer(address, late if code < 0 else (printed or [""])[-1].strip())
    raise ActcacheError(
        f"the cluster at '{address}' refuses the token of this process, or the lack of one. Set "
        f"{_TOKEN} to the token of the cluster."
    )


def _unreachable(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty if somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(error)
    return ""


def _gone(what: str) -> LostError:
    return LostError(
        f"{what}, expected it to run until the job is done. Start Ray again, then give the same "
        "command: an analysis goes on by itself, a build with --resume."
    )


def _probe(address: str) -> tuple[int, list[str]]:
    """Connect from another process; return its exit code, negative if it was ended, and its lines.

    It is ended when time is up, or the token is refused: Ray would go on trying for 20 s.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _PROBE, address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as probe:
        assert probe.stderr is not None
        late = threading.Timer(SECONDS_TO_ANSWER, probe.kill)
        late.start()
        printed = []
        for line in probe.stderr:
            printed.append(line)
            if "InvalidAuthToken" in line:
                probe.kill()
        late.cancel()
    return probe.returncode, printed


def _no_answer(address: str, why: str) -> ActcacheError:
    return ActcacheError(
        f"the cluster at '{address}' does not answer ({why}), expected the HOST:PORT that "
        "ray start --head printed. Start it, or leave --cluster out to start Ray on this machine."
    )


def _checked(workers: Workers, ray: Any, seconds_away: float) -> Session:
    """Refuse a cluster that cannot hold the workers."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_cpus, n_gpus = (
        int(sum(node.get(resource, 0) for node in nodes)) for resource in ("CPU", "GPU")
    )
    gpus = min(1, n_gpus) if workers.gpus is None else workers.gpus
    room = sum(
        min(
            int(node.get("CPU", 0)) // workers.threads,
            int(node.get("GPU", 0)) // gpus if gpus else workers.n,
        )
        for node in nodes
    )
    if room < workers.n:
        raise ActcacheError(
            f"the cluster has {_count(n_cpus, 'CPU')} and {_count(n_gpus, 'GPU')} on "
            f"{_count(len(nodes), 'machine')}, room for {_count(room, 'such worker')}, expected "
            f"{_asked(workers.n, workers.threads, gpus)}. Pass a smaller --workers or "
            "--gpus-per-worker, or add machines."
        )
    return Session(
        ray=ray,
        workers=workers.n,
        threads=workers.threads,
        gpus=gpus,
        head=ray.get_runtime_context().gcs_address,
        seconds_away=seconds_away,
    )


def _asked(n: int, cpus: int, gpus: int | None) -> str:
    """Say what is asked for."""
    with_gpus = f" and {_count(gpus, 'GPU')}" if gpus else ""
    return f"{_count(n, 'worker')} of {_count(cpus, 'CPU')}{with_gpus}"


def _n_cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
