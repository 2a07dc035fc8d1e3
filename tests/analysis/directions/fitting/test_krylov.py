"""Top eigenvector and largest diagonal entry equal those of the dense matrix, in hard cases too."""

import numpy as np
import pytest
import torch

from actcache.analysis.directions.fitting import krylov

CASES = {
    "generic": np.linspace(1, 0.1, 12),
    "fast decay": 10.0 ** -np.arange(12),
    "rank one": [3.0],
    "rank two": [3.0, 1.0],
    "two equal": [1.0, 1.0, 0.5, 0.1],
    "nearly equal": [1.0, 1 - 1e-9, 0.5, 0.1],
    "flat": np.linspace(1, 0.98, 60),
    "tiny": 1e-60 * np.linspace(1, 0.1, 12),
}


def factor(values, *, n=60, r=60, seed=0):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((k, k)))[0] for k in (n, r))
    count = len(values)
    return torch.from_numpy((left[:, :count] * values) @ right[:, :count].T)


def start(p, r=60):
    return torch.from_numpy(np.random.default_rng(9).standard_normal((p, r)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("d", [400, 60])
def test_eigenvector_and_largest_entry_equal_the_dense_ones(name, d):
    f = factor(CASES[name])[None]
    rows = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((d, 60)))[0])
    found = krylov.top_eigenvectors(f, start(1))

    m = (f[0].mT @ f[0]).numpy()
    values = np.linalg.eigvalsh(m)
    top = found.top[0].numpy()
    assert np.linalg.norm(top) == pytest.approx(1)
    assert top @ m @ top == pytest.approx(values[-1], rel=1e-12)
    if name != "two equal":  # any vector of their plane is right
        assert np.linalg.norm(m @ top - values[-1] * top) <= 1e-6 * values[-1]
    full = (rows @ torch.from_numpy(m) @ rows.T).numpy()
    largest = krylov.largest_diagonal(f, found, rows)[0].item()
    assert largest == pytest.approx(full.max(), rel=1e-12)


def test_problems_of_one_batch_do_not_meet():
    f = torch.stack(
        [factor(CASES[name]) for name in ("generic", "fast decay", "nearly equal", "rank one")]
    )
    together = krylov.top_eigenvectors(f, start(4))
    for place in range(4):
        alone = krylov.top_eigenvectors(f[place : place + 1], start(4)[place : place + 1])
        assert abs(together.top[place] @ alone.top[0]) == pytest.approx(1, abs=1e-9)
        assert torch.isfinite(together.top).all()


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (3, 3), (2, 40)])
def test_small_matrices(shape):
    f = torch.from_numpy(np.random.default_rng(2).standard_normal((1, *shape)))
    top = krylov.top_eigenvectors(f, start(1, shape[1])).top[0].numpy()
    expected = np.linalg.svd(f[0].numpy())[2][0]
    assert abs(top @ expected) == pytest.approx(1, abs=1e-12)


def test_a_matrix_of_zeros_leaves_finite_numbers():
    found = krylov.top_eigenvectors(torch.zeros(1, 4, 6, dtype=torch.float64), start(1, 6))
    assert torch.isfinite(found.top).all()
    assert krylov.largest_diagonal(torch.zeros(1, 4, 6).double(), found, start(9, 6)).item() == 0
