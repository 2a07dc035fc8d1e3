"""Layers ranked by slope for each sample: its best one, or the most frequent of its best few.

Layers are places in the last axis of the slopes, 0 for the first that was swept. A slope that is
not finite, or a rank without a layer, is an error.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from actcache.errors import MismatchError, NotFiniteError


def best_layers(slope: Float[np.ndarray, "n layer"]) -> Int64[np.ndarray, " n"]:
    """Find the layer with the largest slope of each sample, the first of equals."""
    return ranked_layers(slope, rank=1)


def ranked_layers(slope: Float[np.ndarray, "n layer"], *, rank: int) -> Int64[np.ndarray, " n"]:
    """Find the layer with the `rank`-th largest slope of each sample.

    What "Where to Steer" (2026) reads to ask how far down a sample's list steering still beats the
    fixed layer: there the second and third best do, the fourth does not. Rank 1 is the best layer;
    equal slopes are ranked in the order of layers.

    Example:
        >>> ranked_layers(np.array([[0.1, 0.7, 0.7], [3.0, 2.0, 1.0]]), rank=2)
        array([2, 1])
    """
    return _order(slope, rank, "rank")[:, rank - 1]


def layer_frequencies(slope: Float[np.ndarray, "n layer"]) -> Float64[np.ndarray, " layer"]:
    """Count for which share of the samples each layer is the best; shares sum to 1."""
    if not len(slope):
        raise MismatchError(
            "there is no sample to count best layers of, expected one or more. "
            "Give rows to the train split."
        )
    return np.bincount(best_layers(slope), minlength=slope.shape[1]) / len(slope)


def smoothed_labels(
    slope: Float[np.ndarray, "n layer"],
    *,
    top: int,
    frequency: Float[np.ndarray, " layer"],
) -> Int64[np.ndarray, " n"]:
    """Take, of each sample's `top` best layers, the one that is best most often.

    Frequency smoothing of "Where to Steer" (2026), eq. 7. With `top=1` it is `best_layers`. Among
    layers of one frequency the larger slope decides, then the first layer (the paper leaves that
    open).

    Args:
        slope: steerability of each sample at each layer.
        top: the paper's K.
        frequency: `layer_frequencies` of the train samples.

    Example:
        >>> slope = np.array([[0.9, 0.8, 0.0], [0.1, 0.8, 0.0], [0.1, 0.8, 0.0]])
        >>> smoothed_labels(slope, top=2, frequency=layer_frequencies(slope))
        array([1, 1, 1])
    """
    order = _order(slope, top, "top")[:, :top]  # [n, top], larger slopes first
    most_frequent = frequency[order].argmax(1)  # the first of equals: the larger slope
    return np.take_along_axis(order, most_frequent[:, None], axis=1)[:, 0]


def active_layers(labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " active"]:
    """List the layers that occur among the labels, each once, in their order."""
    return np.unique(labels)


def _order(
    slope: Float[np.ndarray, "n layer"], rank: int, name: str
) -> Int64[np.ndarray, "n layer"]:
    """Layers of each sample by falling slope, equal ones in their own order."""
    if not 1 <= rank <= slope.shape[1]:
        raise MismatchError(
            f"{name} is {rank}, expected 1 to {slope.shape[1]}, the number of layers. "
            f"Pass a smaller one, or sweep more layers."
        )
    if not np.isfinite(slope).all():
        i, layer = (int(at) for at in np.argwhere(~np.isfinite(slope))[0])
        raise NotFiniteError(
            f"the slope of sample {i} at layer place {layer} is {slope[i, layer]}, expected a "
            f"finite one. Sweep again, or leave that sample out."
        )
    return np.argsort(-slope, axis=1, kind="stable")
