"""Silhouette equals its definition and scikit-learn's; the plane keeps what PCA keeps."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from actcache.analysis.predict import embedding_space as embeddings
from actcache.analysis.predict.embedding_space import project_to_plane, silhouette_by_behavior
from actcache.errors import ActcacheError, MismatchError
from tests.reference import predict as reference


@st.composite
def clusters(draw):
    """Embeddings of two behaviors or more, some with one row, some rows equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    spread = draw(st.sampled_from([0.0, 0.01, 1.0]))
    width = draw(st.integers(2, 5))
    rows = [rng.normal(size=width) + spread * rng.normal(size=(n, width)) for n in sizes]
    names = [f"b{k}" for k, n in enumerate(sizes) for _ in range(n)]
    order = rng.permutation(len(names))
    return np.concatenate(rows).astype(np.float32)[order], [names[i] for i in order]


@settings(max_examples=60)
@given(clusters())
def test_silhouette_equals_the_definition(drawn):
    values, names = drawn
    silhouette = silhouette_by_behavior(values, names)
    np.testing.assert_allclose(silhouette.values, reference.silhouette(values, names), atol=1e-6)
    assert silhouette.mean == pytest.approx(silhouette.values.mean())
    for name in set(names):
        of_behavior = [
            v for v, behavior in zip(silhouette.values, names, strict=True) if behavior == name
        ]
        assert silhouette.by_behavior[name] == pytest.approx(np.mean(of_behavior))


def test_silhouette_equals_scikit_learns_on_many_rows():
    rng = np.random.default_rng(0)
    names = rng.integers(5, size=400)
    values = (rng.normal(size=(5, 64))[names] + rng.normal(size=(400, 64))).astype(np.float32)
    silhouette = silhouette_by_behavior(values, [str(name) for name in names])
    scikit_learn = silhouette_samples(values.astype(np.float64), names, metric="cosine")
    np.testing.assert_allclose(silhouette.values, scikit_learn, atol=1e-10)


def test_silhouette_is_one_for_points_apart_and_zero_for_behaviors_alike():
    apart = silhouette_by_behavior(
        np.repeat(np.eye(3), 4, axis=0), ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    )
    np.testing.assert_allclose(apart.values, 1)
    alike = silhouette_by_behavior(np.tile([[0.6, 0.8]], (6, 1)), ["a", "b"] * 3)
    np.testing.assert_array_equal(alike.values, 0)


def test_silhouette_does_not_look_at_lengths():
    rng = np.random.default_rng(0)
    values, names = rng.normal(size=(9, 4)), ["a", "b", "c"] * 3
    longer = values * rng.uniform(0.1, 10, size=(9, 1))
    np.testing.assert_allclose(
        silhouette_by_behavior(longer, names).values, silhouette_by_behavior(values, names).values
    )


def test_one_behavior_cannot_be_told_apart():
    with pytest.raises(MismatchError, match=r"all of 1 behavior.* Build a store of several"):
        silhouette_by_behavior(np.eye(3), ["a"] * 3)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_row_without_direction_is_named(value):
    rows = np.ones((3, 2))
    rows[1] = value
    with pytest.raises(MismatchError, match=r"row 1 is all zeros or not finite.* Leave that row"):
        silhouette_by_behavior(rows, ["a", "b", "b"])


def test_another_number_of_names_is_refused():
    with pytest.raises(MismatchError, match=r"2 behaviors for 3 embeddings.* Take both from one"):
        silhouette_by_behavior(np.eye(3), ["a", "b"])


@pytest.mark.parametrize(("n", "width"), [(40, 6), (6, 40), (600, 600)])
def test_the_plane_holds_the_two_largest_singular_directions(n, width):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n, width)) * np.geomspace(1, 1e-3, width)
    projection = project_to_plane(values, method="pca")
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(units - units.mean(0), full_matrices=False)
    expected = u[:, :2] * s[:2]
    signs = np.sign((expected * projection.points).sum(0))
    np.testing.assert_allclose(projection.points * signs, expected, atol=1e-6)
    assert projection.explained is not None
    np.testing.assert_allclose(projection.explained, s[:2] ** 2 / (s**2).sum(), rtol=1e-9)
    np.testing.assert_array_equal(project_to_plane(values, method="pca").points, projection.points)
    assert projection.method == "pca"


@pytest.mark.parametrize("values", [np.ones((1, 3)), np.ones((2, 3)), np.ones((5, 1)), np.eye(2)])
def test_what_has_no_second_axis_is_zero_there(values):
    projection = project_to_plane(values, method="pca")
    assert projection.points.shape == (len(values), 2)
    np.testing.assert_allclose(projection.points[:, 1], 0, atol=1e-7)
    assert np.isfinite(projection.points).all()
    assert projection.explained is not None
    assert np.isfinite(projection.explained).all()


def test_umap_is_taken_where_it_is_installed():
    values = np.random.default_rng(0).normal(size=(40, 5))
    if embeddings.has_umap():
        projection = project_to_plane(values, seed=3)
        assert (projection.method, projection.points.shape, projection.explained) == (
            "umap",
            (40, 2),
            None,
        )
        np.testing.assert_array_equal(project_to_plane(values, seed=3).points, projection.points)
    else:
        assert project_to_plane(values).method == "pca"
        with pytest.raises(ActcacheError, match="Install umap-learn, or use pca"):
            project_to_plane(values, method="umap")


def test_the_examples_run():
    assert doctest.testmod(embeddings).failed == 0
