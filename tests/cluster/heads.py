"""Clusters whose head is lost in the middle of a build: `python -m tests.cluster.heads FOLDER`.

Prints the output and duration of the commands as JSON. `test_heads` runs this: each cluster dies,
so no other test can share it.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actcache.build.workers import run_in_pool
from actcache.cluster.pool import Pool
from actcache.cluster.session import LostError, Workers, connect
from actcache.cluster.task import Task
from tests.cluster.cases import Build, coordinator
from tests.cluster.faults import SIZES, shards_with_receipts
from tests.cluster.toys import Step

SECONDS_AWAY = 2.0
QUICK = {  # Ray takes 15 s to see that a machine is gone
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "2",
}


@contextmanager
def cluster(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a cluster of two workers at a port, as users do; kill its processes at the end.

    The path of the folder must be short: Ray's sockets lie in it.
    """
    words = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    words += ["--disable-usage-stats", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    with (
        folder.with_suffix(".log").open("wb") as log,
        subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", *words],
            stdout=log,
            stderr=log,
            env=os.environ | QUICK,
            start_new_session=True,
        ) as head,
    ):
        while "runtime started" not in folder.with_suffix(".log").read_text():
            assert head.poll() is None, folder.with_suffix(".log").read_text()
            time.sleep(0.1)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        try:
            yield head
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # all that it has started


def pid_of(program: str) -> int:
    """Return the process number of one of Ray's programs."""
    listed = subprocess.run(
        ["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    [pid] = [int(line.split()[0]) for line in listed if line.split()[1].endswith(f"/{program}")]
    return pid


def lose_head(build: Build, path: Path, address: str) -> dict[str, object]:
    """Build on a cluster, kill its head, and return how the build ended."""
    with coordinator(
        build, path, address=address, n_workers=2, seconds_away=SECONDS_AWAY
    ) as process:
        start = time.monotonic()
        os.kill(pid_of("gcs_server"), signal.SIGKILL)
        printed, _ = process.communicate(timeout=300)
        seconds = time.monotonic() - start
    return {"status": process.returncode, "printed": printed, "seconds": seconds}


def kill_raylet(step: Path) -> None:
    """Kill Ray on this machine alone, once a task has begun."""
    while not step.exists():
        time.sleep(0.1)
    os.kill(pid_of("raylet"), signal.SIGKILL)


def resume_elsewhere(build: Build, path: Path, folder: Path) -> dict[str, object]:
    """Resume the build on another cluster, then lose that one's raylet in a job of one task."""
    outcome: dict[str, object] = {}
    (folder / "steps").mkdir()
    try:
        with (
            cluster(Path.home() / "b", 6380) as head,
            connect(Workers(n=2, address="127.0.0.1:6380")) as session,
            Pool(session, build.load) as pool,
        ):
            build.runs_begun()
            run_in_pool(build.plan, path, pool, resume=True, **SIZES)
            outcome["begun"] = build.runs_begun()
            head.send_signal(signal.SIGSTOP)  # or it would end the rest when the raylet dies
            threading.Thread(target=kill_raylet, args=[folder / "steps" / "a"]).start()
            start = time.monotonic()
            list(pool.run([Task(name="a", work=Step("a", folder / "steps", always="hang"))]))
    except LostError as error:
        outcome["raylet"] = {"printed": str(error), "seconds": time.monotonic() - start}
    build.require_whole(path)
    return outcome


def main(folder: Path) -> None:
    """Lose the head of one cluster, resume on another, and end Ray on its machine."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    build, path = Build(folder), folder / "s.zarr"
    with cluster(Path.home() / "a", 6379):
        head = lose_head(build, path, "127.0.0.1:6379")
    shards = shards_with_receipts(path)
    runs = [0 if set(build.shards_of(run)) <= shards else 1 for run in range(len(build.runs))]
    outcome = {"head": head, "runs": runs, **resume_elsewhere(build, path, folder)}
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()  # Ray may end this process at its exit, since the raylet is gone


if __name__ == "__main__":
    main(Path(sys.argv[1]))
