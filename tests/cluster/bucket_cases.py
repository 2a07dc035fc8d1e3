"""Builds into a bucket, and their faults, in one process that starts SeaweedFS and Ray once.

`python -m tests.cluster.bucket_cases FOLDER` prints for each case the traceback of what failed, as
JSON. `test_bucket` runs this. All requests go through a proxy, which counts, cuts or holds them.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path

import numpy as np
import pytest

from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.run import run_sweep
from actcache.analysis.workers import LoadUnits, PoolMap
from actcache.build.runs import read_rows
from actcache.build.workers import run_in_pool
from actcache.cluster.pool import Pool
from actcache.cluster.session import Session, Workers, connect
from actcache.cluster.task import Task
from actcache.errors import BucketError, DamageError, IncompleteStoreError, StoreExistsError
from actcache.progress import SILENT
from actcache.store.layout import ROOT, Layout, read_layout, record_name, shard_name
from actcache.store.storage.s3 import S3Storage
from actcache.store.store import open_store
from actcache.store.writing.partial import unsealed
from actcache.store.writing.receipts import Receipt, Receipts
from tests.cluster.analyses import FaultyDirection
from tests.cluster.bucket_faults import Barrier, start_coordinator
from tests.cluster.cases import Build
from tests.cluster.faults import REPEATS, RUN_ROWS, SIZES, Folder
from tests.support.answer_proxy import AnswerProxy
from tests.support.cluster import tree
from tests.support.seaweedfs import BUCKET, KEYS, SeaweedFS

FOLDER = f"s3://{BUCKET}/builds"
AWAY_S = 4.0
"""Seconds for which the killed bucket stays away; the storage's test waits for ten."""

ENDS_WITHIN_S = 1800.0
"""A coordinator, on a machine that is busy."""


class BucketBuild(Build):
    """A build into a bucket, and the store that one machine builds in a folder."""

    def __init__(self, folder, server, proxy, session):
        super().__init__(folder)
        self.folder, self.server, self.proxy, self.session = folder, server, proxy, session
        self.cluster = session.ray.get_runtime_context().gcs_address
        self.seen: list[bytes] = []
        """What was printed and what lay in receipts: the last case looks for keys in it."""

    def storage(self, case):
        """Return the storage of a case's store."""
        return S3Storage(f"{FOLDER}/{case.__name__}.zarr")

    def require_whole(self, storage):
        assert objects_of(storage) == self.whole
        assert storage.sibling(".receipts").sizes() == {}
        assert open_store(storage).complete

    def heal(self):
        """End the faults that a failed case has left."""
        self.proxy.cut, self.proxy.in_put = (), lambda _path: None
        self.orders.release()
        if self.server.process is None:
            self.server.start()

    def start(self, storage, **how):
        """Start a coordinator."""
        return start_coordinator(storage.location, self.orders.path, **how)

    def printed_by(self, process):
        printed, _ = process.communicate(timeout=ENDS_WITHIN_S)
        self.seen.append(printed.encode())
        return printed

    def receipts(self, storage):
        """The shards that have receipts."""
        receipts = storage.sibling(".receipts")
        names = receipts.list()
        self.seen += receipts.read_many(names)
        return {int(name.removesuffix(".json")) for name in names}

    def wait_for_idle(self, pool):
        """Wait until no worker of a pool still runs a task of a failed build."""
        folder = self.orders.path / f"idle {time.time_ns()}"
        list(pool.run([Task(name=name, work=Barrier(str(folder))) for name in "ab"]))

    def runs_without(self, shards):
        """Return for each run 0 if all its shards are in `shards`, else 1."""
        runs = range(len(self.runs))
        return [0 if set(self.shards_of(run)) <= set(shards) else 1 for run in runs]

    def resume(self, storage, pool):
        return run_in_pool(self.plan, storage, pool, resume=True, **SIZES)


