"""Cuts the power of a disk that a store is being built on, and looks at what is left.

    python -m tests.crash.power_test --cuts 100                          nothing may be wrong, nothing lost
    python -m tests.crash.power_test --cuts 20 --without-sync            must go red: rows are lost
    python -m tests.crash.power_test --cuts 20 --without-sync shards     must go red: shards are zeros

The disk is an ext4 in a file, mounted by a loop device; the cut is ext4's own shutdown, which drops
whatever the journal and the page cache still hold. Then the file system is checked, mounted again,
and a fresh process compares every row that is claimed with the truth. A row whose commit had
returned before the cut must be among them. The build then goes on until the next cut; a finished
store must equal an uninterrupted one byte for byte. Needs root, loop devices and e2fsprogs; exits
with 77 and the reason where they are not to be had. A drive that lies about its own cache is beyond
this test.
"""

import argparse
import fcntl
import json
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash.kill_test import CERTIFICATE, ROOT, plan, wrong_rows
from tests.support.stores import build, commit_next, file_bytes, scratch

EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = struct.pack("I", 2)
MEGABYTES = 128
SHARD = re.compile(r"c\.\d+\.0\.0\.tmp")
NOT_HERE = 77
"""Exit status that says that the test could not run."""


class NotAllowedError(Exception):
    """The machine has no loop devices, no ext4, or does not let us use them."""


@dataclass
class Report:
    """What a series of cuts left."""

    cuts: int = 0
    rows: int = 0
    """Rows that were claimed after a cut, and compared."""

    wrong: int = 0
    """Rows that were not as committed, problems found, finished stores that differ."""

    lost: int = 0
    """Rows whose commit had returned before the cut, and that were not claimed after it."""

    unreadable: int = 0
    """Cuts after which the store could not be opened, or not gone on with."""

    finished: int = 0
    committed_some: int = 0
    """Cuts after which some rows counted, but not all."""

    @property
    def bad(self):
        return self.wrong + self.lost + self.unreadable


