"""Ray's folders: those of killed commands are removed, and no others."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actcache.cluster.ray_folder import OWNER, PREFIX, ray_folder
from tests.support.processes import ROOT

CODE = """
import subprocess, sys
from pathlib import Path
from actcache.cluster.ray_folder import ray_folder
with ray_folder(Path(sys.argv[1])) as folder:
    (folder / "session").mkdir()
    subprocess.Popen(["sleep", "9"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # outlives it
    print(folder.name, flush=True)
    input()
"""


@pytest.fixture
def base():
    """A folder with a short name, as the one for temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder:
        yield Path(folder)


def started(base):
    """Start a process that has a folder and a child; also return its folder's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, base],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def names(base):
    return {path.name for path in base.iterdir()}


def test_the_folder_is_removed_at_exit(base):
    with ray_folder(base) as folder:
        (folder / "session").mkdir()
        assert names(base) == {folder.name}
        assert folder.name.startswith(PREFIX)
    assert names(base) == set()


def test_only_folders_of_killed_owners_are_removed(base):
    (killed, of_killed), (alive, of_alive) = started(base), started(base)
    (base / f"{PREFIX}older").mkdir()  # of a version that did not lock it
    (base / "others").mkdir()
    (base / "others" / OWNER).touch()
    (base / f"{PREFIX}link").symlink_to(base / "others")
    if os.geteuid() == 0:
        (base / f"{PREFIX}user").mkdir()
        (base / f"{PREFIX}user" / OWNER).touch()
        os.chown(base / f"{PREFIX}user" / OWNER, 12345, 12345)
    before = names(base)
    assert {of_killed, of_alive} < before

    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with ray_folder(base) as folder:
        assert names(base) == before - {of_killed} | {folder.name}
    assert (base / "others" / OWNER).exists()

    alive.communicate("\n")
    assert names(base) == before - {of_killed, of_alive}


def test_a_folder_whose_path_is_too_long_lies_in_tmp(tmp_path):
    base = tmp_path / ("long" * 10)
    base.mkdir()
    with ray_folder(base) as folder:
        assert folder.parent == Path("/tmp")