def objects_of(storage: S3Storage) -> dict[str, bytes]:
    names = list(storage.sizes())
    return dict(zip(names, storage.read_many(names), strict=True))


# Coordinators in processes of their own; no pool holds the workers meanwhile.


def a_coordinator_is_killed_between_receipt_and_record(build: BucketBuild):
    storage, last = build.storage(a_coordinator_is_killed_between_receipt_and_record), 6
    process = build.start(storage, cluster=build.cluster, last=record_name(last))
    printed = build.printed_by(process)
    assert (process.returncode, printed) == (-signal.SIGKILL, "")
    build.orders.wait_for_the_end_of_workers()
    shards = build.receipts(storage)
    assert shards >= set(range(last))  # record 6 is that of shard 5
    assert storage.exists(record_name(last - 1))
    assert not storage.exists(record_name(last))

    # The same command again; it is killed between seal and zarr.json.
    build.runs_begun()
    process = build.start(storage, cluster=build.cluster, n_workers=1, last=ROOT)
    printed = build.printed_by(process)
    assert (process.returncode, printed) == (-signal.SIGKILL, "")
    build.orders.wait_for_the_end_of_workers()
    assert build.runs_begun() == build.runs_without(shards)
    assert storage.read(record_name(12)) == build.whole[record_name(12)]  # the seal
    with pytest.raises(IncompleteStoreError):
        open_store(storage)


def a_coordinator_ends_by_ctrl_c_and_its_workers_with_it(build: BucketBuild):
    storage = build.storage(a_coordinator_ends_by_ctrl_c_and_its_workers_with_it)
    build.orders.hold(build.rows_run_in(len(build.runs) - 1))
    process = build.start(storage, cluster=build.cluster, n_workers=1)
    receipts = storage.sibling(".receipts")
    while len(receipts.list()) < 4:
        assert process.poll() is None, build.printed_by(process)
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed = build.printed_by(process)
    build.orders.wait_for_the_end_of_workers()
    build.orders.release()
    assert process.returncode == -signal.SIGINT
    assert printed.rstrip().endswith("KeyboardInterrupt")


def two_coordinators_write_one_store(build: BucketBuild):
    storage = build.storage(two_coordinators_write_one_store)
    together = build.orders.path / "together"
    build.proxy.requests.clear()
    both = [
        build.start(storage, cluster=build.cluster, n_workers=1, together=together)
        for _ in range(2)
    ]
    printed = [build.printed_by(process) for process in both]
    for process, text in zip(both, printed, strict=True):  # one may say why not
        assert (process.returncode, text.count("\n")) in ((0, 0), (1, 1)), printed
    assert any(process.returncode == 0 for process in both), printed
    build.require_whole(storage)
    # Both were at it: they met before they asked for the name of a record.
    assert (
        len(
            [
                put
                for put in build.proxy.puts
                if put.endswith("two_coordinators_write_one_store.zarr/commits/c.1.0")
            ]
        )
        == 2
    ), printed


COORDINATOR_CASES = [
    a_coordinator_is_killed_between_receipt_and_record,
    a_coordinator_ends_by_ctrl_c_and_its_workers_with_it,
    two_coordinators_write_one_store,
]


# Builds in one pool of two workers, whose coordinator is this process.


def the_killed_coordinators_are_replaced_and_no_run_is_begun_again(build: BucketBuild, pool):
    storage = build.storage(a_coordinator_is_killed_between_receipt_and_record)
    build.runs_begun()
    build.resume(storage, pool)
    build.require_whole(storage)
    assert build.runs_begun() == [0, 0, 0, 0]


def what_ctrl_c_left_is_resumed(build: BucketBuild, pool):
    storage = build.storage(a_coordinator_ends_by_ctrl_c_and_its_workers_with_it)
    shards = build.receipts(storage)
    build.runs_begun()
    build.resume(storage, pool)
    build.require_whole(storage)
    assert build.runs_begun() == build.runs_without(shards)
    assert build.runs_without(shards) != [1, 1, 1, 1]


