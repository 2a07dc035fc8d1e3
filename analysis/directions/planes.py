"""The plane that rotations turn in, and the norm outputs where two classes lie on either side of 0.

The calibration of Selective Steering (arXiv 2601.19375), read from a store: candidates are the
classes' unit mean differences at every norm output; b1 is the candidate that agrees most with all
of them, b2 the direction in which they vary most, orthogonal to b1. Unlike the public code, all of
it is float64, candidates that are zero (the first norm sees the same last token in every prompt)
are left out, and the sign of b2 comes from the data and not from a library's PCA.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from actcache.analysis.directions.difference_of_means import label_codes
from actcache.analysis.directions.shard_groups import BATCH_ROWS
from actcache.conventions import NORM_SITES
from actcache.errors import MismatchError
from actcache.store.store import Store

SAME = 1e-6
"""Differences below this share of the means are rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """Means of two classes at every norm output, as a pass computes them."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    """Site and block of each norm output."""

    count: Int64[np.ndarray, " 2"]
    """Samples of the positive and of the negative class."""

    mean: Float64[np.ndarray, "2 k d"]
    unit_mean: Float64[np.ndarray, "2 k d"]
    """Mean of the values, and of the values scaled to norm 1."""

    positions: tuple[str, str]
    """Token that either class was read at."""


@dataclass(frozen=True, kw_only=True)
class SiteScores:
    """What calibration found at every norm output."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    """Site and block of each norm output."""

    n_positive: int
    n_negative: int
    positions: tuple[str, str]
    """Samples of each class, and the token that it was read at."""

    normalized: bool
    """Whether `class_mean` is of values scaled to norm 1 (the code), or as they are (the paper)."""

    best: int
    """Place of the norm output whose candidate is b1."""

    mean_cosine: Float64[np.ndarray, " k"]
    """Mean cosine of each candidate with all that are not zero; 0 of a zero one."""

    zero: Bool[np.ndarray, " k"]
    """Whether the class means are equal there: no candidate."""

    class_mean: Float64[np.ndarray, "2 k"]
    """Mean projection on b1 of the positive and of the negative samples."""

    discriminative: Bool[np.ndarray, " k"]
    """Whether the two lie on either side of 0; an offset that both share decides that too."""

    explained: float
    """Share of the candidates' variance along b2 before it was made orthogonal."""

    @property
    def selected_layers(self) -> list[int]:
        """Blocks whose norm outputs are all discriminative, rising."""
        return list(dict.fromkeys(np.array(self.layers)[self.selected()].tolist()))

    def selected(self, *, whole_blocks: bool = True) -> Bool[np.ndarray, " k"]:
        """Choose the norm outputs to steer.

        `whole_blocks` keeps a block only where all its norm outputs are discriminative, as the
        method's code does; its paper does not say so.
        """
        if not whole_blocks:
            return self.discriminative.copy()
        failed = {
            layer for layer, yes in zip(self.layers, self.discriminative, strict=True) if not yes
        }
        return np.array([layer not in failed for layer in self.layers])


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An orthonormal pair of directions, and the scores that it comes with."""

    basis: Float64[np.ndarray, "2 d"]
    """b1 and b2."""

    scores: SiteScores


def norm_sites(store: Store) -> list[str]:
    """List the norm outputs of a store, in the order of a block."""
    return [site for site in NORM_SITES if site in store.sites]


def find_plane(
    store: Store,
    *,
    rows: Bool[np.ndarray, " n"],
    labels: tuple[str, str] | None = None,
    position: str = "prompt",
    normalize: bool = False,
) -> Plane:
    """Find a plane and discriminative norm outputs, in one pass of a store.

    The classes are the prompts of two labels, read at the last token; or, of pairs, the positive
    and the negative completions, read at their answer tokens.

    Args:
        store: with norm outputs (`ln1`, `ln2`, …) among its sites.
        rows: samples to calibrate on, such as a behavior's train rows.
        labels: the positive and the negative label; None for pairs.
        position: token of labelled prompts.
        normalize: scale values to norm 1 before the class means are projected.

    Raises:
        MismatchError: the store lacks norm outputs or positions, a class has no sample, or the
            candidates span no plane.
    """
    means = class_means(store, rows=rows, labels=labels, position=position)
    return plane_of_means(means, normalize=normalize)


def class_means(
    store: Store,
    *,
    rows: Bool[np.ndarray, " n"],
    labels: tuple[str, str] | None,
    position: str = "prompt",
) -> ClassMeans:
    """Average both classes at every norm output; see `find_plane`."""
    positions = ("positive", "negative") if labels is None else (position, position)
    sites = _require_norms(store, positions)
    code = np.zeros(store.n, np.int64) if labels is None else label_codes(store, labels)
    of_class = [rows & (code == 0), rows & (code == (0 if labels is None else 1))]
    count = np.array([chosen.sum() for chosen in of_class])
    if not count.all():
        names = labels or positions
        raise MismatchError(
            f"{count[0]} samples of '{names[0]}' and {count[1]} of '{names[1]}' are among the rows "
            "to calibrate on, expected one or more of both: a plane needs two classes. Check the "
            "labels and the train split."
        )
    total = np.zeros((2, 2, store.n_layers, len(sites), store.d_model))
    for i, site in enumerate(sites):
        for side, (position, chosen) in enumerate(zip(positions, of_class, strict=True)):
            for values, layer in _layers(store, f"{site}/{position}", chosen):
                norm = np.linalg.norm(values, axis=-1, keepdims=True)
                total[0, side, layer, i] += values.sum(0)
                total[1, side, layer, i] += (values / np.where(norm > 0, norm, 1)).sum(0)
    mean, unit_mean = total.reshape(2, 2, -1, store.d_model) / count[:, None, None]
    return ClassMeans(
        sites=tuple(sites) * store.n_layers,
        layers=tuple(np.repeat(store.layers, len(sites)).tolist()),
        count=count,
        mean=mean,
        unit_mean=unit_mean,
        positions=positions,
    )


def plane_of_means(means: ClassMeans, *, normalize: bool = False) -> Plane:
    """Find the plane of class means, and on which side of 0 they lie on b1.

    Raises:
        MismatchError: all candidates are zero, or all are parallel to b1.
    """
    difference = means.mean[0] - means.mean[1]
    size = np.linalg.norm(difference, axis=-1)
    zero = size <= SAME * np.linalg.norm(means.mean, axis=-1).max(0)
    if zero.all():
        raise MismatchError(
            "the class means are equal at every norm output, expected a difference. Check that "
            "the two classes are not the same rows."
        )
    candidates = difference[~zero] / size[~zero, None]
    agreement = np.zeros(len(zero))
    agreement[~zero] = (candidates @ candidates.T).mean(1)
    best = int(np.where(zero, -np.inf, agreement).argmax())  # the first of equals
    b1 = difference[best] / size[best]
    b2, explained = _second_axis(candidates, b1)
    projected = (means.unit_mean if normalize else means.mean) @ b1
    return Plane(
        basis=np.stack([b1, b2]),
        scores=SiteScores(
            sites=means.sites,
            layers=means.layers,
            n_positive=int(means.count[0]),
            n_negative=int(means.count[1]),
            positions=means.positions,
            normalized=normalize,
            best=best,
            mean_cosine=agreement,
            zero=zero,
            class_mean=projected,
            discriminative=projected[0] * projected[1] < 0,
            explained=explained,
        ),
    )


def _second_axis(
    candidates: Float64[np.ndarray, "k d"], b1: Float64[np.ndarray, " d"]
) -> tuple[Float64[np.ndarray, " d"], float]:
    """First principal component, made orthogonal to b1; its variance share."""
    centred = candidates - candidates.mean(0)
    _, spread, components = np.linalg.svd(centred, full_matrices=False)
    b2 = components[0] - (components[0] @ b1) * b1
    length = float(np.linalg.norm(b2))
    if spread[0] <= SAME or length <= SAME:
        raise MismatchError(
            f"the differences of the class means at {len(candidates)} norm outputs are all "
            "parallel, expected them to vary: b2 would be parallel to b1, and no plane to turn in. "
            "Build with more norm outputs (--sites ln1,ln2) or from more rows."
        )
    b2 = b2 / length
    b2 -= (b2 @ b1) * b1  # again: the first time leaves rounding where the two were nearly parallel
    b2 /= np.linalg.norm(b2)
    # The sign of a principal component is any library's choice; the data's is not.
    sign = -1.0 if (candidates @ b2).mean() < 0 else 1.0
    return sign * b2, float(spread[0] ** 2 / (spread**2).sum())


def _require_norms(store: Store, positions: tuple[str, str]) -> list[str]:
    """The store's norm outputs, which must have been read at these positions."""
    sites = norm_sites(store)
    needed = [f"{site}/{position}" for site in sites or ["ln1"] for position in positions]
    absent = [name for name in needed if name not in store.arrays]
    if absent:
        raise MismatchError(
            f"'{store.path}' has {', '.join(store.arrays)}, expected norm outputs such as "
            f"{absent[0]}: rotations turn in their plane. Build with --sites "
            "resid_post,embed,ln1,ln2 (Gemma 2 and 3: ln1_post,ln2_post too; Cohere: ln1 alone)."
        )
    return sites


def _layers(
    store: Store, name: str, chosen: Bool[np.ndarray, " n"]
) -> Iterator[tuple[Float64[np.ndarray, "b d"], int]]:
    """Values of some rows, a batch and layer at a time; the layer's place."""
    site, _, position = name.partition("/")
    batches = store.resid(position, site=site).batches(rows=BATCH_ROWS, select=chosen)
    for _, block in batches:
        for layer in range(block.shape[1]):
            yield np.asarray(block[:, layer], np.float64), layer
