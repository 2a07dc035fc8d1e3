"""Random operations on a folder of stores; a model in memory must agree after each.

Runs in a separate process, which forks children that die. `ACTCACHE_LIFE_STEPS=10000` for a night.
"""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.long
@pytest.mark.slow
def test_stores_and_their_model_agree_after_every_step():
    steps = os.environ.get("ACTCACHE_LIFE_STEPS", "300")
    out = subprocess.run(
        [sys.executable, "-m", "tests.crash.store_life", "--steps", steps],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    assert "deaths" in out.stdout
