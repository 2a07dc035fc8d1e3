"""A connection to Ray: one that is started on this machine, or a cluster that runs already.

Ray is imported here alone, and only when a session is opened: importing it takes a second, starting
it eight.
"""

import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from actcache.errors import ActcacheError

SECONDS_TO_ANSWER = 18.0
"""How long a cluster may take to answer; Ray itself would wait for two minutes."""

_THREADS = "OMP_NUM_THREADS"
_ADDRESS, _TOKEN, _TOKEN_FILE, _TOKEN_MODE = (
    *("RAY_ADDRESS", "RAY_AUTH_TOKEN"),
    *("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"),
)
_OBJECT_STORE_BYTES = 256 << 20  # tasks and answers are small: values go to the store
_LONGEST_FOLDER = 40  # of Ray's files: the path of a socket in it may have 107 bytes

_PROBE = """
import logging, sys, ray
ray.init(sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
ray.shutdown()
"""


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
        if self.address is not None and "://" in self.address:
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


@contextmanager
def connect(workers: Workers) -> Iterator[Session]:
    """Start Ray on this machine, or connect to a cluster; end at the exit what was started.

    Raises:
        ActcacheError: the cluster does not answer, refuses the token, or has too few CPUs or GPUs.
    """
    # Read when Ray is imported: of a worker that dies it would print a paragraph on stdout.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it warns of its defaults
    if ray.is_initialized():  # by the caller, who will end it
        yield _checked(workers, ray)
        return
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray sets another one
    with _started(workers, ray) if workers.starts_ray else _connected(workers, ray):
        try:
            yield _checked(workers, ray)
        finally:
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
    base = tempfile.gettempdir()
    folder = tempfile.mkdtemp(
        prefix="actcache-ray-", dir=base if len(base) <= _LONGEST_FOLDER - 21 else "/tmp"
    )
    try:
        with _stderr_held():
            ray.init(
                address="local",
                num_cpus=workers.n * workers.threads,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=folder,
            )
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host or "localhost", int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _no_answer(address, str(error)) from None
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


def _checked(workers: Workers, ray: Any) -> Session:
    """Refuse a cluster that cannot hold the workers."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_cpus, n_gpus = (int(sum(node.get(what, 0) for node in nodes)) for what in ("CPU", "GPU"))
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
    return Session(ray=ray, workers=workers.n, threads=workers.threads, gpus=gpus)


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
