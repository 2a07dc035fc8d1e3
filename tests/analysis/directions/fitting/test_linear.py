"""Each linear method in the row space equals scikit-learn, or its formula with d × d matrices."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from actcache.analysis.directions.fitting import linear
from actcache.analysis.directions.fitting.choice import LayerLabels
from actcache.analysis.directions.fitting.row_space import row_space
from tests.analysis.directions.fitting.rows import cosine, planted
from tests.reference import fitting as reference

SHAPES = pytest.mark.parametrize(
    ("n", "d"),
    [(50, 200), (50, 31), (50, 30), (50, 29), (50, 12)],
    ids=["30 < d", "30 = d - 1", "30 = d", "30 = d + 1", "30 > d"],
)
SOFT = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


def layer(n, d, *, soft=False, repeated=False, seed=0):
    """Train and validation rows of one layer, its labels, and the factorised space."""
    residuals, y, splits, _ = planted(n=n, n_layers=1, d=d, soft=soft, seed=seed, strength=2.0)
    y = y[:, 0] if soft else y
    train, validation = (residuals[splits[s], 0] for s in ("train", "validation"))
    if repeated:
        train[4:8] = train[:4]  # pairs of equal rows, with equal labels
    labels = LayerLabels(
        train=y[splits["train"]],
        validation=y[splits["validation"]],
        pairs=np.arange(len(train)).reshape(-1, 2),
    )
    return train, validation, labels, row_space(train, validation)


def chosen(expected, validation, labels):
    """The expected candidate whose validation projections correlate best with the labels."""
    scores = [np.corrcoef(validation @ u, labels.validation)[0, 1] for u in expected]
    return expected[int(np.argmax(scores))], max(scores)


def check(fit, space, expected, validation, labels):
    best, score = chosen(expected, validation, labels)
    assert cosine(space.direction(fit.weights), best) > 1 - 1e-6
    assert fit.validation == pytest.approx(score, abs=1e-6)


@SOFT
@SHAPES
@pytest.mark.parametrize("repeated", [False, True])
def test_ridge_equals_the_formula_and_scikit_learn(n, d, soft, repeated):
    train, validation, labels, space = layer(n, d, soft=soft, repeated=repeated)
    x, v = reference.unit_rows(train, train), reference.unit_rows(validation, train)
    for candidates in (
        [reference.ridge(x, labels.train, p) for p in linear.RIDGE_PENALTIES],
        [Ridge(alpha=p).fit(x, labels.train).coef_ for p in linear.RIDGE_PENALTIES],
    ):
        check(linear.fit_ridge(space, labels), space, candidates, v, labels)


@SOFT
@SHAPES
def test_logistic_equals_scikit_learn(n, d, soft):
    train, validation, labels, space = layer(n, d, soft=soft)
    x, v = reference.unit_rows(train, train), reference.unit_rows(validation, train)
    share = (labels.train - labels.train.min()) / np.ptp(labels.train)
    twice, weight = np.concatenate([x, x]), np.concatenate([share, 1 - share])
    candidates = []
    for c in linear.LOGISTIC_C:
        model = LogisticRegression(C=c, solver="lbfgs", tol=1e-10, max_iter=100_000)
        candidates.append(model.fit(twice, np.repeat([1, 0], len(x)), weight).coef_[0])
    check(linear.fit_logistic(space, labels), space, candidates, v, labels)


@SHAPES
@pytest.mark.parametrize("repeated", [False, True])
def test_lda_equals_scikit_learn(n, d, repeated):
    train, validation, labels, space = layer(n, d, repeated=repeated)
    candidates = [
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s).fit(train, labels.train).coef_[0]
        for s in linear.LDA_SHRINKAGES
    ]
    check(linear.fit_lda(space, labels), space, candidates, validation, labels)


@SOFT
@SHAPES
def test_lda_equals_the_formula(n, d, soft):
    train, validation, labels, space = layer(n, d, soft=soft)
    share = (labels.train - labels.train.min()) / np.ptp(labels.train)
    candidates = [reference.lda(train, share, s) for s in linear.LDA_SHRINKAGES]
    check(linear.fit_lda(space, labels), space, candidates, validation, labels)


@SHAPES
def test_pca_equals_scikit_learn_whatever_the_signs_of_differences(n, d):
    train, validation, labels, space = layer(n, d)
    flips = np.random.default_rng(1).choice([-1, 1], size=(len(labels.pairs), 1))
    differences = flips * (train[labels.pairs[:, 0]] - train[labels.pairs[:, 1]])
    first = TruncatedSVD(1, algorithm="arpack").fit(differences).components_[0]
    first *= np.sign((train @ first) @ (labels.train - labels.train.mean()))

    check(linear.fit_pca(space, labels), space, [first], validation, labels)


def test_pca_weighs_pairs_by_how_far_their_soft_labels_lie_apart():
    train, validation, labels, space = layer(50, 200, soft=True)
    upper, lower = labels.pairs.T
    weight = labels.train[upper] - labels.train[lower]
    _, _, vectors = np.linalg.svd(weight[:, None] * (train[upper] - train[lower]))
    first = vectors[0] * np.sign((train @ vectors[0]) @ (labels.train - labels.train.mean()))

    check(linear.fit_pca(space, labels), space, [first], validation, labels)


@SOFT
@SHAPES
def test_the_mean_is_the_covariance_with_the_labels(n, d, soft):
    train, validation, labels, space = layer(n, d, soft=soft)
    expected = sum(
        (y - labels.train.mean()) * row for y, row in zip(labels.train, train, strict=True)
    )

    check(linear.fit_mean(space, labels), space, [expected], validation, labels)


def test_settings_differ_between_data_so_that_the_choice_is_one():
    penalties = set()
    for seed in range(6):
        _, _, labels, space = layer(100, 80, seed=seed)
        penalties.add(linear.fit_ridge(space, labels).setting["penalty"])
    assert len(penalties) > 1


@SHAPES
def test_validation_rows_keep_their_length_outside_the_space(n, d):
    train, validation, _, space = layer(n, d)
    x, v = reference.unit_rows(train, train), reference.unit_rows(validation, train)
    again = space.centred(unit_rows=True).scaled_to_unit()
    u = np.random.default_rng(0).standard_normal(space.train.shape[1])
    wide = u if space.basis is None else space.basis @ u

    for rows, expected in ((again.train, x), (again.validation, v)):
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(rows @ u, expected @ wide, atol=1e-12)
