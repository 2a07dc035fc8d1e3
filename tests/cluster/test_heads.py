"""A cluster loses its head: the build soon ends with one line, and resumes elsewhere."""

import json

import pytest

from tests.support.cluster import require_ray, run_isolated

pytestmark = [pytest.mark.long, pytest.mark.model]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    require_ray()
    folder = tmp_path_factory.mktemp("heads")
    done = run_isolated("-W", "error", "-m", "tests.cluster.heads", folder, timeout=600)
    assert (done.stderr, done.stdout.count("\n")) == ("", 1), done
    return json.loads(done.stdout)


REST = (
    ", expected it to run until the job is done. Start Ray again, then give the same command: an "
    "analysis goes on by itself, a build with --resume."
)


def test_a_build_without_its_head_ends_with_one_line(outcome):
    end = outcome["head"]
    why = "[Errno 111] Connection refused"
    assert end["printed"] == f"actcache: Ray's head at '127.0.0.1:6379' is gone ({why}){REST}\n"
    assert end["status"] == 1
    assert end["seconds"] < 60  # when Ray itself would end the process


def test_a_build_resumes_on_another_cluster_from_its_receipts(outcome):
    assert outcome["begun"] == outcome["runs"]
    assert 0 < sum(outcome["runs"]) < len(outcome["runs"])


def test_a_job_whose_machine_left_the_cluster_ends_with_one_line(outcome):
    assert outcome["raylet"]["printed"] == f"Ray has ended on this machine{REST}"
    assert outcome["raylet"]["seconds"] < 60
