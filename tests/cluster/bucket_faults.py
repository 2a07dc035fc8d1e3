"""Coordinators of builds into a bucket, in processes of their own, which end at a given write."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from actcache.build.workers import run_in_pool
from actcache.cluster.pool import Pool
from actcache.cluster.session import Workers, connect
from actcache.errors import ActcacheError
from actcache.store.layout import record_name
from actcache.store.storage.s3 import S3Storage
from tests.cluster.faults import SIZES, LoadFaulty, demo_plan

CODE = "import sys; from tests.cluster.bucket_faults import coordinate; coordinate(*sys.argv[1:])"


class MortalStorage(S3Storage):
    """Kills its process just before that writes a given object.

    With a folder in `together`, record 1 is written once a second process is about to write it too.
    """

    def __init__(self, address, last, together):
        super().__init__(address)
        self._last, self._together = last, together
        self._process = os.getpid()

    def put_if_absent(self, name, parts):
        self._wait_or_die_before(name)
        return super().put_if_absent(name, parts)

    def write(self, name, parts):
        self._wait_or_die_before(name)
        super().write(name, parts)

    def _wait_or_die_before(self, name):
        if os.getpid() != self._process:  # a worker
            return
        if name == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._together and name == record_name(1):
            Barrier(f"{self._together}/record 1")()


def coordinate(address, orders, cluster, n_workers, last, together):
    """Build as a command with --resume does; messages for users go to stderr.

    With a folder in `together`, wait for a second coordinator before the build and again before
    the record of the first shard.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also below nohup
    plan = demo_plan()
    try:
        with (
            connect(Workers(n=int(n_workers), address=cluster or None)) as session,
            Pool(session, LoadFaulty(plan.config, orders)) as pool,
        ):
            if together:
                pool.ask(_ready)
                Barrier(f"{together}/ready")()
            storage = MortalStorage(address, last, together)
            run_in_pool(plan, storage, pool, resume=True, **SIZES)
    except ActcacheError as error:
        sys.exit(f"actcache: {error}")


def start_coordinator(address, orders, *, cluster="", n_workers=2, last="", together=""):
    """Start `coordinate` in a process and a session of its own."""
    given = (address, orders, cluster, n_workers, last, together)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CODE, *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@dataclass(frozen=True)
class Barrier:
    """Wait until two processes have come, each a file in a folder."""

    folder: str

    def __call__(self, _worker=None):
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.02)


def _ready(_worker):
    """Do nothing: a task that is done once a worker has loaded."""
