"""Nothing from the network in a test; one thread, which for tiny models is faster than two."""

import os
import secrets
import sys
from collections import defaultdict

import hypothesis
import jaxtyping
import pytest

from tests.support.type_checks import checked

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for one another spin: on a busy machine tests of tiny models took ten times as
# long with two. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Some environments forbid bytecode for the sake of their images. Here every process that a test
# starts would compile the package again, and every worker all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What is tested is not the disk: 20,000 syncs in three files of tests took 50 s. Tests of crashes
# start processes of their own, whose syncs are real.
os.fsync = os.fdatasync = lambda fd: None

# An example that is slow is no finding: the machine may be busy, and the first one imports much.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

# What the import hook of `--jaxtyping-packages` puts on every function and dataclass of actcache.
jaxtyping.jaxtyped = checked  # type: ignore[assignment]


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    """An S3 server, one for all tests of a process: not to be killed."""
    from tests.support.seaweedfs import SeaweedFS

    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def bucket(seaweedfs, monkeypatch):
    """An address below which the bucket is empty; the AWS variables lead to it."""
    from tests.support.seaweedfs import BUCKET

    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(8)}"


@pytest.fixture
def no_report(monkeypatch):
    """Analyses leave report.html and the pictures out: they take half of a tiny analysis."""
    monkeypatch.setattr("actcache.analysis.pipeline.write_results_report", lambda *_, **__: [])


def pytest_xdist_auto_num_workers(config):
    """Take all cores; for files that are named one process, which starts sooner, without workers."""
    return 0 if any(".py" in name for name in config.args) else None


SECONDS = (("long", 10.0), ("slow", 2.0))
"""That a test takes at least, by its mark; most others take a tenth of one."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with the files that take longest: one that comes last leaves all other cores idle."""
    seconds: defaultdict[object, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += next((s for mark, s in SECONDS if item.get_closest_marker(mark)), 0.1)
    items.sort(key=lambda item: -seconds[item.path])
