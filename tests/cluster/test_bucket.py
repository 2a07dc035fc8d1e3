"""Builds into a real bucket and their faults, on Ray; one process starts both for all cases."""

import json

import pytest

from tests.cluster.bucket_cases import NAMES
from tests.support.cluster import require_ray, run_isolated
from tests.support.seaweedfs import KEYS, weed

pytestmark = [pytest.mark.long, pytest.mark.model]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    pytest.importorskip("obstore", reason="pip install 'actcache[s3]'")
    require_ray()
    weed()
    folder = tmp_path_factory.mktemp("bucket")
    return run_isolated("-W", "error", "-m", "tests.cluster.bucket_cases", folder)


@pytest.mark.parametrize("case", NAMES)
def test_a_build_into_a_bucket(done, case):
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    if outcomes[case]:
        pytest.fail(outcomes[case], pytrace=False)


def test_nothing_but_the_outcomes_is_printed(done):
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert not any(key in done.stdout for key in KEYS.values())
