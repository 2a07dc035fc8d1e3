"""Directions from labelled rows, in the model's own coordinates: d × d matrices, row by row."""

import numpy as np


def unit_rows(x, mean_of):
    """Rows over their norm, minus the mean of `mean_of` rows treated likewise."""
    scaled = x / np.linalg.norm(x, axis=1, keepdims=True)
    others = mean_of / np.linalg.norm(mean_of, axis=1, keepdims=True)
    return scaled - others.mean(0)


def ridge(x, y, penalty):
    """(XᵀX + λI)⁻¹ Xᵀy with the d × d matrix."""
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean()))


def lda(x, share, shrinkage):
    """Two weighted means and the covariance within classes, one row at a time."""
    d = x.shape[1]
    upper = sum(w * row for w, row in zip(share, x, strict=True)) / share.sum()
    lower = sum((1 - w) * row for w, row in zip(share, x, strict=True)) / (1 - share).sum()
    within = np.zeros((d, d))
    for w, row in zip(share, x, strict=True):
        within += w * np.outer(row - upper, row - upper)
        within += (1 - w) * np.outer(row - lower, row - lower)
    within /= len(x)
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / d * np.eye(d)
    return np.linalg.solve(shrunk, upper - lower)


def rfm(x, y, bandwidth, iterations, *, scale_basis=None):
    """M after each iteration of a Recursive Feature Machine (Radhakrishnan et al. 2024), dense.

    Attention-guided steering's settings: Laplace kernel of the M-distance, ridge 1e-3, centred
    gradients, M over its largest entry. `scale_basis`, an orthogonal matrix, says in which basis
    that entry is looked for.
    """
    n, d = x.shape
    m = np.eye(d)
    basis = np.eye(d) if scale_basis is None else scale_basis
    out = []
    for _ in range(iterations):
        distance = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                z = x[i] - x[j]
                distance[i, j] = np.sqrt(max(z @ m @ z, 0.0))
        kernel = np.exp(-distance / bandwidth)
        a = np.linalg.solve(kernel + 1e-3 * np.eye(n), y)
        gradients = np.zeros((n, d))
        for j in range(n):
            for i in range(n):
                if distance[i, j] > 1e-10:
                    step = m @ (x[i] - x[j])
                    gradients[j] += a[i] * kernel[i, j] / distance[i, j] * step
        gradients -= gradients.mean(0)
        m = gradients.T @ gradients
        m /= (basis @ m @ basis.T).max()
        out.append(m)
    return out


def top_eigenvector(m):
    return np.linalg.eigh(m)[1][:, -1]
