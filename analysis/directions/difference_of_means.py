"""Directions from moments, their random stand-ins, and the angles between them.

A direction set is one array `[layer, d_model]`. Refuses to know residuals, files and models.
"""

import numpy as np
from jaxtyping import Float, Float32

from actcache.analysis.stats.moments import Moments
from actcache.errors import MismatchError


def difference_of_means(
    moments: Moments, *, positive: int, negative: int
) -> Float32[np.ndarray, "layer d_model"]:
    """Mean residual of one class less that of another, at every layer (CAA; Tan et al.).

    The difference is taken in float64 and rounded once. For contrast pairs it equals the mean of
    the pairs' differences.

    Args:
        moments: from `class_moments`, over the train samples only.
        positive: class that the directions point to.
        negative: class that they point away from.

    Raises:
        MismatchError: no such class, one without samples, or twice the same.
    """
    n_classes = len(moments.count)
    for name, k in (("positive", positive), ("negative", negative)):
        if not 0 <= k < n_classes:
            raise MismatchError(
                f"{name} is class {k}, but the moments hold 0 to {n_classes - 1}. Pass one of them."
            )
        if moments.count[k] == 0:
            raise MismatchError(
                f"{name} class {k} has no sample, expected one or more. "
                f"Check the labels and the train split."
            )
    if positive == negative:
        raise MismatchError(
            f"positive and negative are both class {positive}, expected two. Pass two classes."
        )
    return np.asarray(moments.mean[positive] - moments.mean[negative], np.float32)


def unit(directions: Float[np.ndarray, "*batch d_model"]) -> Float[np.ndarray, "*batch d_model"]:
    """Scale each direction to norm 1; a zero direction stays zero, for it points nowhere.

    Norms are float64, the result keeps its dtype.
    """
    length = _norm(directions)
    return np.asarray(directions / np.where(length > 0, length, 1), directions.dtype)


def random_directions(
    directions: Float[np.ndarray, "layer d_model"], rng: np.random.Generator, *, count: int
) -> Float32[np.ndarray, "count layer d_model"]:
    """Draw `count` sets of directions, uniform on the sphere, each as long as the given one.

    The control of a steering experiment: as strong a push, at the same layer, to nowhere.

    Args:
        directions: whose norm at each layer is kept.
        rng: source of the draws.
        count: sets to draw.
    """
    draws = unit(rng.standard_normal((count, *directions.shape)))
    return np.asarray(draws * _norm(directions), np.float32)


def cosine(
    directions: Float[np.ndarray, "layer d_model"], others: Float[np.ndarray, "other d_model"]
) -> Float32[np.ndarray, "layer other"]:
    """Cosine of every direction with every other; 0 where one of the two is zero.

    `cosine(directions, directions)` compares the layers of one set.
    """
    a, b = (np.asarray(unit(d), np.float32) for d in (directions, others))
    return np.asarray(np.clip(a @ b.T, -1, 1))


def _norm(directions: Float[np.ndarray, "*batch d_model"]) -> Float[np.ndarray, "*batch 1"]:
    wide = np.asarray(directions, np.float64)
    return np.asarray(np.linalg.norm(wide, axis=-1, keepdims=True))
