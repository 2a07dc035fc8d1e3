"""Top eigenvector and largest diagonal entry equal those of the dense matrix, in hard cases too."""

import numpy as np
import pytest
import torch

from actcache.analysis.directions.fitting import spectrum

CASES = {
    "generic": np.linspace(1, 0.1, 12),
    "fast decay": 10.0 ** -np.arange(12),
    "rank one": np.array([3.0]),
    "rank two": np.array([3.0, 1.0]),
    "two equal": np.array([1.0, 1.0, 0.5, 0.1]),
    "nearly equal": np.array([1.0, 1 - 1e-9, 0.5, 0.1]),
    "nearly equal above many": np.array([1.0, 1 - 1e-6, *np.linspace(0.999, 0.1, 58)]),
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
    eigenpairs = spectrum.lanczos(f, start(1))

    m = (f[0].mT @ f[0]).numpy()
    values = np.linalg.eigvalsh(m)
    top = eigenpairs.top[0].numpy()
    assert np.linalg.norm(top) == pytest.approx(1)
    assert top @ m @ top == pytest.approx(values[-1], rel=1e-12)
    if name != "two equal":  # any vector of their plane is right
        assert abs(top @ np.linalg.eigh(m)[1][:, -1]) == pytest.approx(1, abs=1e-9)
    full = (rows @ torch.from_numpy(m) @ rows.T).numpy()
    largest = spectrum.largest_diagonal(f, rows, eigenpairs)[0].item()
    assert largest == pytest.approx(full.max(), rel=1e-12)


def test_problems_of_one_batch_do_not_meet():
    f = torch.stack(
        [factor(CASES[name]) for name in ("generic", "fast decay", "nearly equal", "rank one")]
    )
    together = spectrum.lanczos(f, start(4))
    for place in range(4):
        alone = spectrum.lanczos(f[place : place + 1], start(4)[place : place + 1])
        assert abs(together.top[place] @ alone.top[0]) == pytest.approx(1, abs=1e-9)
        assert torch.isfinite(together.top).all()


@pytest.mark.parametrize("name", CASES)
def test_a_whole_decomposition_gives_the_same_and_drops_rows_below_rounding(name):
    f = factor(CASES[name])[None]
    top, few = spectrum.decompose(f)

    m = (f[0].mT @ f[0]).numpy()
    values = np.linalg.eigvalsh(m)
    assert top[0].numpy() @ m @ top[0].numpy() == pytest.approx(values[-1], rel=1e-12)
    np.testing.assert_allclose((few[0].mT @ few[0]).numpy(), m, atol=4e-15 * np.trace(m))
    assert few.shape[1] <= len(CASES[name])


def test_problems_keep_as_many_rows_as_the_one_that_needs_most():
    f = torch.stack([factor(CASES[name]) for name in ("rank one", "fast decay", "generic")])
    _, few = spectrum.decompose(f)
    assert few.shape[1] == 12
    assert spectrum.decompose(f[:1])[1].shape[1] == 1


@pytest.mark.parametrize("d", [400, 150])
def test_a_factor_of_low_rank_is_shortened_and_any_other_left_as_it_is(d):
    low = factor(0.7 ** np.arange(70), n=150, r=150)
    full = factor(0.99 ** np.arange(150), n=150, r=150)
    few = spectrum.shortened(low[None])

    assert few.shape == (1, spectrum.FEW, 150)
    m = (low.mT @ low).numpy()
    np.testing.assert_allclose((few[0].mT @ few[0]).numpy(), m, atol=4e-15 * np.trace(m))
    assert spectrum.shortened(full[None]).shape == (1, 150, 150)
    assert spectrum.shortened(torch.stack([low, full])).shape == (2, 150, 150)
    assert spectrum.fewest_rows(few).shape == (1, spectrum.FEW, 150)
    tall = full[None, :, :20]
    np.testing.assert_allclose(
        (spectrum.fewest_rows(tall).mT @ spectrum.fewest_rows(tall)).numpy(),
        (tall.mT @ tall).numpy(),
        atol=1e-14,
    )
    rows = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((d, 150)))[0])
    largest = spectrum.largest_diagonal(few, rows).item()
    assert largest == pytest.approx((rows @ torch.from_numpy(m) @ rows.T).max().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (3, 3), (2, 40)])
def test_small_matrices(shape):
    f = torch.from_numpy(np.random.default_rng(2).standard_normal((1, *shape)))
    top = spectrum.lanczos(f, start(1, shape[1])).top[0].numpy()
    expected = np.linalg.svd(f[0].numpy())[2][0]
    assert abs(top @ expected) == pytest.approx(1, abs=1e-12)


def test_a_matrix_of_zeros_leaves_finite_numbers():
    eigenpairs = spectrum.lanczos(torch.zeros(1, 4, 6, dtype=torch.float64), start(1, 6))
    assert torch.isfinite(eigenpairs.top).all()
    assert (
        spectrum.largest_diagonal(torch.zeros(1, 4, 6).double(), start(9, 6), eigenpairs).item()
        == 0
    )
