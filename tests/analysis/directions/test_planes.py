"""Planes equal their definition and scikit-learn's PCA; stores that span none are refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from actcache.analysis.directions.planes import (
    ClassMeans,
    class_means,
    find_plane,
    norm_sites,
    plane_of_means,
)
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from tests.reference import directions as reference
from tests.support.stores import build, example

N, LAYERS, D = 24, 3, 7
SITES = ("ln2", "ln1")  # a store may have them in any order; a block computes ln1 first


def rng(seed=0):
    return np.random.default_rng(seed)


def write(path, *, sites=SITES, positions=("prompt", "positive", "negative"), seed=0, **changed):
    """A store of random norm outputs with two labels, whose classes differ more in later blocks."""
    arrays = [
        RowArray(f"{site}/{position}", LAYERS, D, "float32")
        for site in ("resid_post", *sites)
        for position in positions
    ]
    settings, values = example(n=N, shard_rows=9, seed=seed, arrays=arrays)
    positive = np.arange(N) % 3 == 0
    shift = rng(1).normal(size=(LAYERS, D)) * np.arange(LAYERS)[:, None]
    for name, array in values.items():
        side = np.where(positive, 1, -1) if name.endswith("prompt") else np.ones(N)
        side = -side if name.endswith("negative") else side
        array += (side[:, None, None] * shift).astype(np.float32)
        array[:, 0] += 2  # an offset of both classes: not discriminative
        array *= rng(5).lognormal(size=(N, 1, 1)).astype(np.float32)  # so that scaling matters
    settings["columns"] |= {
        "label": ["yes" if one else "no" for one in positive],
        "split": ["train" if i % 4 else "test" for i in range(N)],
        **changed,
    }
    return open_store(build(path, settings, values))


def read(store, position, rows):
    """Values `[sample, place, d]` of some rows, block by block."""
    both = [store.resid(position, site=site)[rows] for site in ("ln1", "ln2")]
    return np.stack(both, axis=2).reshape(int(rows.sum()), -1, D)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("labels", [None, ("yes", "no"), ("no", "yes")])
def test_a_plane_equals_its_definition(tmp_path, normalize, labels):
    store = write(tmp_path / "s.zarr")
    rows = store["split"] == "train"
    if labels is None:
        positive, negative = (read(store, position, rows) for position in ("positive", "negative"))
    else:
        members = (rows & (store["label"] == label) for label in labels)
        positive, negative = (read(store, "prompt", member) for member in members)

    plane = find_plane(store, rows=rows, labels=labels, normalize=normalize)

    b1, b2, best, cosines, zero, projected = reference.plane(positive, negative, normalize)
    scores = plane.scores
    np.testing.assert_allclose(plane.basis, [b1, b2], atol=1e-9)
    np.testing.assert_allclose(scores.mean_cosine, cosines, atol=1e-12)
    np.testing.assert_allclose(scores.class_mean, projected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(scores.zero, zero)
    expected = np.prod(projected, axis=0) < 0
    assert 0 < expected.sum() < len(expected)  # else the rule is not seen
    np.testing.assert_array_equal(scores.discriminative, expected)
    assert scores.best == best
    assert scores.sites == ("ln1", "ln2") * LAYERS
    assert scores.layers == (0, 0, 1, 1, 2, 2)
    assert (scores.n_positive, scores.n_negative) == (len(positive), len(negative))
    assert scores.positions == (("prompt",) * 2 if labels else ("positive", "negative"))


def test_scaling_samples_changes_the_class_means(tmp_path):
    store = write(tmp_path / "s.zarr")
    rows = store["split"] == "train"

    raw, scaled = (find_plane(store, rows=rows, normalize=on).scores for on in (False, True))

    assert not np.allclose(raw.class_mean, scaled.class_mean)
    assert (raw.normalized, scaled.normalized) == (False, True)


def means(candidates):
    """Class means with given differences about a common offset."""
    candidates = np.asarray(candidates, np.float64)
    offset = np.full_like(candidates, 3.0)
    mean = np.stack([offset + candidates / 2, offset - candidates / 2])
    return ClassMeans(
        sites=("ln1",) * len(candidates),
        layers=tuple(range(len(candidates))),
        count=np.array([5, 4]),
        mean=mean,
        unit_mean=mean / np.linalg.norm(mean, axis=-1, keepdims=True),
        positions=("prompt", "prompt"),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_second_axis_is_scikit_learns_component_made_orthogonal(seed):
    candidates = rng(seed).normal(size=(9, 12)) + 1
    plane = plane_of_means(means(candidates))

    units = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    pca = PCA(n_components=1).fit(units)
    b1, b2 = plane.basis
    component = pca.components_[0] - (pca.components_[0] @ b1) * b1
    component /= np.linalg.norm(component)

    np.testing.assert_allclose(b1, units[plane.scores.best], atol=1e-12)
    np.testing.assert_allclose(abs(component @ b2), 1, atol=1e-12)
    np.testing.assert_allclose(plane.scores.explained, pca.explained_variance_ratio_[0])
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-12)


def test_the_sign_of_the_second_axis_is_that_of_the_data():
    candidates = rng(3).normal(size=(9, 12)) + 1
    mirror = np.eye(12)
    mirror[4, 4] = -1  # turns what a PCA calls positive; the plane must turn with the data

    plane, mirrored = (
        plane_of_means(means(values)) for values in (candidates, candidates @ mirror)
    )

    units = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    assert (units @ plane.basis[1]).mean() > 0
    np.testing.assert_allclose(mirrored.basis, plane.basis @ mirror, atol=1e-9)


def test_zero_candidates_change_neither_plane_nor_mean_cosines():
    candidates = rng(0).normal(size=(6, 8)) + 1
    rounding = 1e-12 * rng(1).normal(size=8)  # what a sum of equal values may leave

    without = plane_of_means(means(candidates))
    plane = plane_of_means(means(np.vstack([np.zeros(8), rounding, candidates])))

    np.testing.assert_allclose(plane.basis, without.basis, atol=1e-12)
    np.testing.assert_allclose(plane.scores.mean_cosine[2:], without.scores.mean_cosine)
    assert plane.scores.zero.tolist() == [True, True, *[False] * 6]
    assert plane.scores.mean_cosine[:2].tolist() == [0, 0]


def test_a_block_is_selected_where_all_its_norm_outputs_are_discriminative():
    scores = replace(
        plane_of_means(means(rng(0).normal(size=(6, 8)))).scores,
        layers=(0, 0, 1, 1, 2, 2),
        discriminative=np.array([True, False, True, True, False, False]),
    )

    assert scores.selected().tolist() == [False, False, True, True, False, False]
    assert scores.selected(whole_blocks=False).tolist() == scores.discriminative.tolist()


@pytest.mark.parametrize(
    "candidates",
    [np.outer([1, -2, 3], np.arange(1, 5)), np.ones((1, 4)), [[1, 0, 0], [-1, 1e-9, 0], [2, 0, 0]]],
)
def test_differences_that_are_all_parallel_span_no_plane(candidates):
    with pytest.raises(MismatchError, match=r"all parallel.*--sites ln1,ln2"):
        plane_of_means(means(candidates))


def test_classes_with_equal_means_span_no_plane():
    with pytest.raises(MismatchError, match=r"equal at every norm output.*not the same rows"):
        plane_of_means(means(np.zeros((3, 4))))


def test_a_store_without_norm_outputs_names_the_flags(tmp_path):
    plain = write(tmp_path / "s.zarr", sites=())
    assert norm_sites(plain) == []
    with pytest.raises(
        MismatchError, match=r"expected .*ln1/positive.*--sites resid_post,embed,ln1"
    ):
        find_plane(plain, rows=np.ones(N, bool))

    prompts = write(tmp_path / "p.zarr", positions=("prompt",))
    assert norm_sites(prompts) == ["ln1", "ln2"]
    with pytest.raises(MismatchError, match="ln1/positive"):
        find_plane(prompts, rows=np.ones(N, bool))


def test_one_class_is_refused(tmp_path):
    store = write(tmp_path / "s.zarr")

    with pytest.raises(MismatchError, match=r"8 samples of 'yes' and 0 of 'no'.*Check the"):
        find_plane(store, rows=store["label"] == "yes", labels=("yes", "no"))
    with pytest.raises(MismatchError, match="0 samples of 'positive'"):
        find_plane(store, rows=np.zeros(N, bool))


def test_rows_of_other_labels_are_not_read(tmp_path):
    labels = ["yes", "no", "maybe"] * (N // 3)
    store = write(tmp_path / "s.zarr", label=labels)

    three = class_means(store, rows=np.ones(N, bool), labels=("yes", "no"))

    assert three.count.tolist() == [8, 8]
    rows = store["label"] == "no"
    np.testing.assert_allclose(three.mean[1], read(store, "prompt", rows).mean(0), rtol=1e-6)
