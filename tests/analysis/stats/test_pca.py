"""Principal components are an orthonormal basis of the train rows, the largest spread first."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.analysis.stats.pca import principal_basis, principal_components
from tests.reference import predict as reference


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 99))
@settings(max_examples=30)
def test_components_hold_all_of_the_train_rows_in_an_orthonormal_basis(n, d, centred, seed):
    rows = np.random.default_rng(seed).normal(3, 1, (n, d))

    components = principal_components(rows, centred=centred, limit=100)

    r = components.basis.shape[1]
    assert r == (min(n - 1, d) if centred else min(n, d))
    np.testing.assert_allclose(
        components.basis.T @ components.basis, np.eye(r), atol=1e-5
    )  # float32 basis
    back = components.coordinates(rows) @ components.basis.T + components.center
    np.testing.assert_allclose(back, rows, atol=1e-5)
    true = (
        reference.principal_basis(rows - centred * rows.mean(0), limit=100)
        if r
        else np.zeros((0, d))
    )
    np.testing.assert_allclose(components.basis, true.T, atol=1e-4)
    few = principal_components(rows, centred=centred, limit=2)
    np.testing.assert_allclose(few.basis, components.basis[:, :2], atol=1e-4)


@given(st.integers(2, 12), st.integers(1, 9))
def test_all_principal_directions_keep_all_distances(n, e):
    values = np.random.default_rng(n * 100 + e).standard_normal((n, e)).astype(np.float32)
    center, basis = principal_basis(values)
    inputs = (values - center) @ basis
    assert inputs.shape[1] == min(n - 1, e)
    np.testing.assert_allclose((inputs**2).mean(), 1, rtol=1e-4)
    covariance = inputs.T @ inputs
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3 * n)
    distance, other = (
        np.linalg.norm(x[:, None] - x[None], axis=2) for x in (values.astype(float), inputs)
    )
    scale = float(np.linalg.norm(basis[:, 0]))
    np.testing.assert_allclose(other, scale * distance, rtol=1e-3, atol=1e-4 * scale)


def test_fewer_directions_are_the_first_of_them():
    values = np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32)
    _, every = principal_basis(values)
    _, few = principal_basis(values, components=4)
    assert few.shape == (12, 4)
    unit = [basis[:, :4] / np.linalg.norm(basis[:, :4], axis=0) for basis in (every, few)]
    np.testing.assert_allclose(np.abs((unit[0] * unit[1]).sum(0)), 1, rtol=1e-4)
