"""What the benchmark of a build's parts times is what the build does."""

import argparse

import numpy as np
import pytest

from actcache.build.run import load_planned, run_build
from benchmarks.build.parts import PARTS, computed, plan_random, variants

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_parts_compute_what_the_build_stores_and_leave_nothing(tmp_path):
    shape = argparse.Namespace(layers=2, d_model=32, tokens=12)
    plan = plan_random(tmp_path, 10, shape)
    works = variants(plan, tmp_path)
    assert set(works) == {"build", *PARTS}
    for work in works.values():
        work()
    assert not (tmp_path / "10.zarr").exists()

    model = load_planned(plan.config)
    store = run_build(plan, tmp_path / "s.zarr", model=model)
    shards = computed(plan, store.row_arrays, model)
    for name in ("resid_post/prompt", "resid_post/positive"):
        values = np.concatenate([blocks[name] for blocks in shards])
        np.testing.assert_array_equal(values, store.array(name).stored[:])
