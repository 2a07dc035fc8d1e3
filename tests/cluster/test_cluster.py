"""Pools, builds and their faults on Ray, which one process starts for all cases."""

import json

import pytest

from tests.cluster.cases import NAMES
from tests.support.cluster import require_ray, run_isolated

pytestmark = [pytest.mark.long, pytest.mark.model]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    require_ray()
    folder = tmp_path_factory.mktemp("cluster")
    return run_isolated("-W", "error", "-m", "tests.cluster.cases", folder)


@pytest.mark.parametrize("case", NAMES)
def test_on_ray(done, case):
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    if outcomes[case].startswith("skip: "):
        pytest.skip(outcomes[case])
    if outcomes[case]:
        pytest.fail(outcomes[case], pytrace=False)


def test_ray_prints_nothing(done):
    """Whatever dies, users see only our own lines."""
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
