"""One layer's vectors in the few coordinates that a network reads or predicts.

Reads and checks a layer, projects its train and held-out vectors on the train principal components,
and counts the error of what the components leave out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Int64

from actcache.analysis.stats.pca import Components, principal_components
from actcache.errors import MismatchError, NotFiniteError

Layer = Callable[[int], Float[np.ndarray, "n d_model"]]
"""Reads one layer of all samples."""


@dataclass(frozen=True, kw_only=True)
class SampleSplit:
    """Numbers of the train and held-out samples among n."""

    n: int
    train: Int64[np.ndarray, " n_train"]
    held_out: Int64[np.ndarray, " n_held_out"]


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Train and held-out vectors of a layer, in units of the vectors."""

    train: Float64[np.ndarray, "n_train r"]
    held_out: Float64[np.ndarray, "n_held_out r"]

    outside: float
    """Mean squared length of the part of held-out vectors outside all r coordinates: an error that
    no network in these coordinates can remove, so every loss includes it."""

    components: Components | None
    """The basis; None where it is the vectors' own."""

    @property
    def d_model(self) -> int:
        """Length of the vectors themselves."""
        return self.train.shape[1] if self.components is None else len(self.components.center)

    def first(self, count: int) -> "Coordinates":
        """Keep the first `count` coordinates, the rest counted as outside; all of an own basis."""
        if self.components is None or count >= self.train.shape[1]:
            return self
        return Coordinates(
            train=self.train[:, :count],
            held_out=self.held_out[:, :count],
            outside=self.outside + mean_square(self.held_out[:, count:]),
            components=replace(self.components, basis=self.components.basis[:, :count]),
        )

    @property
    def size(self) -> float:
        """Root mean square length of the train vectors in these coordinates."""
        return float(np.sqrt(mean_square(self.train)))

    def to_residuals(self, weights: Float64[np.ndarray, "h r"]) -> Float64[np.ndarray, "h d_model"]:
        """Turn weights on coordinates into weights on the vectors."""
        if self.components is None:
            return weights
        return np.asarray(weights @ self.components.basis.T)


def principal_coordinates(
    vectors: Float64[np.ndarray, "n d"], split: SampleSplit, *, centred: bool, limit: int
) -> Coordinates:
    """Project on the train principal components, about the train mean or about zero."""
    components = principal_components(vectors[split.train], centred=centred, limit=limit)
    held_out = components.coordinates(vectors[split.held_out])
    # Pythagoras: what is not in the (orthonormal) coordinates is outside. Rounding may go below 0.
    whole = mean_square(vectors[split.held_out] - components.center)
    return Coordinates(
        train=components.coordinates(vectors[split.train]),
        held_out=held_out,
        outside=max(whole - mean_square(held_out), 0.0),
        components=components,
    )


def own_coordinates(vectors: Float64[np.ndarray, "n d"], split: SampleSplit) -> Coordinates:
    """Leave vectors as they are."""
    return Coordinates(
        train=vectors[split.train], held_out=vectors[split.held_out], outside=0.0, components=None
    )


def read_layer(
    read: Layer, layer: int, split: SampleSplit, *, what: str
) -> Float64[np.ndarray, "n d_model"]:
    """Read all vectors of a layer in float64, and check those of the split."""
    vectors = np.asarray(read(layer), np.float64)
    if vectors.ndim != 2 or len(vectors) != split.n:
        raise MismatchError(
            f"the {what}s of layer {layer} have shape {list(vectors.shape)}, expected "
            f"[{split.n}, d_model]. Pass one vector for each sample of the masks."
        )
    for samples in (split.train, split.held_out):
        bad = ~np.isfinite(vectors[samples])
        if bad.any():
            sample = int(samples[np.flatnonzero(bad.any(1))[0]])
            raise NotFiniteError(
                f"the {what} of sample {sample} at layer {layer} is not finite, expected numbers. "
                "Find it with: actcache verify"
            )
    if np.ptp(vectors[split.train], axis=0).max(initial=0) == 0:
        raise MismatchError(
            f"the {what}s of all train samples at layer {layer} are equal, expected different "
            "ones. Leave the layer out, or pass more samples."
        )
    return vectors


def mean_square(vectors: Float64[np.ndarray, "n r"]) -> float:
    """Mean over rows of the squared length."""
    return float((vectors**2).sum(1).mean())
