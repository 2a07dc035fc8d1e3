"""Python in a network of its own: Ray listens on all interfaces, whatever it is told."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import ROOT

# A new network has a loopback that is down. SIOCGIFFLAGS and SIOCSIFFLAGS, since not every machine
# has the program `ip`. Then the first process of its own kind, with which all others end: it waits
# for a command, and for those whose parents have died.
_ISOLATED = """
import fcntl, os, socket, struct, sys
with socket.socket() as s:
    name = struct.pack("16sh14x", b"lo", 0)
    _, flags = struct.unpack("16sh14x", fcntl.ioctl(s, 0x8913, name))
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))
command = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
pid = 0
while pid != command:
    pid, status = os.wait()
sys.exit(os.waitstatus_to_exitcode(status))
"""
_NETWORK, _PROCESSES = ("unshare", "-n"), ("-p", "-f", "--kill-child", "--mount-proc")
_AS_ROOT = ("-r",)
"""In a user namespace, for those who are not root."""


@cache
def isolation() -> tuple[list[str], str]:
    """The words before a command that isolate it; and why there are none."""
    if shutil.which("unshare") is None:
        return [], "unshare is not installed"
    for more in (_PROCESSES, (*_AS_ROOT, *_PROCESSES), (), _AS_ROOT):
        command = [*_NETWORK, *more, sys.executable, "-c", _ISOLATED]
        tried = subprocess.run(
            [*command, sys.executable, "-c", ""], capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            return command, ""
    return [], f"no network of its own is allowed: {tried.stderr.strip()}"


def require_ray() -> None:
    """Skip where Ray cannot be started, or would be reachable from outside."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: pip install 'actcache[cluster]'")
    if not isolation()[0]:
        pytest.skip(isolation()[1])


def run_isolated(*argv, timeout=3000, **variables):
    """Run Python with some arguments in a network of its own; nothing that it starts outlives it."""
    with tempfile.TemporaryDirectory(prefix="ray-") as home:  # Ray writes a token there
        return subprocess.run(
            [*isolation()[0], sys.executable, *map(str, argv)],
            cwd=ROOT,
            env=os.environ | {"HOME": home, "PYTHONPATH": str(ROOT)} | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their names in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
