"""Which layers tell two classes apart: projections on one common direction and on each layer's own.

The common direction and the discriminative layers are those of Selective Steering; Fisher's ratio
and the AUC are the plain measures of the same thing. Directions come from train samples, all scores
from others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from actcache.analysis.directions.difference_of_means import cosine, unit
from actcache.analysis.stats.bootstrap import average_ranks, bootstrap_means, interval
from actcache.analysis.stats.float16 import to_float32
from actcache.errors import MismatchError, NotFiniteError


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Three numbers a sample and layer: all that the scores need of the residuals.

    They are the residual's projections on the one common direction and on the layer's own, both of
    unit norm, and its norm.
    """

    common: Float32[np.ndarray, "n layer"]
    of_layer: Float32[np.ndarray, "n layer"]
    norm: Float32[np.ndarray, "n layer"]

    mean_cosine: Float64[np.ndarray, " layer"]
    """Mean cosine of each layer's direction with those of all layers."""

    common_layer: int
    """Layer whose unit direction is the common one."""


def mean_cosine(directions: Float[np.ndarray, "layer d_model"]) -> Float64[np.ndarray, " layer"]:
    """Mean cosine of each layer's direction with those of all layers, itself among them.

    Selective Steering's common direction b1 is the unit direction where this is largest. A zero
    direction has cosine 0 with all.
    """
    return np.asarray(cosine(directions, directions).mean(1, dtype=np.float64))


def project(
    batches: Iterable[Float[np.ndarray, "_ layer d_model"]],
    directions: Float[np.ndarray, "layer d_model"],
) -> Projections:
    """Project every sample on the common direction and on each layer's own, in one pass.

    Batches are residuals `[b, layer, d_model]` in sample order, float16 or float32; one at a time
    is held, and matmuls are float32. Directions are one a layer, such as `difference_of_means` of
    the train samples, and are made unit here. The common one is the first with the largest
    `mean_cosine`.

    Raises:
        NotFiniteError: a residual is infinite or not a number.
    """
    units = np.asarray(unit(directions), np.float32)
    agreement = mean_cosine(units)
    best = int(agreement.argmax())
    common_unit = np.broadcast_to(units[best], units.shape)
    pair = np.stack([common_unit, units], axis=-1)  # [layer, d_model, 2]
    projected, norms = [], []
    for batch in batches:
        if batch.shape[1:] != units.shape:
            raise MismatchError(
                f"a batch has [layers, d_model] {batch.shape[1:]}, the directions {units.shape}. "
                f"Both must come from one model: see actcache info."
            )
        resid = to_float32(batch) if batch.dtype == np.float16 else np.asarray(batch, np.float32)
        projected.append(np.matmul(resid.transpose(1, 0, 2), pair))  # [layer, b, 2]
        norms.append(np.sqrt(np.einsum("bld,bld->bl", resid, resid)))
    if not projected:
        raise MismatchError("no batch of residuals was given, expected one or more. Pass samples.")
    common, own_projection = np.concatenate(projected, axis=1).transpose(2, 1, 0)
    norm = np.concatenate(norms)
    if not np.isfinite(norm).all():
        sample, layer = (int(i) for i in np.argwhere(~np.isfinite(norm))[0])
        raise NotFiniteError(
            f"the residual of sample {sample} at layer {layer} is not finite. "
            f"Find it with: actcache verify"
        )
    return Projections(
        common=common,
        of_layer=own_projection,
        norm=norm,
        mean_cosine=agreement,
        common_layer=best,
    )


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """How well each layer tells positive from negative samples."""

    n_positive: int
    n_negative: int
    """Samples of each class that were read."""

    common_layer: int
    mean_cosine: Float64[np.ndarray, " layer"]
    """As in `Projections`."""

    normalized: bool
    """Whether `class_mean` is of unit residuals."""

    class_mean: Float64[np.ndarray, "2 layer"]
    """Mean projection on the common direction, of the positive and of the negative samples."""

    interval: Float64[np.ndarray, "2 layer 2"]
    """Bootstrap interval of `class_mean`, low and high."""

    discriminative: Bool[np.ndarray, " layer"]
    """Whether the two class means lie on either side of 0."""

    discriminative_share: Float64[np.ndarray, " layer"]
    """Share of the bootstrap draws in which they do."""

    fisher: Float64[np.ndarray, " layer"]
    """Squared difference of the class means over the sum of the class variances, own direction.

    Infinite where the classes differ and neither varies; 0 where nothing differs.
    """

    auc: Float64[np.ndarray, " layer"]
    """Chance that a positive sample lies further along the own direction than a negative one."""


