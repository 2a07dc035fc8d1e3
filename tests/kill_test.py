"""Kills builds of a store, and looks at what they left.

    python -m tests.kill_test --kills 200      SIGKILL at random instants
    python -m tests.kill_test --steps          death before each sync, rename and unlink in turn

After each kill a fresh process opens what is there, compares every row that is claimed with the
truth, and the build is resumed. A finished store must equal an uninterrupted one byte for byte.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actcache.errors import IncompleteStoreError, StoreNotFoundError
from actcache.schema import RowArray
from actcache.store import open_store, verify
from actcache.writer import Writer
from tests.stores import build, commit_next, example, file_bytes, scratch

ROOT = Path(__file__).parents[1]
CERTIFICATE = {"worst": 0.25}


@dataclass
class Report:
    """What a series of kills left."""

    kills: int = 0
    rows: int = 0
    """Rows that were claimed after a kill, and compared."""

    wrong: int = 0
    """Rows that were not as committed, problems found, finished stores that differ."""

    finished: int = 0
    committed_some: int = 0
    """Kills after which some rows counted, but not all."""


def plan(*, small=False):
    """Three arrays; large enough that kills fall into writes."""
    if small:
        return example()
    arrays = [
        RowArray("resid_post/prompt", 6, 128, "float16"),
        RowArray("resid_post/fork", 6, 128, "bfloat16"),
        RowArray("embed/prompt", 1, 128, "float32"),
    ]
    return example(n=1000, shard_rows=40, arrays=arrays)


def go_on(path, *, small=False):
    """Begin or resume the build, and finish it."""
    settings, values = plan(small=small)
    with Writer.resume(path, **settings) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
        writer.finish(CERTIFICATE)


def wrong_rows(path, values):
    """Rows that are claimed, and those of them that are not as they were committed."""
    try:
        store = open_store(path, partial=True, check=True)
    except StoreNotFoundError:
        return 0, 0
    except ValueError:
        # Before record 0 there is no store; then nothing may be claimed.
        assert not Path(f"{path}.partial/commits/c.0.0").exists()
        return 0, 0
    wrong = len(verify(path, partial=True))
    for name, truth in values.items():
        found = store.array(name)
        found = (found.bits if found.dtype == "bfloat16" else found)[:]
        wrong += int((found != truth[: store.n]).any(axis=(1, 2)).sum())
    np.testing.assert_array_equal(store["n_tokens"], np.arange(store.n) * 3)
    return store.n, wrong


def look(path, report, values, whole):
    """Check what a kill left, as a process of its own would; forget the store if it is finished."""
    rows, wrong = wrong_rows(path, values)
    report.kills += 1
    report.rows += rows
    report.wrong += wrong
    report.committed_some += 0 < rows < len(next(iter(values.values())))
    if path.exists():
        report.finished += 1
        report.wrong += file_bytes(path) != whole
        report.wrong += [p.name for p in path.parent.iterdir()] != [path.name]
        shutil.rmtree(path)
    else:
        try:
            open_store(path)
        except (IncompleteStoreError, StoreNotFoundError):
            pass
        else:
            report.wrong += 1


def random_kills(folder, *, kills, seed):
    """SIGKILL a building process at random instants."""
    rng = random.Random(seed)
    settings, values = plan()
    whole = file_bytes(build(folder / "whole.zarr", settings, values, certificate=CERTIFICATE))
    path = folder / "killed" / "a.zarr"
    path.parent.mkdir()
    report = Report()
    code = "import sys; from pathlib import Path; from tests.kill_test import go_on\n"
    code += "print(flush=True); go_on(Path(sys.argv[1]))"
    while report.kills < kills:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it has imported what it needs
            time.sleep(rng.random() ** 2 * 0.5)
            process.send_signal(signal.SIGKILL)
        look(path, report, values, whole)
    return report


def step_kills(folder):
    """Die before each call that changes what is durable, one build for each of them.

    Overwrites a finished store, so that replacing it is among the steps.
    """
    settings, values = plan(small=True)
    whole = file_bytes(build(folder / "whole.zarr", settings, values, certificate=CERTIFICATE))
    path = folder / "killed" / "a.zarr"
    path.parent.mkdir()
    report, step = Report(), 0
    while report.finished == 0:
        step += 1
        shutil.rmtree(f"{path}.partial", ignore_errors=True)
        _die_at(step, path)
        look(path, report, values, whole)
        if report.finished == 0:  # and again, at a place within the resumed build
            _die_at(1 + step % 7, path)
            rows, wrong = wrong_rows(path, values)
            report.rows += rows
            report.wrong += wrong
            go_on(path, small=True)
            report.wrong += file_bytes(path) != whole
            shutil.rmtree(path)
    return report


def _die_at(step, path):
    """Build in a process that dies before its call number `step`; it may get to the end."""
    code = """
import os, sys
from pathlib import Path
from tests.kill_test import go_on
left = int(sys.argv[2])
def dying(call):
    def die(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return call(*args, **kwargs)
    return die
for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))
go_on(Path(sys.argv[1]), small=True)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path), str(step)], cwd=ROOT, check=False)
    assert done.returncode in (0, 9)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be tried")
    args = parser.parse_args()
    with scratch() as memory:
        folder = Path(memory) if args.folder is None else args.folder / f"kills-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        report = step_kills(folder) if args.steps else random_kills(folder, kills=args.kills, seed=args.seed)
        print(report)
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
