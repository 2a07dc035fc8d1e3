"""Certificates: small for a right build, and large at the layer that is wrong."""

import pytest

from actcache.build.certify import rows_of_certificate
from actcache.build.plan import plan_build
from actcache.build.run import load_planned, run_build
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


def test_a_row_that_the_check_ran_alone_is_compared_with_the_store(samples, config, tmp_path):
    """Its values are those of the check; what is stored of it later is wrong."""
    plan = plan_build(samples, config)
    shortest = min(plan.rendered, key=lambda row: row.length)
    calls: list[int] = []

    def wrong(model, rows, **settings):
        residuals = capture(model, rows, **settings)
        calls.append(1)
        if len(calls) > 1 and shortest in rows:
            residuals["resid_post"][list(rows).index(shortest), 3] *= 1.01
        return residuals

    store = run_build(plan, tmp_path / "s.zarr", read=wrong)

    errors = store.certificate["largest_relative_error"]
    assert errors[3] > 0.005
    assert max(errors[:3]) < 1e-5


def test_no_row_is_run_alone_twice(samples, config, tmp_path):
    plan = plan_build(samples, config)
    model = load_planned(config)
    sequences = {
        (*row.chain, side[0]) for row in plan.rendered for side in (row.positive, row.negative)
    }
    run_alone: list[tuple[int, ...]] = []

    def see(_module, _args, inputs):
        ids = tuple(inputs["input_ids"][0].tolist())
        if inputs["input_ids"].shape[0] == 1 and ids in sequences:
            run_alone.append(ids)

    handle = model.anatomy.decoder.register_forward_pre_hook(see, with_kwargs=True)
    store = run_build(plan, tmp_path / "s.zarr", model=model)
    handle.remove()

    assert len(run_alone) == len(set(run_alone)) == 2 * len(store.certificate["rows"])


def test_the_certificate_is_of_the_rows_of_the_check_and_of_random_ones():
    def n_rows(n):
        return [len(rows_of_certificate(n, seed=seed, checked=[n - 1, 0])) for seed in range(30)]

    assert max(n_rows(2)) == 2
    assert max(n_rows(32)) == 4
    assert max(n_rows(100)) == 8
    assert max(n_rows(5000)) == 10
    assert {0, 99} <= set(rows_of_certificate(100, seed=0, checked=[99, 0]))
