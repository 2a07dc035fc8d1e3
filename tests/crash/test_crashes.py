"""Builds whose disk loses power, and sweeps that are killed, lose nothing and falsify nothing.

Each in a process of its own: one mounts a disk, the other forks, which a process with threads must
not. Kills of builds are in `test_writer`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.power_test import NOT_HERE

pytestmark = pytest.mark.slow


def run(module, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"tests.crash.{module}", *flags],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def power_test(*flags):
    out = run("power_test", *flags)
    if out.returncode == NOT_HERE:
        pytest.skip(out.stdout.strip())
    return out


def test_after_a_power_cut_every_committed_row_is_there_and_right():
    out = power_test("--cuts", "4")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "wrong=0, lost=0, unreadable=0" in out.stdout


@pytest.mark.parametrize("syncs", ["everything", "shards"])
def test_without_its_syncs_a_build_does_not_survive_a_power_cut(syncs):
    out = power_test("--cuts", "2", "--without-sync", syncs)
    assert out.returncode == 1, out.stdout + out.stderr
    assert "Report(cuts=2" in out.stdout


@pytest.mark.long
@pytest.mark.model
def test_a_killed_sweep_resumes_and_equals_an_uninterrupted_one():
    out = run("kill_test", "--sweep", "--kills", "3")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "wrong=0" in out.stdout
