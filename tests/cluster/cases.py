"""What needs Ray, in one process that starts it once: `python -m tests.cluster.cases FOLDER`.

Prints for each case the traceback of what failed, as JSON. `test_cluster` runs this.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from actcache import demo
from actcache.build.run import run_build
from actcache.build.runs import Runs
from actcache.build.workers import run_in_pool
from actcache.cluster.pool import Pool
from actcache.cluster.session import SECONDS_AWAY, Session, Workers, connect
from actcache.cluster.task import Task, WorkerError
from actcache.errors import ActcacheError, DamageError, MismatchError
from actcache.store.store import open_store
from tests.cluster import toys
from tests.cluster.analyses import ANALYSIS_CASES, call_main
from tests.cluster.faults import (
    REPEATS,
    RUN_ROWS,
    SHARD_ROWS,
    SIZES,
    SLOW_SECONDS,
    Folder,
    LoadFaulty,
    LoadOtherDtype,
    demo_plan,
    shards_with_receipts,
)
from tests.cluster.toys import Step
from tests.support.cluster import tree
from tests.support.processes import ROOT

DIES_WITHIN_S = 20.0
"""A process that was killed, on a machine that is busy."""

Case = Callable[..., None]


def steps(folder, names, **how):
    """Make a task of each letter; `how` gives its faults by letter, `needs` its needs."""
    folder.mkdir()
    return [Task(name=name, work=Step(name, folder, **how.get(name, {}))) for name in names]


def begun(folder):
    """Count how often each step was begun."""
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


# Cases of a pool whose workers hold a number.


def every_task_is_done_once_and_after_those_that_it_needs(pool, folder):
    names = "abcdefghij"
    (folder / "log").mkdir()
    tasks = [
        Task(
            name=name,
            work=Step(name, folder / "log"),
            needs=frozenset(names[i + 1 : i + 3]) if i % 3 == 0 else frozenset("z"),
        )
        for i, name in enumerate(names)
    ]
    done = [value for _, value in pool.run(tasks)]

    assert sorted(done) == sorted(names)
    assert set(begun(folder / "log").values()) == {1}
    for task in tasks:
        assert all(done.index(need) < done.index(task.name) for need in task.needs - {"z"})


def workers_compute_with_one_thread_in_the_folder_of_the_command(pool, folder):
    threads, cwd = pool.ask(toys.environment)
    assert threads == "1"
    assert cwd == str(Path.cwd())


def an_error_of_a_task_ends_the_job_with_its_class_and_line(pool, folder):
    how = {"b": {"first": "refuse"}}
    with pytest.raises(MismatchError, match=r"^b is refused. Do this.$"):
        list(pool.run(steps(folder / "one", "abc", **how)))
    with pytest.raises(ActcacheError, match="see actcache verify") as caught:
        list(pool.run(steps(folder / "two", "a", a={"first": "damage"})))
    assert not isinstance(caught.value, DamageError)  # which is made of three words
    with pytest.raises(WorkerError, match=r"in __call__[^$]*KeyError: 'a'"):
        list(pool.run(steps(folder / "three", "a", a={"first": "break"})))
    assert pool.ask(Step("again", folder)) == "again"


def what_a_task_logs_is_logged_where_somebody_reads_it(pool, folder):
    handler = BufferingHandler(10)
    logging.getLogger("actcache").addHandler(handler)
    list(pool.run(steps(folder / "log", "a", a={"first": "warn"})))
    logging.getLogger("actcache").removeHandler(handler)
    assert [record.getMessage() for record in handler.buffer] == ["actcache: this is 1"]


def a_killed_worker_is_replaced_and_only_its_task_begun_again(pool, folder):
    tasks = steps(folder / "log", "abcdef", b={"first": "kill"})
    assert sorted(value for _, value in pool.run(tasks)) == list("abcdef")
    assert begun(folder / "log") == {**dict.fromkeys("abcdef", 1), "b": 2}


def a_task_that_kills_every_worker_is_given_up(pool, folder):
    with pytest.raises(ActcacheError, match=r"3 workers ended over a, .* Use fewer --workers"):
        list(pool.run(steps(folder / "log", "a", a={"always": "kill"})))
    assert begun(folder / "log") == {"a": 3}


def a_task_that_never_ends_is_finished_by_a_twin(pool, folder):
    start = time.monotonic()
    tasks = steps(folder / "log", "abcdef", b={"first": "hang"})
    with mock.patch.object(pool, "_slow_seconds", SLOW_SECONDS):
        assert sorted(value for _, value in pool.run(tasks)) == list("abcdef")
    assert begun(folder / "log") == {**dict.fromkeys("abcdef", 1), "b": 2}
    assert SLOW_SECONDS < time.monotonic() - start < 30
    # Nobody waits for the worker that hangs; one is left.
    assert [value for _, value in pool.run(steps(folder / "next", "xy"))] == ["x", "y"]


POOL_CASES = [
    every_task_is_done_once_and_after_those_that_it_needs,
    workers_compute_with_one_thread_in_the_folder_of_the_command,
    an_error_of_a_task_ends_the_job_with_its_class_and_line,
    what_a_task_logs_is_logged_where_somebody_reads_it,
    a_killed_worker_is_replaced_and_only_its_task_begun_again,
    a_task_that_kills_every_worker_is_given_up,
    a_task_that_never_ends_is_finished_by_a_twin,
]


# Cases of a session.


def a_worker_that_states_something_else_is_refused_with_both_values(session, folder):
    with (
        Pool(session, toys.load_differing) as pool,
        pytest.raises(MismatchError, match=r"versions.torch 'of \d+', the first one 'of \d+'"),
    ):
        list(pool.run(steps(folder / "log", "a", a={"always": "hang"})))


def workers_that_die_while_they_load_are_given_up(session, folder):
    with (
        Pool(session, toys.load_and_die) as pool,
        pytest.raises(ActcacheError, match=r"3 workers ended .* while they loaded"),
    ):
        pool.ask(toys.environment)


def a_cluster_that_is_too_small_is_refused_with_what_it_has(session, folder):
    address = session.ray.get_runtime_context().gcs_address
    for workers, asked in (
        (Workers(n=1, address=address, gpus=1), "1 worker of 1 CPU and 1 GPU"),
        (Workers(n=3, address=address), "3 workers of 1 CPU"),
    ):
        with (
            pytest.raises(
                ActcacheError, match=f"2 CPUs and 0 GPUs on 1 machine.*expected {asked}."
            ),
            connect(workers),
        ):
            pass


def a_wrong_token_is_refused_in_one_line(session, folder):
    code = "import sys; from actcache.cluster import *; connect(Workers(n=1, address=sys.argv[1])).__enter__()"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, session.ray.get_runtime_context().gcs_address],
        env=os.environ | {"RAY_AUTH_TOKEN": "0" * 32},
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - start < 60
    assert "refuses the token" in done.stderr.splitlines()[-1]
    assert "Set RAY_AUTH_TOKEN to the token of the cluster." in done.stderr.splitlines()[-1]
    assert "0" * 32 not in done.stderr


def a_terminated_command_prints_nothing(session, folder):
    code = """