def layer_scores(
    projections: Projections,
    labels: Int[np.ndarray, " n"],
    *,
    rng: np.random.Generator,
    normalize: bool = False,
    draws: int = 1000,
    level: float = 0.95,
) -> LayerScores:
    """Score every layer on samples that the directions were not made of.

    A layer is discriminative where the mean projections of the two classes on the common direction
    have opposite signs (Selective Steering, section "Discriminative layers"); an offset that both
    classes share decides that too. Fisher's ratio and AUC are of the layer's own direction and
    know no offset.

    Labels are 1 for positive, 0 for negative, -1 for samples to leave out: train samples, and other
    classes. With `normalize` each residual is scaled to norm 1 before it is averaged on the common
    direction, as the method's code does; its paper does not. Bootstrap draws resample within each
    class; `level` is the share of them inside an interval.

    Raises:
        MismatchError: a class without samples.
    """
    if labels.shape != projections.common.shape[:1]:
        raise MismatchError(
            f"labels have shape {labels.shape}, the projections {len(projections.common)} samples. "
            f"Pass one label a sample."
        )
    classes = labels == 1, labels == 0
    n_positive, n_negative = (int(rows.sum()) for rows in classes)
    if not (n_positive and n_negative):
        raise MismatchError(
            f"{n_positive} positive and {n_negative} negative samples are left to read, expected "
            f"one or more of both. Leave some of each class out of the train split."
        )
    common = np.asarray(projections.common, np.float64)
    if normalize:
        common = common / np.where(projections.norm > 0, projections.norm, 1)
    means = [common[rows].mean(0) for rows in classes]
    drawn = [bootstrap_means(common[rows], rng, draws=draws) for rows in classes]  # [draws, layer]
    return LayerScores(
        n_positive=n_positive,
        n_negative=n_negative,
        common_layer=projections.common_layer,
        mean_cosine=projections.mean_cosine,
        normalized=normalize,
        class_mean=np.stack(means),
        interval=np.stack([interval(d, level=level) for d in drawn]),
        discriminative=means[0] * means[1] < 0,
        discriminative_share=(drawn[0] * drawn[1] < 0).mean(0),
        fisher=fisher_ratio(*(projections.of_layer[rows] for rows in classes)),
        auc=auc(*(projections.of_layer[rows] for rows in classes)),
    )


def fisher_ratio(
    positive: Float[np.ndarray, "p layer"], negative: Float[np.ndarray, "q layer"]
) -> Float64[np.ndarray, " layer"]:
    """(mean⁺ - mean⁻)² / (variance⁺ + variance⁻) of each column; unbiased variances, float64.

    A class of one sample has variance 0. Infinite where the means differ and neither class varies;
    0 where nothing differs.
    """
    a, b = (np.asarray(x, np.float64) for x in (positive, negative))
    spread = sum(((x - x.mean(0)) ** 2).sum(0) / max(len(x) - 1, 1) for x in (a, b))
    gap = (a.mean(0) - b.mean(0)) ** 2
    flat = np.where(gap > 0, np.inf, 0.0)
    return np.asarray(np.divide(gap, spread, out=flat, where=spread > 0))


def auc(
    positive: Float[np.ndarray, "p layer"], negative: Float[np.ndarray, "q layer"]
) -> Float64[np.ndarray, " layer"]:
    """Share of pairs in which the positive is the larger, ties counting half (Mann & Whitney)."""
    p, q = len(positive), len(negative)
    ranks = average_ranks(np.concatenate([positive, negative]))
    return np.asarray((ranks[:p].sum(0) - p * (p + 1) / 2) / (p * q))
