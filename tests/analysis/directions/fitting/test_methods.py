"""The front of the box of methods: planted directions are found, bad input is named."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import actcache.analysis
from actcache.analysis.directions.fitting import fit_directions
from actcache.analysis.directions.fitting.methods import METHODS, WITHOUT_SETTINGS
from actcache.analysis.directions.fitting.scores import auc_intervals
from actcache.analysis.stats.moments import class_moments
from actcache.conventions import FIT_METHODS
from actcache.errors import MismatchError, NotFiniteError
from tests.analysis.directions.fitting.rows import cosine, planted

ALL = tuple(METHODS)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("d", [40, 20])  # more rows than coordinates, and fewer
def test_a_planted_direction_is_found_and_larger_labels_project_higher(soft, d):
    residuals, y, splits, true = planted(n=160, d=d, soft=soft, strength=6.0)

    fitted = fit_directions(residuals, y, **splits, methods=ALL)

    for name, result in fitted.items():
        assert result.values.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(result.values, axis=-1), 1, rtol=1e-6)
        assert cosine(result.values, true).min() > 0.6, name
        assert min(score.value for score in result.auc) > 0.85, name
        if name not in WITHOUT_SETTINGS:
            assert all(result.settings)
        assert result.validation.min() > 0.6, name


@pytest.mark.parametrize("method", ALL)
def test_flipped_labels_flip_the_direction(method):
    residuals, y, splits, _ = planted()
    direction, flipped = (
        fit_directions(residuals, labels, **splits, methods=(method,))[method].values
        for labels in (y, 1 - y)
    )
    if method == "rfm":  # its labels are not centred: other functions are fitted
        assert (cosine(direction, flipped) < 0).all()
    else:
        np.testing.assert_allclose(direction, -flipped, atol=1e-6)


def test_the_mean_is_the_difference_of_means():
    residuals, y, splits, _ = planted()
    moments = class_moments([(residuals, np.where(splits["train"], y, -1).astype(int))], 2)
    expected = moments.mean[1] - moments.mean[0]

    fitted = fit_directions(residuals, y, **splits)["mean"]

    np.testing.assert_allclose(cosine(fitted.values, expected), 1, atol=1e-12)


def test_layers_may_come_one_by_one_and_in_float16():
    residuals, y, splits, _ = planted()
    half = residuals.astype(np.float16)
    whole = fit_directions(half, y, **splits, methods=ALL)
    by_layer = fit_directions((half[:, k] for k in range(2)), y, **splits, methods=ALL)

    for name in ALL:
        np.testing.assert_array_equal(whole[name].values, by_layer[name].values)


def test_the_auc_is_scikit_learns_and_its_interval_covers_it():
    residuals, y, splits, _ = planted(n=200, strength=1.0)
    fitted = fit_directions(residuals, y, **splits)["mean"]
    for layer, score in enumerate(fitted.auc):
        projected = residuals[splits["test"], layer].astype(np.float32) @ fitted.values[layer]
        assert score.value == pytest.approx(roc_auc_score(y[splits["test"]], projected))
        assert score.low < score.value < score.high
        # Half the width of a binomial's interval at the least, twice it at the most.
        width = 2 * 1.96 * np.sqrt(score.value * (1 - score.value) / 20)
        assert width / 2 < score.high - score.low < 2 * width


def test_ties_count_half():
    projections = np.array([[1.0], [1.0], [2.0], [0.0]])
    positive = np.array([True, False, True, False])
    [score] = auc_intervals(projections, positive, np.random.default_rng(0), draws=50)
    assert score.value == pytest.approx(roc_auc_score(positive, projections[:, 0])) == 0.875


def test_without_test_rows_there_is_no_auc_and_without_validation_rows_no_choice():
    residuals, y, splits, _ = planted()
    fitted = fit_directions(residuals, y, train=splits["train"], methods=("mean", "pca"))
    assert fitted["mean"].auc == ()
    assert np.isnan(fitted["mean"].validation).all()
    with pytest.raises(MismatchError, match="Pass `validation`"):
        fit_directions(residuals, y, train=splits["train"], methods=("mean", "ridge"))


def test_the_front_exports_it_and_every_method_has_a_word():
    assert actcache.analysis.fit_directions is fit_directions
    assert set(METHODS) <= set(FIT_METHODS)


def test_bad_labels_and_rows_are_named_before_anything_is_read():
    _, y, splits, _ = planted()
    unread = map(pytest.fail, ["a layer was read"])

    def refused(match, *, error=MismatchError, labels=y, **changed):
        with pytest.raises(error, match=match):
            fit_directions(unread, labels, **{**splits, **changed})

    refused("all 36 train rows have the label 1, .* Split", labels=np.where(splits["train"], 1, y))
    refused("all 12 validation rows .* Split", labels=np.where(splits["validation"], 0, y))
    refused("all labels are 0, .* hard labels", labels=0 * y)
    dark = np.stack([y, 0 * y, y], axis=1)
    refused("all labels are 0 at layer 1, .* leave these layers out", labels=dark)
    refused(
        "row 2 at layer 0 is nan.*label it",
        error=NotFiniteError,
        labels=np.where(np.arange(60) == 2, np.nan, y),
    )
    refused("train has 7 positive and 7 negative rows, expected 8", train=np.arange(60) < 14)
    refused("test has 1 positive and 0 negative", test=np.arange(60) == 58)
    refused("12 rows are in train and in validation", validation=np.arange(60) < 12)
    refused("expected labels", train=splits["train"][:50])
    refused("expected labels", train=np.arange(36))
    refused("methods are mode, expected one or more of mean", methods=("mode",))
    refused("pair 0 has 18 positive train rows", pairs=np.zeros(60, int))
    refused("no positive train row has the pair number", pairs=np.arange(60))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_residual_that_is_not_finite_is_named(split):
    residuals, y, splits, _ = planted()
    row = int(np.flatnonzero(splits[split])[3])
    residuals[row, 1, 7] = np.inf
    with pytest.raises(NotFiniteError, match=f"row {row} at layer 1.*actcache verify"):
        fit_directions(residuals, y, **splits)


def test_residuals_of_other_shapes_are_named():
    residuals, y, splits, _ = planted()
    for values, match in (
        (residuals[:50], "labels of the same rows"),
        (residuals[:, 0], "Pass \\[residuals\\] for a single layer"),
        (iter(()), "residuals of 0"),
        (np.ones_like(residuals), "all train rows are equal at layer 0"),
    ):
        with pytest.raises(MismatchError, match=match):
            fit_directions(values, y, **splits)
    soft = np.repeat(y[:, None], 3, axis=1)
    with pytest.raises(MismatchError, match="labels for 3 layers and residuals of 2"):
        fit_directions(residuals, soft, **splits)
