"""One layer's vectors in the few coordinates that a network reads or says.

Reads and checks a layer, projects its train and held-out rows, and knows what a cut leaves out.
Refuses to know networks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from actcache.analysis.stats.pca import Components, principal_components
from actcache.errors import MismatchError, NotFiniteError


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Train and held-out samples among n."""

    n: int
    train: Int64[np.ndarray, " n_train"]
    held: Int64[np.ndarray, " n_held"]


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Train and held-out vectors of a layer, in units of the vectors."""

    train: Float64[np.ndarray, "n_train r"]
    held: Float64[np.ndarray, "n_held r"]

    outside: float
    """Mean squared length of what of held-out vectors lies outside all r coordinates."""

    components: Components | None
    """The basis; None where it is the vectors' own."""

    def first(self, count: int) -> "Coordinates":
        """The first `count` of them, what is left out counted as outside; all of an own basis."""
        if self.components is None or count >= self.train.shape[1]:
            return self
        return Coordinates(
            train=self.train[:, :count],
            held=self.held[:, :count],
            outside=self.outside + mean_square(self.held[:, count:]),
            components=Components(
                center=self.components.center, basis=self.components.basis[:, :count]
            ),
        )

    @property
    def size(self) -> float:
        """Root mean square length of the train vectors in these coordinates."""
        return float(np.sqrt(mean_square(self.train)))

    def to_residuals(self, weights: Float64[np.ndarray, "h r"]) -> Float64[np.ndarray, "h d_model"]:
        """Weights on coordinates as weights on the vectors."""
        if self.components is None:
            return weights
        return np.asarray(weights @ self.components.basis.T)


def context_coordinates(
    vectors: Float64[np.ndarray, "n d"], rows: Rows, *, limit: int
) -> Coordinates:
    """Contexts about their train mean."""
    components = principal_components(vectors[rows.train], centred=True, limit=limit)
    return _projected(vectors, rows, components)


def target_coordinates(
    vectors: Float64[np.ndarray, "n d"], rows: Rows, *, limit: int
) -> Coordinates:
    """Targets about zero, since the networks have no output bias."""
    components = principal_components(vectors[rows.train], centred=False, limit=limit)
    return _projected(vectors, rows, components)


def own_coordinates(vectors: Float64[np.ndarray, "n d"], rows: Rows) -> Coordinates:
    """Vectors as they are."""
    return Coordinates(
        train=vectors[rows.train], held=vectors[rows.held], outside=0.0, components=None
    )


def read_layer(
    read: Callable[[int], Float[np.ndarray, "n d_model"]], layer: int, rows: Rows, *, what: str
) -> Float64[np.ndarray, "n d_model"]:
    """All vectors of a layer in float64, checked.

    Raises:
        MismatchError: it is not one vector a sample, or the train samples' are all equal.
        NotFiniteError: one is infinite or not a number.
    """
    vectors = np.asarray(read(layer), np.float64)
    if vectors.ndim != 2 or len(vectors) != rows.n:
        raise MismatchError(
            f"the {what}s of layer {layer} have shape {list(vectors.shape)}, expected "
            f"[{rows.n}, d_model]. Pass one vector for each sample of the masks."
        )
    for chosen in (rows.train, rows.held):
        bad = ~np.isfinite(vectors[chosen])
        if bad.any():
            sample = int(chosen[np.flatnonzero(bad.any(1))[0]])
            raise NotFiniteError(
                f"the {what} of sample {sample} at layer {layer} is not finite, expected numbers. "
                "Find it with: actcache verify"
            )
    if np.ptp(vectors[rows.train], axis=0).max(initial=0) == 0:
        raise MismatchError(
            f"the {what}s of all train samples at layer {layer} are equal, expected different "
            "ones. Leave the layer out, or pass more samples."
        )
    return vectors


def mean_square(vectors: Float64[np.ndarray, "n r"]) -> float:
    """Mean over rows of the squared length."""
    return float((vectors**2).sum(1).mean())


def _projected(
    vectors: Float64[np.ndarray, "n d"], rows: Rows, components: Components
) -> Coordinates:
    held = components.coordinates(vectors[rows.held])
    whole = mean_square(vectors[rows.held] - components.center)
    return Coordinates(
        train=components.coordinates(vectors[rows.train]),
        held=held,
        outside=max(whole - mean_square(held), 0.0),
        components=components,
    )
