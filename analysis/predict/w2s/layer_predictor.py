"""A trained W2S predictor: from a prompt's embedding to the layer to steer at. Saved and loaded.

Needs NumPy only. Refuses to know how it was trained (`layer_training`), where embeddings come from,
and what is done at the layer.
"""

from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from actcache.analysis.predict.predictor_file import (
    Expected,
    check_arrays,
    read_predictor,
    with_tuples,
    write_predictor,
)
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.errors import MismatchError, NotFiniteError

KIND = "layer predictor"
"""What a predictor's file says it is."""


@dataclass(frozen=True, kw_only=True)
class LayerPredictor:
    """One predictor: the networks of all seeds, and what cross-validation inside train said of it.

    Values are mean slopes, in propensity per unit multiplier.
    """

    top: int
    """The K of the labels' frequency smoothing."""

    layers: Int64[np.ndarray, " layer"]
    """Number of each layer that was swept: the columns of the slopes."""

    active: Int64[np.ndarray, " active"]
    """Places in `layers` of those that a train sample was labelled with; no other is predicted."""

    chosen: ChosenSetting
    """The point of the grid with the largest value over held-out folds; the first of equals."""

    cv_value: float
    """That value. The largest of a whole table: biased upwards."""

    cv_crossfit: float
    """The same without that bias: the setting is chosen on samples that are drawn, and scored on
    those that are not, many times over (`layer_search.choose`)."""

    cv_fixed: float
    """Value of one layer for all, chosen in each fold's own train part as the predictor is."""

    cv_gain: float
    """`cv_crossfit` less `cv_fixed`."""

    cv_gain_error: float
    """Standard error of `cv_gain` over samples, paired. The predictor is worth using where the gain
    is some of these above 0."""

    n_folds: int
    """Folds that were used."""

    cv: Float64[np.ndarray, "rate width depth decay epochs"]
    """Value of every point of the grid over held-out folds."""

    settings: W2SSettings
    """What was asked for; the axes of `cv`."""

    center: Float32[np.ndarray, " e"]
    """Mean of the train samples' embeddings."""

    basis: Float32[np.ndarray, "e p"]
    """Their principal directions, scaled so that inputs have a mean square of 1."""

    weights: tuple[tuple[Float32[np.ndarray, "seed _ _"], Float32[np.ndarray, "seed _"]], ...]
    """Matrix `[seed, out, in]` and bias `[seed, out]` of each linear layer, ReLU between them."""

    @property
    def active_layers(self) -> Int64[np.ndarray, " active"]:
        """Numbers of the layers that can be predicted, rising."""
        numbers: Int64[np.ndarray, " active"] = self.layers[self.active]
        return numbers

    def predict(self, embeddings: Float32[np.ndarray, "n e"]) -> Int64[np.ndarray, "seed n"]:
        """Number of the layer to steer each sample at, by the network of each seed.

        Args:
            embeddings: of unit norm, from the encoder that the predictor was trained with.

        Raises:
            MismatchError: their length is not the trained one, or a norm is not 1.
            NotFiniteError: one of them is not finite.
        """
        numbers: Int64[np.ndarray, "seed n"] = self.layers[self.places(embeddings)]
        return numbers

    def places(self, embeddings: Float32[np.ndarray, "n e"]) -> Int64[np.ndarray, "seed n"]:
        """As `predict`, but places in `layers`: columns of a table of slopes."""
        check_embeddings(embeddings, np.arange(len(embeddings)))
        if embeddings.shape[1] != len(self.center):
            raise MismatchError(
                f"embeddings have length {embeddings.shape[1]}, the predictor was trained on "
                f"{len(self.center)}. Embed with the same encoder."
            )
        units = ((embeddings - self.center) @ self.basis).T  # [p, n]
        for at, (matrix, bias) in enumerate(self.weights):
            if at:
                units = np.maximum(units, 0)
            units = matrix @ units + bias[..., None]  # [seed, out, n]
        places: Int64[np.ndarray, "seed n"] = self.active[units[:, self.active].argmax(1)]
        return places

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, complete or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for at, (matrix, bias) in enumerate(self.weights):
            arrays |= {f"{at}.weight": matrix, f"{at}.bias": bias}
        facts = {name: getattr(self, name) for name in (*_COUNTS, *_VALUES)}
        facts |= {"chosen": asdict(self.chosen), "settings": asdict(self.settings)}
        write_predictor(Path(path), arrays, kind=KIND, facts=facts)

    @staticmethod
    def load(path: str | Path) -> "LayerPredictor":
        """Read what `save` wrote. Nothing in a file is executed.

        Raises:
            StoreNotFoundError: there is no file.
            FormatError: it is damaged, or not a layer predictor.
        """
        return read_predictor(Path(path), kind=KIND, parse=_parse)


_COUNTS = ("top", "n_folds")
_VALUES = ("cv_value", "cv_crossfit", "cv_fixed", "cv_gain", "cv_gain_error")
_ARRAYS: Expected = {
    "layers": (np.int64, "layer"),
    "active": (np.int64, "active"),
    "cv": (np.float64, "rate width depth decay epochs"),
    "center": (np.float32, "e"),
    "basis": (np.float32, "e p"),
}


def _parse(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> LayerPredictor:
    """The predictor of a file's facts and arrays; any mistake in them is an error of Python's."""
    settings = W2SSettings(**with_tuples(facts["settings"]))
    chosen = ChosenSetting(**facts["chosen"])
    axes = (settings.rates, settings.widths, settings.depths, settings.decays, settings.epochs)
    for value, axis in zip(astuple(chosen), axes, strict=True):
        if value not in axis:
            raise ValueError(f"the chosen {value} is not on the grid's {list(axis)}")
    expected, inputs = dict(_ARRAYS), "p"
    for at in range(chosen.depth + 1):
        units = "layer" if at == chosen.depth else "unit"
        expected[f"{at}.weight"] = (np.float32, f"seed {units} {inputs}")
        expected[f"{at}.bias"] = (np.float32, f"seed {units}")
        inputs = units
    sizes = {"seed": settings.seeds, "unit": chosen.width}
    names = ("rate", "width", "depth", "decay", "epochs")
    sizes |= {name: len(axis) for name, axis in zip(names, axes, strict=True)}
    check_arrays(arrays, expected, sizes)
    active, n_layers = arrays["active"], len(arrays["layers"])
    if not len(active) or active.min() < 0 or active.max() >= n_layers:
        raise ValueError(f"active layers are {active.tolist()}, expected places below {n_layers}")
    known: dict[str, Any] = {name: int(facts[name]) for name in _COUNTS}
    known |= {name: float(facts[name]) for name in _VALUES}
    known |= {name: arrays[name] for name in _ARRAYS}
    weights = tuple((arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in range(chosen.depth + 1))
    return LayerPredictor(chosen=chosen, settings=settings, weights=weights, **known)


def check_embeddings(
    embeddings: Float32[np.ndarray, "n e"], rows: Int64[np.ndarray, " row"]
) -> None:
    """Raise where an embedding of `rows` is not finite or its norm not 1, naming the sample."""
    norm = np.linalg.norm(embeddings[rows], axis=1)
    bad = np.flatnonzero(~(np.abs(norm - 1) < 1e-2))
    if not len(bad):
        return
    i = int(rows[bad[0]])
    if not np.isfinite(embeddings[i]).all():
        raise NotFiniteError(
            f"the embedding of sample {i} is not finite. Embed it again, or leave it out."
        )
    raise MismatchError(
        f"the embedding of sample {i} has norm {norm[bad[0]]:.4g}, expected 1. "
        f"Divide each embedding by its norm."
    )