class LostAnswers:
    """Numbers of the PUTs whose answer is lost: each fifth one, and the first into each folder."""

    def __init__(self, proxy):
        self._proxy = proxy

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        folders = [put.rpartition("/")[0] for put in self._proxy.puts[: number + 1]]
        return number % 5 == 0 or folders.index(folders[number]) == number


def lost_answers_are_no_conflict(build: BucketBuild, pool):
    storage = build.storage(lost_answers_are_no_conflict)
    build.proxy.requests.clear()
    build.proxy.cut = LostAnswers(build.proxy)
    run_in_pool(build.plan, storage, pool, **SIZES)
    build.proxy.cut = ()
    build.require_whole(storage)
    assert build.runs_begun() == [1, 1, 1, 1]
    puts = [put for put in build.proxy.puts if ".zarr/" in put]  # of the store, not of receipts
    again = {put for put in puts if puts.count(put) > 1}
    for folder in ("resid_post/", "commits/", "prompt/"):
        assert any(f".zarr/{folder}" in put for put in again)


def a_finished_or_begun_store_is_refused_in_one_line(build: BucketBuild, pool):
    storage = build.storage(lost_answers_are_no_conflict)
    build.runs_begun()
    for resume, line in ((False, "is not empty.* --resume"), (True, "holds a finished store")):
        with pytest.raises(StoreExistsError, match=f"^'{storage.location}' {line}") as caught:
            run_in_pool(build.plan, storage, pool, resume=resume, **SIZES)
        assert "\n" not in str(caught.value)
        assert build.runs_begun() == [0, 0, 0, 0]
    build.require_whole(storage)


class Kill:
    """Kills the server in the n-th PUT of a shard, and restarts it after `away` seconds."""

    def __init__(self, server, storage, n, away=None):
        self._server, self._away = server, away
        self._names = f"/{storage.location.rpartition('/')[2]}/resid_post/"
        self._left = n
        self.thread = threading.Thread(target=self._restart)
        self._lock = threading.Lock()

    def __call__(self, path):
        with self._lock:
            if self._names not in path or self._left < 0:
                return
            self._left -= 1
            if self._left < 0:
                self._server.kill()
                if self._away is not None:
                    self.thread.start()

    def _restart(self):
        time.sleep(self._away)
        self._server.start()


def a_bucket_that_dies_in_a_write_is_waited_for(build: BucketBuild, pool):
    storage = build.storage(a_bucket_that_dies_in_a_write_is_waited_for)
    build.runs_begun()
    build.proxy.in_put = kill = Kill(build.server, storage, 5, AWAY_S)
    start = time.monotonic()
    try:
        run_in_pool(build.plan, storage, pool, **SIZES)
    finally:
        if kill.thread.is_alive():
            kill.thread.join()
    assert time.monotonic() - start > AWAY_S
    build.require_whole(storage)
    assert build.runs_begun() == [1, 1, 1, 1]


def a_bucket_that_stays_away_ends_the_build_in_one_line(build: BucketBuild, pool):
    storage = build.storage(a_bucket_that_stays_away_ends_the_build_in_one_line)
    # Two workers have begun a third run only when one of the first is whole.
    of_a_run = len(build.runs.arrays) * len(build.shards_of(0))
    build.proxy.in_put = Kill(build.server, storage, 2 * of_a_run + 1)
    impatient = S3Storage(storage.location, patience=1.0)
    with pytest.raises(
        BucketError, match=r"^'s3://\S+': \S+ did not answer for \d+ s, .*\.$"
    ) as end:
        run_in_pool(build.plan, impatient, pool, **SIZES)
    assert "\n" not in str(end.value)
    build.seen.append(str(end.value).encode())
    build.server.start()
    build.wait_for_idle(pool)
    shards = build.receipts(storage)
    assert shards
    build.runs_begun()
    build.resume(storage, pool)
    build.require_whole(storage)
    begun = build.runs_begun()
    assert (begun, sum(begun) < 4) == (build.runs_without(shards), True), shards


