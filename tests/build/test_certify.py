"""Certificates: small for a right build, and large at the layer that is wrong."""

import pytest

from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.engine.tree_capture import capture

pytestmark = pytest.mark.model


def test_a_certificate_shows_a_capture_that_is_wrong(samples, config, tmp_path):
    def wrong(*args, **settings):
        residuals = capture(*args, **settings)
        calls.append(1)
        if len(calls) > 1:  # the check before the build sees nothing
            residuals["resid_post"][:, 2] *= 1.01
        return residuals

    calls: list[int] = []
    store = run_build(plan_build(samples, config), tmp_path / "s.zarr", read=wrong)

    errors = store.certificate["largest_relative_error"]
    assert errors[2] > 0.005
    assert max(errors[:2]) < 1e-5
