"""Layer scores equal their definitions, SciPy and scikit-learn, and are honest on held-out rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from actcache.analysis.directions.difference_of_means import directions_of_moments
from actcache.analysis.directions.discriminative import (
    Projections,
    auc,
    fisher_ratio,
    layer_scores,
    mean_cosine,
    project,
)
from actcache.analysis.stats.moments import class_moments
from actcache.errors import MismatchError, NotFiniteError
from tests.reference import directions as reference

coarse = st.integers(-3, 3).map(float) | st.floats(-9, 9, width=16)


def rng(seed=0):
    return np.random.default_rng(seed)


def residuals(seed=0, n=30, n_layers=4, d_model=6):
    return rng(seed).normal(size=(n, n_layers, d_model)).astype(np.float32)


@given(arrays(np.float32, (3, 4), elements=coarse))
def test_the_mean_cosine_equals_the_definition(directions):
    _, expected = reference.common_direction(directions)
    np.testing.assert_allclose(mean_cosine(directions), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("cuts", [[], [7], [1, 1, 20]])
def test_projections_equal_the_definition_however_rows_are_batched(dtype, cuts):
    resid = residuals().astype(dtype)
    directions = residuals(1)[0]
    projections = project(np.split(resid, cuts), directions)

    best, _ = reference.common_direction(directions)
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    wide = resid.astype(np.float64)
    assert projections.common_layer == best
    np.testing.assert_allclose(projections.common, wide @ unit[best], atol=1e-5)
    np.testing.assert_allclose(projections.of_layer, np.einsum("nld,ld->nl", wide, unit), atol=1e-5)
    np.testing.assert_allclose(projections.norm, np.linalg.norm(wide, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_class_means_and_discriminative_layers_equal_the_definition(normalize):
    resid, directions = residuals(n=60), residuals(1)[0]
    resid[:, 2] *= rng(5).lognormal(size=(60, 1))  # norms that differ, so that scaling matters
    labels = rng(2).integers(-1, 2, size=60)
    scores = layer_scores(project([resid], directions), labels, rng=rng(), normalize=normalize)

    best, cosines = reference.common_direction(directions)
    b1 = directions[best] / np.linalg.norm(directions[best])
    expected = reference.class_projections(resid, labels, b1, normalize)
    np.testing.assert_allclose(scores.class_mean, expected, atol=1e-6)
    np.testing.assert_array_equal(scores.discriminative, expected[0] * expected[1] < 0)
    np.testing.assert_allclose(scores.mean_cosine, cosines, atol=1e-6)
    assert (scores.n_positive, scores.n_negative) == ((labels == 1).sum(), (labels == 0).sum())
    assert scores.normalized == normalize


def test_scaling_samples_changes_the_class_means():
    resid, directions = residuals(n=60), residuals(1)[0]
    labels = rng(2).integers(0, 2, size=60)
    projections = project([resid], directions)
    raw, scaled = (
        layer_scores(projections, labels, rng=rng(), normalize=normalize).class_mean
        for normalize in (False, True)
    )
    assert np.abs(raw - scaled).max() > 0.01


def test_the_bootstrap_resamples_within_each_class():
    projections = project([residuals()], residuals(1)[0])
    labels = np.repeat([1, 0, -1], 10)
    scores = layer_scores(projections, labels, rng=rng(7), draws=50)

    source = rng(7)
    drawn = []
    for label in (1, 0):
        members = projections.common[labels == label].astype(np.float64)
        rows = source.integers(10, size=(50, 10))
        drawn.append(np.array([members[r].mean(0) for r in rows]))
    np.testing.assert_allclose(scores.discriminative_share, (drawn[0] * drawn[1] < 0).mean(0))
    expected = [np.quantile(d, [0.025, 0.975], axis=0).T for d in drawn]
    np.testing.assert_allclose(scores.interval, expected, atol=1e-9)


def test_an_offset_that_both_classes_share_decides_what_is_discriminative_but_not_the_auc():
    resid, labels = residuals(n=200), rng(3).integers(0, 2, size=200)
    axis = np.eye(6, dtype=np.float32)[0]
    resid += 2 * (2 * labels - 1)[:, None, None] * axis
    directions = np.tile(axis, (4, 1))
    centred = layer_scores(project([resid], directions), labels, rng=rng())
    moved = layer_scores(project([resid + 5 * axis], directions), labels, rng=rng())

    assert centred.discriminative.all()
    assert not moved.discriminative.any()
    np.testing.assert_array_equal(centred.discriminative_share, 1)
    np.testing.assert_array_equal(moved.discriminative_share, 0)
    np.testing.assert_allclose(moved.fisher, centred.fisher, rtol=1e-4)
    np.testing.assert_allclose(moved.auc, centred.auc, atol=1e-3)


def test_pure_noise_separates_on_train_rows_and_not_on_held_out_ones():
    resid = residuals(n=80, n_layers=5, d_model=500)
    labels = rng(4).integers(0, 2, size=80)
    train = np.arange(80) < 40
    moments = class_moments([(resid, np.where(train, labels, -1))], 2)
    projections = project([resid], directions_of_moments(moments, positive=1, negative=0))
    inside, outside = (
        layer_scores(projections, np.where(rows, labels, -1), rng=rng()) for rows in (train, ~train)
    )

    np.testing.assert_array_equal(inside.auc, 1)
    assert inside.fisher.min() > 5
    # AUC of noise scatters by sqrt(41 / (12 · 20 · 20)) = 0.09 about one half.
    assert np.abs(outside.auc - 0.5).max() < 0.3
    assert abs(outside.auc.mean() - 0.5) < 0.1
    assert outside.fisher.max() < 0.5


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2)), elements=coarse),
    arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2)), elements=coarse),
)
def test_auc_and_fisher_equal_the_definition_with_ties(positive, negative):
    for layer in range(2):
        p, q = (x[:, layer].astype(float).tolist() for x in (positive, negative))
        np.testing.assert_allclose(auc(positive, negative)[layer], reference.auc(p, q), atol=1e-12)
        np.testing.assert_allclose(
            fisher_ratio(positive, negative)[layer], reference.fisher_ratio(p, q), rtol=1e-9
        )


def test_auc_equals_scikit_learns():
    values, labels = rng(1).normal(size=(300, 7)).round(1), rng(2).integers(0, 2, size=300)
    expected = [roc_auc_score(labels, column) for column in values.T]
    np.testing.assert_allclose(auc(values[labels == 1], values[labels == 0]), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [([1, 1, -1], "out of the train split"), ([1, 0], "one label a sample")],
)
def test_labels_that_cannot_be_scored_say_what_to_do(labels, remedy):
    table = np.ones((3, 2), np.float32)
    projections = Projections(
        common=table, of_layer=table, norm=table, mean_cosine=np.ones(2), common_layer=0
    )
    with pytest.raises(MismatchError, match=remedy):
        layer_scores(projections, np.array(labels), rng=rng())


def test_residuals_that_cannot_be_projected_say_what_to_do():
    with pytest.raises(MismatchError, match="Pass samples"):
        project([], np.ones((1, 2), np.float32))
    with pytest.raises(MismatchError, match="from one model"):
        project(iter([np.ones((1, 1, 3), np.float32)]), np.ones((1, 2), np.float32))
    with pytest.raises(NotFiniteError, match="sample 1 at layer 0"):
        project([np.array([[[1.0]], [[np.nan]]], np.float32)], np.ones((1, 1), np.float32))
