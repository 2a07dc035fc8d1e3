"""Rows with a planted direction, as a concept's prompts have it, to fit to."""

import numpy as np


def planted(*, n=60, n_layers=2, d=40, seed=0, soft=False, strength=3.0):
    """Residuals `[n, layer, d]`, labels (hard, or soft `[n, layer]`) and a mask for each split.

    Rows alternate, positive first. Their common mean is far from zero, as a residual stream's is.
    """
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 2 == 0
    y = np.where(positive, rng.uniform(0.2, 1, n), 0.0) if soft else positive.astype(float)
    planted_direction = rng.standard_normal((n_layers, d))
    planted_direction /= np.linalg.norm(planted_direction, axis=1, keepdims=True)
    spread = rng.standard_normal((n, n_layers, d)) * np.linspace(0.6, 1.4, d)
    residuals = 5 + spread + strength * y[:, None, None] * planted_direction
    labels = np.repeat(y[:, None], n_layers, axis=1) if soft else y
    order = np.arange(n)
    splits = {
        "train": order < 0.6 * n,
        "validation": (order >= 0.6 * n) & (order < 0.8 * n),
        "test": order >= 0.8 * n,
    }
    return residuals, labels, splits, planted_direction


def cosine(a, b):
    """Cosine of each pair of directions, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
