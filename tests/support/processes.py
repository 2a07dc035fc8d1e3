"""Python in a process of its own: run to its end, or killed when enough rows are committed."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

SLOW_COMMITS = """
import time
from actcache.store.writing.writer import Writer
right = Writer.commit
def slow(self, blocks, **how):
    right(self, blocks, **how)
    print(self.committed, flush=True)
    time.sleep(0.3)
Writer.commit = slow
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
    """Run code that writes a store, and kill it soon after so many rows are committed."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_COMMITS + code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < rows:
            pass
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