def out_of_memory_in_one_run_changes_no_other(build: BucketBuild, pool):
    storage = build.storage(out_of_memory_in_one_run_changes_no_other)
    build.orders.order("oom")
    handler = BufferingHandler(10)
    logging.getLogger("actcache").addHandler(handler)
    run_in_pool(build.plan, storage, pool, **SIZES)
    logging.getLogger("actcache").removeHandler(handler)
    [warning] = [record.getMessage() for record in handler.buffer]
    assert "out of memory with" in warning
    build.runs_begun()
    rows = np.arange(build.plan.n)
    before, after = (
        read_rows(open_store(place), rows) for place in (build.folder / "whole.zarr", storage)
    )
    changed = np.any([(before[name] != after[name]).any((1, 2)) for name in before], axis=0)
    # Smaller passes give other last bits; rows that repeat one of them are copies of it.
    assert len({REPEATS.get(row, row) // RUN_ROWS for row in np.flatnonzero(changed).tolist()}) == 1


def interrupted(build: BucketBuild, storage: S3Storage, n_records: int) -> Layout:
    """Put a store there whose first shards have records and receipts, and the others objects."""
    storage.write_small(build.whole)
    layout = unsealed(read_layout(storage))
    for number in range(n_records + 1, layout.root.n_shards + 1):
        storage.remove(record_name(number))
    for shard in range(n_records):
        leave_receipt(layout, shard)
    return layout


def leave_receipt(layout: Layout, shard: int) -> None:
    checksums = {
        name: [f"{crc:08x}" for crc in sums] for name, sums in layout.checksums[shard].items()
    }
    etags = {
        array.name: layout.storage.etag(shard_name(array, shard))
        for array in layout.arrays.values()
    }
    Receipts(layout).write(
        Receipt(shard=shard, store=layout.first_record, checksums=checksums, etags=etags)
    )


def damage(storage: S3Storage, name: str) -> None:
    raw = storage.read(name)
    storage.write(name, [raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]])


def other_bytes_without_a_record_are_replaced(build: BucketBuild, pool):
    storage = build.storage(other_bytes_without_a_record_are_replaced)
    layout = interrupted(build, storage, 3)
    first, second = (next(iter(layout.arrays.values())), list(layout.arrays.values())[-1])
    leave_receipt(layout, 5)
    damage(storage, shard_name(first, 5))  # after its receipt
    damage(storage, shard_name(second, 7))  # without one
    storage.remove(shard_name(first, 9))
    leave_receipt(layout, 10)
    build.runs_begun()
    build.resume(storage, pool)
    build.require_whole(storage)
    assert build.runs_begun() == [0, 1, 1, 1]


def other_bytes_with_a_record_are_refused(build: BucketBuild, pool):
    storage = build.storage(other_bytes_with_a_record_are_refused)
    layout = interrupted(build, storage, 3)
    damage(storage, shard_name(next(iter(layout.arrays.values())), 2))
    before = objects_of(storage)
    build.runs_begun()
    with pytest.raises(
        DamageError, match=r"^'?shard 2 of s3://.* holds other bytes, expected"
    ) as end:
        build.resume(storage, pool)
    assert "\n" not in str(end.value)
    assert build.runs_begun() == [0, 0, 0, 0]
    assert objects_of(storage) == before


def no_key_is_written_anywhere(build: BucketBuild, pool):
    node = pool._session.ray._private.worker._global_node
    logs = [path for path in Path(node.get_logs_dir_path()).rglob("*") if path.is_file()]
    stored = objects_of(S3Storage(FOLDER))
    texts = {**stored, **{str(path): path.read_bytes() for path in logs}}
    texts |= {f"printed {i}": text for i, text in enumerate(build.seen)}
    assert len(stored) >= len(build.whole)
    assert logs
    for name, text in texts.items():
        for key in KEYS.values():
            assert key.encode() not in text, name


def a_sweep_has_the_objects_of_one_machine(build: BucketBuild, pool):
    """Sweep with workers, one of which is killed within a shard, while answers are lost."""
    pool.close()  # its workers hold both CPUs
    store = open_store(build.folder / "whole.zarr")
    values = np.random.default_rng(0).normal(size=(store.n_layers, store.d_model))
    orders = Folder(build.folder / "sweep")
    direction = FaultyDirection(values.astype(np.float32), orders)
    sweep = partial(
        run_sweep,
        store,
        {"d": RowDirections(rows=direction, digest="0" * 64)},
        multipliers=(-1.0, 1.0),
        shard_rows=16,
        progress=SILENT,
    )
    sweep(out=build.folder / "sweep.zarr")
    swept = build.storage(a_sweep_has_the_objects_of_one_machine)
    build.proxy.cut = range(1, 10**6, 3)
    orders.order("kill")
    with Pool(build.session, LoadUnits(device="cpu")) as units:
        sweep(out=swept.location, map_units=PoolMap(build.session, units), shared=True)
    build.heal()
    assert orders.take(()) == ""  # somebody died
    assert objects_of(swept) == tree(build.folder / "sweep.zarr")
    assert swept.sibling(".receipts").sizes() == {}


POOL_CASES = [
    the_killed_coordinators_are_replaced_and_no_run_is_begun_again,
    what_ctrl_c_left_is_resumed,
    lost_answers_are_no_conflict,
    a_finished_or_begun_store_is_refused_in_one_line,
    a_bucket_that_dies_in_a_write_is_waited_for,
    a_bucket_that_stays_away_ends_the_build_in_one_line,
    out_of_memory_in_one_run_changes_no_other,
    other_bytes_without_a_record_are_replaced,
    other_bytes_with_a_record_are_refused,
    a_sweep_has_the_objects_of_one_machine,  # closes the pool
    no_key_is_written_anywhere,
]

NAMES = [case.__name__ for case in (*COORDINATOR_CASES, *POOL_CASES)]


class Outcomes(dict[str, str]):
    """The traceback of each case, empty if it passed; of the chosen cases, or of all."""

    def run(
        self,
        cases: Sequence[Callable[..., None]],
        chosen: list[str],
        build: BucketBuild,
        *given: object,
    ) -> None:
        for case in cases:
            if not chosen or case.__name__ in chosen:
                build.heal()
                start = time.monotonic()
                try:
                    case(build, *given)
                    self[case.__name__] = ""
                except (Exception, pytest.fail.Exception):
                    self[case.__name__] = traceback.format_exc()
                self[f"seconds of {case.__name__}"] = f"{time.monotonic() - start:.1f}"


def run_all(session: Session, build: BucketBuild, chosen: list[str]) -> Outcomes:
    outcomes = Outcomes()
    outcomes.run(COORDINATOR_CASES, chosen, build)
    if not chosen or set(chosen) & {case.__name__ for case in POOL_CASES}:
        with Pool(session, build.load) as pool:
            outcomes.run(POOL_CASES, chosen, build, pool)
    return outcomes


def main(folder: Path, chosen: list[str]) -> None:
    """Run the cases, or those of some names."""
    with ExitStack() as stack:
        server = stack.enter_context(SeaweedFS(folder / "seaweedfs"))
        proxy = stack.enter_context(AnswerProxy(server.ports["s3"]))
        os.environ.update(server.environment | {"AWS_ENDPOINT_URL": proxy.url})  # Ray's inherit it
        session = stack.enter_context(connect(Workers(n=2)))
        outcomes = run_all(session, BucketBuild(folder, server, proxy, session), chosen)
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