import sys, time
from actcache.cluster import *
with connect(Workers(n=1, address=sys.argv[1])):
    print("connected", flush=True)
    time.sleep(100)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, session.ray.get_runtime_context().gcs_address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        process.terminate()
        assert process.communicate()[0] == ""
    assert process.returncode == signal.SIGTERM  # as Ray's own handler has it


SESSION_CASES = [
    a_worker_that_states_something_else_is_refused_with_both_values,
    workers_that_die_while_they_load_are_given_up,
    a_cluster_that_is_too_small_is_refused_with_what_it_has,
    a_wrong_token_is_refused_in_one_line,
    a_terminated_command_prints_nothing,
    *ANALYSIS_CASES,
]


# Cases of a build. All of them end with the bytes of one machine.


class Build:
    """A build of 88 rows, and the store that one machine builds of it."""

    def __init__(self, folder):
        self.plan = demo_plan()
        self.orders = Folder(folder / "orders")
        whole = run_build(self.plan, folder / "whole.zarr", **SIZES)
        run_build(self.plan, folder / "other.zarr", shard_rows=SHARD_ROWS, run_rows=88)
        assert tree(folder / "other.zarr") != tree(folder / "whole.zarr")  # batching shows
        self.whole = tree(folder / "whole.zarr")
        self.runs = Runs.of(self.plan, whole.row_arrays, **SIZES)
        self.load = LoadFaulty(self.plan.config, str(self.orders.path))

    def require_whole(self, path):
        assert open_store(path).complete
        assert tree(path) == self.whole
        assert not path.with_name(f"{path.name}.partial").exists()
        assert not path.with_name(f"{path.name}.partial.receipts").exists()

    def shards_of(self, run):
        rows = self.runs.rows(run)
        return range(rows.start // SHARD_ROWS, -(-rows.stop // SHARD_ROWS))

    def runs_begun(self):
        """Count how often each run was begun since the last call; repeated rows are never run."""
        counts = np.array(self.orders.rows_run(self.plan))
        assert not counts[list(REPEATS)].any()
        counts = np.delete(counts, list(REPEATS))
        rows = np.delete(np.arange(self.plan.n), list(REPEATS))
        return [int(counts[rows // RUN_ROWS == run].max()) for run in range(len(self.runs))]

    def rows_run_in(self, run):
        """Return the rows of a run that repeat no others."""
        return [self.plan.rendered[i] for i in self.runs.rows(run) if i not in REPEATS]


def a_build_has_the_bytes_of_one_machine(build, pool, folder):
    run_in_pool(build.plan, folder / "s.zarr", pool, **SIZES)
    build.require_whole(folder / "s.zarr")
    assert build.runs_begun() == [1, 1, 1, 1]


def after_the_kill_of_a_worker_only_its_run_is_begun_again(build, pool, folder):
    build.orders.order("kill")
    run_in_pool(build.plan, folder / "s.zarr", pool, **SIZES)
    build.require_whole(folder / "s.zarr")
    assert sorted(build.runs_begun()) == [1, 1, 1, 2]


def a_run_that_never_ends_is_finished_by_a_twin(build, pool, folder):
    # Not the first run, which all others need: a twin comes late while there is nothing to compare.
    build.orders.order("hang", build.rows_run_in(1))
    with mock.patch.object(pool, "_slow_seconds", SLOW_SECONDS):
        run_in_pool(build.plan, folder / "s.zarr", pool, **SIZES)
    build.require_whole(folder / "s.zarr")
    assert build.runs_begun() == [1, 2, 1, 1]
    build.orders.heal()


def rows_of_another_store_are_copied(build, pool, folder):
    old = folder / "old.zarr"
    run_in_pool(build.plan, old, pool, **SIZES)
    build.orders.rows_run(build.plan)
    run_in_pool(build.plan, folder / "s.zarr", pool, reuse=[old], **SIZES)
    run_build(build.plan, folder / "alone.zarr", reuse=[old], **SIZES)
    assert tree(folder / "s.zarr") == tree(folder / "alone.zarr")
    assert build.orders.rows_run(build.plan) == [0] * build.plan.n


def what_has_a_receipt_is_not_run_again(build, pool, folder):
    for interruption in INTERRUPTIONS:
        path = folder.with_name(interruption.__name__) / "s.zarr"
        shards = shards_with_receipts(path)
        per_run = [set(build.shards_of(run)) for run in range(len(build.runs))]
        to_run = [0 if shards_of_run <= shards else 1 for shards_of_run in per_run]
        build.runs_begun()
        run_in_pool(build.plan, path, pool, resume=True, **SIZES)
        build.require_whole(path)
        assert build.runs_begun() == to_run
        assert 0 < sum(to_run) < 4 or interruption is INTERRUPTIONS[-1]


def the_command_line_builds_the_same(build, pool, folder):
    """Build in another process on a running cluster; only our lines, of at most 80 columns.

    The command without workers is called here, where all is imported.
    """
    address = pool._session.ray.get_runtime_context().gcs_address
    pool.close()
    files = [str(path) for path in demo.row_files("tidy")]
    command = ["build", *files, "--model", str(demo.model_path()), "--limit", "24"]
    with chdir(folder), mock.patch.dict(os.environ, COLUMNS="80"):
        code, out, error = call_main(*command, "-o", "one")
    assert code == 0, error
    more = ["--workers", "2", "--cluster", address, "-o", "two"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "actcache", *command, *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.replace("two", "one"), done.stderr) == (out, error)
    assert tree(folder / "one") == tree(folder / "two")
    one, two = (folder / f"{name}.toml" for name in ("one", "two"))
    assert one.read_text() == two.read_text().replace("two.toml", "one.toml")


BUILD_CASES = [
    what_has_a_receipt_is_not_run_again,
    a_build_has_the_bytes_of_one_machine,
    after_the_kill_of_a_worker_only_its_run_is_begun_again,
    a_run_that_never_ends_is_finished_by_a_twin,
    rows_of_another_store_are_copied,
    the_command_line_builds_the_same,
]


def coordinate(path, orders, address, n_workers, seconds_away):
    """Build in a separate process, which the test ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also below nohup
    plan = demo_plan()
    workers = Workers(n=int(n_workers), address=address or None)
    try:
        with (
            connect(workers, seconds_away=float(seconds_away)) as session,
            Pool(session, LoadFaulty(plan.config, orders)) as pool,
        ):
            run_in_pool(plan, path, pool, **SIZES)
    except ActcacheError as error:
        sys.exit(f"actcache: {error}")


@contextmanager
def coordinator(
    build: Build,
    path: Path,
    *,
    address: str = "",
    n_workers: int,
    seconds_away: float = SECONDS_AWAY,
) -> Iterator["subprocess.Popen[str]"]:
    """Start `coordinate`, which never ends its last run, and wait until shards have receipts."""
    build.orders.hold(build.rows_run_in(len(build.runs) - 1))
    code = "import sys; from tests.cluster.cases import coordinate; coordinate(*sys.argv[1:])"
    given = (path, build.orders.path, address, n_workers, seconds_away)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            while len(shards_with_receipts(path)) < 4:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            yield process
        except BaseException:
            build.orders.release()  # or the process would never end
            raise
    build.orders.wait_for_the_end_of_workers()
    build.orders.release()


def interrupted_by_a_kill(build, session, folder):
    address = session.ray.get_runtime_context().gcs_address
    with coordinator(build, folder / "s.zarr", address=address, n_workers=1) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def interrupted_by_ctrl_c_nothing_is_left_running(build, session, folder):
    with coordinator(build, folder / "s.zarr", n_workers=2) as process:  # a Ray of its own
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert printed.rstrip().endswith("KeyboardInterrupt")
    require_nothing_runs(process.pid)


def require_nothing_runs(session):
    """Assert that no process of a session is left, after time for killed ones to end."""
    deadline = time.monotonic() + DIES_WITHIN_S
    while True:
        listed = subprocess.run(
            ["ps", "-eo", "sess=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        running = [line for line in listed if line.split()[0] == str(session)]
        if not running:
            return
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def a_worker_of_another_dtype_is_refused_with_both_values(build, session, folder):
    (folder / "loads").mkdir()
    with (
        Pool(session, LoadOtherDtype(build.plan.config, str(folder / "loads"))) as pool,
        pytest.raises(MismatchError, match="dtype 'float32', the first one 'float16'"),
    ):
        run_in_pool(build.plan, folder / "s.zarr", pool, **SIZES)


INTERRUPTIONS = [
    interrupted_by_a_kill,
    interrupted_by_ctrl_c_nothing_is_left_running,
    a_worker_of_another_dtype_is_refused_with_both_values,
]

NAMES = [case.__name__ for case in (*POOL_CASES, *SESSION_CASES, *INTERRUPTIONS, *BUILD_CASES)]


def main(folder: Path, chosen: list[str]) -> None:
    """Run the cases, or those of some names."""
    outcomes: dict[str, str] = {}

    def run(case: Callable[..., None], *given: object) -> None:
        place = folder / case.__name__
        place.mkdir()
        start = time.monotonic()
        try:
            case(*given, place)
            outcomes[case.__name__] = ""
        except pytest.skip.Exception as why:
            outcomes[case.__name__] = f"skip: {why}"
        except (Exception, pytest.fail.Exception):
            outcomes[case.__name__] = traceback.format_exc()
        outcomes[f"seconds of {case.__name__}"] = f"{time.monotonic() - start:.1f}"

    def of(cases: list[Case]) -> list[Case]:
        return [case for case in cases if not chosen or case.__name__ in chosen]

    with connect(Workers(n=2)) as session:
        run_all(session, folder, run, of)
    sys.stdout.write(json.dumps(outcomes) + "\n")


def run_all(
    session: Session,
    folder: Path,
    run: Callable[..., None],
    of: Callable[[list[Case]], list[Case]],
) -> None:
    if of(POOL_CASES):
        with Pool(session, toys.load) as pool:
            for case in of(POOL_CASES):
                run(case, pool)
    for case in of(SESSION_CASES):
        run(case, session)
    if of(BUILD_CASES) or of(INTERRUPTIONS):
        build = Build(folder)
        for case in of(INTERRUPTIONS):
            run(case, build, session)
    if of(BUILD_CASES):
        with Pool(session, build.load) as pool:
            for case in of(BUILD_CASES):
                run(case, build, pool)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
