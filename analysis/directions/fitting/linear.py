"""The linear methods: mean, PCA, ridge, logistic and LDA, each exact in a layer's row space.

Ridge and logistic read rows of unit norm, as the published penalties suppose; the others, whose
settings have no scale, read the residuals as they are.
"""

import numpy as np
from jaxtyping import Float64

from actcache.analysis.directions.fitting.choice import (
    LayerFit,
    LayerLabels,
    best_on_validation,
    pearson,
)
from actcache.analysis.directions.fitting.row_space import CentredRows, RowSpace
from actcache.analysis.stats.pca import principal_components

RIDGE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
LOGISTIC_C = (1000.0, 10.0, 1.0, 0.1)
"""The toolkit of attention-guided steering tries these."""

LDA_SHRINKAGES = (1e-3, 1e-2, 0.1, 0.3, 0.6, 0.9)


def fit_mean(space: RowSpace, labels: LayerLabels) -> LayerFit:
    """Covariance of the residuals with the labels, u ∝ Σᵢ (yᵢ - ȳ) xᵢ.

    With labels 0 and 1 this is the difference of the class means (CAA; Rimsky et al. 2024).
    """
    rows = space.centred(unit_rows=False)
    weights = (labels.train - labels.train.mean()) @ rows.train
    return _alone(weights, rows, labels)


def fit_pca(space: RowSpace, labels: LayerLabels) -> LayerFit:
    """First principal component of pair differences, not centred (RepE; Zou et al. 2023).

    u = the largest right singular vector of the rows (y⁺ - y⁻)(x⁺ - x⁻). RepE flips the sign of
    differences at random, which changes nothing about zero; a soft label weighs its pair. The sign
    is that in which train labels rise.
    """
    rows = space.centred(unit_rows=False)
    upper, lower = labels.pairs.T
    weight = (labels.train[upper] - labels.train[lower])[:, None]
    differences = weight * (rows.train[upper] - rows.train[lower])
    basis = principal_components(differences, centred=False, limit=1).basis
    weights = basis[:, 0].astype(np.float64) if basis.shape[1] else np.zeros(len(basis))
    return _alone(_rising(weights, rows, labels), rows, labels)


def fit_ridge(space: RowSpace, labels: LayerLabels) -> LayerFit:
    """Least squares with an L2 penalty, u ∝ (XᵀX + λI)⁻¹ Xᵀy (Hoerl & Kennard 1970).

    X are centred unit rows, so an intercept would change nothing.
    """
    from scipy.linalg import solve

    rows = space.centred(unit_rows=True)
    gram = rows.train.T @ rows.train
    target = (labels.train - labels.train.mean()) @ rows.train
    identity = np.eye(len(gram))
    candidates = [
        solve(gram + penalty * identity, target, assume_a="pos") for penalty in RIDGE_PENALTIES
    ]
    settings = [{"penalty": penalty} for penalty in RIDGE_PENALTIES]
    return best_on_validation(np.stack(candidates), settings, rows, labels)


def fit_logistic(space: RowSpace, labels: LayerLabels) -> LayerFit:
    """L2 logistic regression with an intercept, min ½|u|² + C Σᵢ log loss(yᵢ, u·xᵢ + b).

    X are centred unit rows. Soft labels, scaled to [0, 1], are chances: each row counts as a
    positive with weight y and as a negative with weight 1 - y.
    """
    from sklearn.linear_model import LogisticRegression

    rows = space.centred(unit_rows=True)
    share = _shares(labels)
    weight = np.concatenate([share, 1 - share])
    counts = weight > 0  # hard labels leave each row once
    stacked = np.concatenate([rows.train, rows.train])[counts]
    classes = np.repeat([1, 0], len(share))[counts]
    candidates = []
    for inverse in LOGISTIC_C:
        model = LogisticRegression(C=inverse, tol=1e-8, max_iter=10_000)
        candidates.append(model.fit(stacked, classes, sample_weight=weight[counts]).coef_[0])
    settings = [{"C": inverse} for inverse in LOGISTIC_C]
    return best_on_validation(np.stack(candidates), settings, rows, labels)


def fit_lda(space: RowSpace, labels: LayerLabels) -> LayerFit:
    """Linear discriminant, covariance shrunk to the identity (Friedman 1989; Ledoit & Wolf 2004).

    u ∝ ((1 - s) S + s · tr(S)/d · I)⁻¹ (μ⁺ - μ⁻) with S the covariance within classes. Soft labels,
    scaled to [0, 1], are shares in the positive class.
    """
    from scipy.linalg import solve

    rows = space.centred(unit_rows=False)
    share = _shares(labels)
    within = np.zeros((rows.train.shape[1], rows.train.shape[1]))
    means = []
    for weight in (share, 1 - share):
        means.append(weight @ rows.train / weight.sum())
        deviation = np.sqrt(weight)[:, None] * (rows.train - means[-1])
        within += deviation.T @ deviation / len(share)
    target = (
        np.trace(within) / space.d_model * np.eye(len(within))
    )  # of the model's width: d, not r
    candidates = [
        solve((1 - s) * within + s * target, means[0] - means[1], assume_a="pos")
        for s in LDA_SHRINKAGES
    ]
    settings = [{"shrinkage": s} for s in LDA_SHRINKAGES]
    return best_on_validation(np.stack(candidates), settings, rows, labels)


def _shares(labels: LayerLabels) -> Float64[np.ndarray, " n"]:
    """Train labels from 0 to 1."""
    low, high = labels.train.min(), labels.train.max()
    return np.asarray((labels.train - low) / (high - low))


def _alone(weights: Float64[np.ndarray, " r"], rows: CentredRows, labels: LayerLabels) -> LayerFit:
    """Judge the one candidate of a method that has no setting."""
    score = pearson(rows.validation @ weights[:, None], labels.validation)
    return LayerFit(weights=weights, setting={}, validation=float(score[0]))


def _rising(
    weights: Float64[np.ndarray, " r"], rows: CentredRows, labels: LayerLabels
) -> Float64[np.ndarray, " r"]:
    """The sign in which train labels rise."""
    rise = (labels.train - labels.train.mean()) @ (rows.train @ weights)
    return -weights if rise < 0 else weights
