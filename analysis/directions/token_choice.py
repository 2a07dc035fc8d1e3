"""Which token at a prompt's end attends most to the marked span, layer by layer, and how much.

The choice of the token to read, the soft labels of its samples and the ranking of layers, as
attention-guided steering makes them (Davarmanesh et al. 2026, arXiv 2602.00333), from the masses
that a build with the site `attention` keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from actcache.errors import MismatchError


@dataclass(frozen=True)
class TokenChoice:
    """For each layer the token to read, and how strongly it attends to the marked span."""

    place: Int64[np.ndarray, " layer"]
    """Index into the given positions: the one whose mass is largest in any scanned sample, the
    first of equals."""

    peak: Float64[np.ndarray, " layer"]
    """Its mass in that sample, mean over heads."""

    mass: Float64[np.ndarray, " layer"]
    """Its mass, mean over heads and scanned samples."""

    order: Int64[np.ndarray, " layer"]
    """Layers by falling `mass`; equal ones by number."""


def choose_tokens(
    masses: Sequence[Float[np.ndarray, "_n _layer _head"]],
    *,
    scan: Bool[np.ndarray, " _n"] | None = None,
) -> TokenChoice:
    """Choose a token for every layer: the largest mass over samples, then over tokens.

    With `A[i, ℓ, k]` the mean over heads, `place[ℓ] = argmax_k max_i A[i, ℓ, k]`, as in the
    published code. That code ranks layers by a test that was not released; here it is the mean.

    Args:
        masses: for each position, in the order in which ties are broken, `attention/<position>` of
            a store. The published order is that of the text: `template_-K` first.
        scan: rows that count; by default all. The published code takes every second of the prompts
            that hold the concept.

    Example:
        >>> near, far = np.zeros((2, 3, 2, 4), np.float32)  # 3 rows, 2 layers, 4 heads
        >>> near[1, 0] = 0.25  # one row's token looks at the span in the first layer
        >>> far[:, 1] = 0.5
        >>> choice = choose_tokens([far, near])
        >>> choice.place, choice.order
        (array([1, 0]), array([1, 0]))
    """
    mean = _head_means(masses)  # [position, n, layer]
    if scan is not None:
        mean = mean[:, scan]
    if not mean.shape[1]:
        raise MismatchError(
            "attention masses of no row were to be compared, expected one or more. Scan the rows "
            "that mark a span."
        )
    peaks = mean.max(1)  # [position, layer]
    place = peaks.argmax(0)
    layers = np.arange(place.size)
    mass = mean.mean(1)[place, layers]
    return TokenChoice(
        place.astype(np.int64),
        peaks[place, layers],
        mass,
        np.argsort(-mass, kind="stable").astype(np.int64),
    )


def soft_labels(
    masses: Sequence[Float[np.ndarray, "_n _layer _head"]],
    choice: TokenChoice,
    *,
    positive: Bool[np.ndarray, " _n"],
) -> Float64[np.ndarray, "n layer"]:
    """How much each sample shows the concept: the mass of the chosen token, 0 for negatives.

    Scaled to [0, 1] over all samples, layer by layer, as in the published code; where all are equal
    they are 0.

    `masses` are as `choose_tokens` takes them, of any rows; `positive` ones hold the concept.
    """
    mean = _head_means(masses)
    n_layers = choice.place.size
    if mean.shape[1:] != (positive.size, n_layers) or choice.place.max() >= len(mean):
        raise MismatchError(
            f"{len(mean)} positions of {mean.shape[1]} rows and {mean.shape[2]} layers were given "
            f"with a choice for {n_layers} layers and {positive.size} labels, expected the same "
            "counts. Pass the positions that were chosen from, in the same order."
        )
    labels = mean[choice.place, :, np.arange(n_layers)].T  # [n, layer]
    labels = np.where(positive[:, None], labels, 0.0)
    low, high = labels.min(0), labels.max(0)
    return np.asarray((labels - low) / np.where(high > low, high - low, 1.0))


def _head_means(
    masses: Sequence[Float[np.ndarray, "_n _layer _head"]],
) -> Float64[np.ndarray, "position n layer"]:
    shapes = {each.shape for each in masses}
    if len(shapes) != 1:
        raise MismatchError(
            f"attention masses of {len(masses)} positions have the shapes {sorted(shapes)}, "
            "expected one shape [n, layer, head] for one or more. Pass arrays of one store."
        )
    return np.stack([each.mean(-1, dtype=np.float64) for each in masses])