class Disk:
    """An ext4 in a file; use it as a context manager, through `disk`."""

    def __init__(self, folder):
        self._image = folder / "disk.img"
        self.folder = folder / "disk"
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(MEGABYTES << 20)
        _call("mkfs.ext4", "-q", "-F", self._image)
        self.mount()

    def mount(self):
        # commit=1: the journal is written every second by itself too, so that cuts fall among
        # half-written transactions as well as between syncs.
        _call("mount", "-t", "ext4", "-o", "loop,commit=1", self._image, self.folder)

    def cut(self):
        file = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(file, EXT4_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(file)

    def power_up(self):
        self.unmount()
        _call("e2fsck", "-fy", self._image, allowed=(0, 1))  # 1: the journal's rest was mended
        self.mount()

    def sync(self):
        _call("sync", "-f", self.folder)

    def unmount(self):
        for _ in range(100):  # what was killed may take a moment to let go of its files
            if subprocess.run(["umount", self.folder], capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        _call("umount", "-l", self.folder)


@contextmanager
def disk(folder):
    """A disk that can be cut off.

    Raises:
        NotAllowedError: not on this machine.
    """
    made = Disk(folder)
    try:
        yield made
    finally:
        made.unmount()


def _call(*command, allowed=(0,)):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NotAllowedError(f"{command[0]}: {error.strerror}") from error
    if done.returncode not in allowed:
        raise NotAllowedError(f"{command[0]}: {(done.stderr.strip() or 'failed').splitlines()[0]}")


def _syncs_but(left_out):
    """`os.fsync` and `os.fdatasync`, which leave out everything, the shards alone, or nothing."""

    def unless(call):
        def sync(file):
            name = Path(f"/proc/self/fd/{file}").readlink().name
            if left_out is None or (left_out == "shards" and not SHARD.fullmatch(name)):
                call(file)

        return sync

    return unless(os.fsync), unless(os.fdatasync)


def build_or_resume(path, *, without_sync):
    """Begin or resume the build, and finish it; say after each commit how many rows are safe."""
    from actcache.store.writing.contents import StoreContents
    from actcache.store.writing.writer import Writer

    os.fsync, os.fdatasync = _syncs_but(without_sync)
    settings, values = plan()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with Writer.resume(path, StoreContents(**settings)) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
            sys.stdout.write(f"{writer.committed}\n")
            sys.stdout.flush()
        writer.finish(CERTIFICATE)
    sys.stdout.write("finished\n")
    sys.stdout.flush()
    time.sleep(60)  # its files stay open until the cut


def look(path):
    """Rows that are claimed, and what is wrong; as JSON, for the process that made the cut."""
    _, values = plan()
    rows, wrong = wrong_rows(path, values)
    sys.stdout.write(json.dumps([rows, wrong]))


def _python(call, **options):
    code = f"from pathlib import Path; from tests.crash.power_test import build_or_resume, look; {call}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


def _run_until_cut(at, path, *, without_sync, wait):
    """Build for a while, then cut the power; the last line that the build had said by then."""
    command = f"build_or_resume(Path({str(path)!r}), without_sync={without_sync!r})"
    with _python(command, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.readline()  # it has imported what it needs
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left)[0]:
                output = os.read(process.stdout.fileno(), 1 << 16).decode() or output
                if process.poll() is not None:
                    break
        broken = process.poll() is not None
        at.cut()
        process.kill()
        assert process.stderr is not None
        if broken:
            sys.stderr.write(process.stderr.read())
    return None if broken else output.split()[-1]


def power_cuts(at, *, cuts, seed, without_sync=None, log=lambda _text: None):
    """Cut the power at random instants of builds."""
    rng = random.Random(seed)
    settings, values = plan()
    n = settings["n"]
    path = at.folder / "cut" / "a.zarr"
    path.parent.mkdir()
    start = time.monotonic()
    whole = file_bytes(build(path, settings, values, certificate=CERTIFICATE))
    longest = time.monotonic() - start
    _forget(path, at)
    report = Report()
    while report.cuts < cuts:
        output = _run_until_cut(at, path, without_sync=without_sync, wait=rng.random() * longest)
        at.power_up()
        report.cuts += 1
        bad = report.bad
        with _python(f"look(Path({str(path)!r}))", stderr=subprocess.PIPE) as process:
            printed, errors_printed = process.communicate()
        if output is None or process.returncode:
            report.unreadable += 1
            log(f"cut {report.cuts}: {errors_printed.strip().splitlines()[-1:]}\n")
            _forget(path, at)
            continue
        rows, wrong = json.loads(printed)
        promised = n if output == "finished" else int(output) if output.isdigit() else 0
        report.rows += rows
        report.wrong += wrong
        report.lost += max(promised - rows, 0) + (output == "finished" and not path.exists())
        report.committed_some += 0 < rows < n
        if path.exists():
            report.finished += 1
            report.wrong += file_bytes(path) != whole
            report.wrong += [file.name for file in path.parent.iterdir()] != [path.name]
        if path.exists() or report.bad > bad:
            log(f"cut {report.cuts}: {report}\n")
            _forget(path, at)
    return report


def _forget(path, at):
    """Remove what lies there, so that no later cut brings it back."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    at.sync()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--without-sync",
        nargs="?",
        choices=("everything", "shards"),
        const="everything",
        help="leave out every sync of the build, or those of the shards alone",
    )
    parser.add_argument("--folder", type=Path, help="where the disk's file lies; default: memory")
    args = parser.parse_args()
    with scratch() as memory:
        folder = Path(memory) if args.folder is None else args.folder / f"cuts-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        try:
            with disk(folder) as at:
                report = power_cuts(
                    at,
                    cuts=args.cuts,
                    seed=args.seed,
                    without_sync=args.without_sync,
                    log=sys.stderr.write,
                )
        except NotAllowedError as error:
            sys.stdout.write(f"no disk can be cut off here: {error}\n")
            return NOT_HERE
        finally:
            if args.folder is not None:
                shutil.rmtree(folder)
    sys.stdout.write(f"{report}\n")
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
