"""Python in a process of its own: run to its end, or killed when enough rows are committed."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

HELD_AFTER = """
import time
from actcache.store.writing.writer import Writer
right = Writer.commit
def held(self, blocks, **how):
    right(self, blocks, **how)
    if self.committed >= {rows}:
        print(flush=True)
        time.sleep(3600)
Writer.commit = held
"""


def run_code(code, *args, check=True):
    """Run code from the checkout; with `check` it must not fail."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (check and done.returncode), done.stderr
    return done


def kill_after(rows, code, *args):
    """Run code that writes a store, and kill it when so many rows are committed."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD_AFTER.format(rows=rows) + code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        process.send_signal(signal.SIGKILL)
