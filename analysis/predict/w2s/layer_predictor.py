"""W2S: predict from a prompt's embedding which layer to steer it at ("Where to Steer", 2026).

Training imports torch; a trained predictor is applied, saved and loaded with NumPy alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped

from actcache.analysis.predict.predictor_file import (
    Expected,
    check_arrays,
    read_predictor,
    with_tuples,
    write_predictor,
)
from actcache.analysis.predict.w2s.folds import equal_rows
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.errors import MismatchError, NotFiniteError
from actcache.progress import SILENT, Progress

KIND = "layer predictor"
"""What a file of one says it is."""


@runtime_checkable
class Embedded(Protocol):
    """Embeddings of a store's rows, such as `actcache.encode` gives."""

    @property
    def values(self) -> Float32[np.ndarray, "n e"]:
        """One a row, of unit norm."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerPredictor:
    """One predictor: the networks of all seeds, and its values in cross-validation inside train.

    Values are mean slopes, in propensity per unit multiplier.
    """

    top: int
    """The K of the labels' frequency smoothing."""

    layers: Int64[np.ndarray, " layer"]
    """Number of each layer that was swept: the columns of the slopes."""

    active: Int64[np.ndarray, " active"]
    """Indices into `layers` of those that a train sample was labelled with; no other is
    predicted."""

    chosen: ChosenSetting
    """The point of the grid with the largest value over held-out folds; the first of equals."""

    cv_value: float
    """That value. The largest of a whole table: biased upwards."""

    cv_crossfit: float
    """The same without that bias: the setting is chosen on samples that are drawn, and scored on
    those that are not, many times over (`cross_validate.choose`)."""

    cv_fixed: float
    """Value of one layer for all, chosen in each fold's own train part as the predictor is."""

    cv_gain: float
    """`cv_crossfit` minus `cv_fixed`."""

    cv_gain_error: float
    """Standard error of `cv_gain` over samples, each scored as there. The predictor is worth using
    where the gain is some of these above 0."""

    n_folds: int
    cv: Float64[np.ndarray, "rate width depth decay epochs"]
    """Value of every point of the grid over held-out folds."""

    settings: W2SSettings
    """Of its training; the axes of `cv`."""

    center: Float32[np.ndarray, " e"]
    basis: Float32[np.ndarray, "e p"]
    """Mean of the train samples' embeddings, and their principal directions, scaled so that inputs
    have a mean square of 1."""

    weights: tuple[tuple[Float32[np.ndarray, "seed _ _"], Float32[np.ndarray, "seed _"]], ...]
    """Matrix `[seed, out, in]` and bias `[seed, out]` of each linear layer, ReLU between them."""

    def __repr__(self) -> str:  # a notebook shows no weights
        return (
            f"LayerPredictor(top={self.top}, layers={self.active_layers.tolist()} of "
            f"{self.layers.tolist()}, cv_gain={self.cv_gain:.3g} ± {self.cv_gain_error:.2g})"
        )

    @property
    def active_layers(self) -> Int64[np.ndarray, " active"]:
        """Numbers of the layers that can be predicted, rising."""
        return np.asarray(self.layers[self.active])

    @classmethod
    def fit(
        cls,
        embeddings: Embedded | Float[np.ndarray, "n e"],
        slopes: Float[np.ndarray, "n layer"],
        *,
        rows: Bool[np.ndarray, " n"],
        groups: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
        letters: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
        layers: Sequence[int] | Int64[np.ndarray, " layer"] | None = None,
        settings: W2SSettings | None = None,
        device: str = "cpu",
        progress: Progress = SILENT,
    ) -> "LayerPredictor":
        """Train a predictor for each K of the settings; keep that with the largest `cv_gain`.

        Args:
            embeddings: `actcache.encode(store, …)`, or an array of unit vectors.
            slopes: steerability of each sample at each layer, such as `sweep.slopes()`.
            rows: samples to learn from; others are never read.
            groups: prompt of each sample, for equal ones must share a fold: `store["prompt"]`. By
                default samples with equal embeddings are one prompt.
            letters: letter of each sample's positive completion, which folds balance:
                `store["letter"]`. By default they are not balanced.
            layers: number of each column of `slopes`, such as `sweep.layers`; by default 0, 1, …
            settings: by default `W2SSettings()`.
            device: where networks are trained.
            progress: shows the networks that are trained.

        Raises:
            ActcacheError: as `train_layer_predictors`.
        """
        values = embeddings if isinstance(embeddings, np.ndarray) else embeddings.values
        values = np.asarray(values, np.float32)
        n, settings = len(values), settings or W2SSettings()
        if groups is None:
            groups = equal_rows(values).tolist()
        with progress.steps("layer predictors", settings.n_networks) as on_network:
            predictors = train_layer_predictors(
                values,
                slopes,
                train=rows,
                groups=[str(group) for group in groups],
                letters=[""] * n if letters is None else [str(letter) for letter in letters],
                layers=range(slopes.shape[1]) if layers is None else layers,
                settings=settings,
                device=device,
                on_network=on_network,
            )
        return max(predictors.values(), key=lambda predictor: predictor.cv_gain)

    def predict(self, embeddings: Float32[np.ndarray, "n e"]) -> Int64[np.ndarray, "seed n"]:
        """Predict the number of the layer to steer each sample at, by the network of each seed.

        Embeddings have unit norm, from the encoder that the predictor was trained with.

        Raises:
            MismatchError: their length is not the trained one, or a norm is not 1.
        """
        return np.asarray(self.layers[self.places(embeddings)])

    def places(self, embeddings: Float32[np.ndarray, "n e"]) -> Int64[np.ndarray, "seed n"]:
        """Predict likewise, but indices into `layers`: columns of a table of slopes."""
        check_embeddings(embeddings, np.arange(len(embeddings)))
        if embeddings.shape[1] != len(self.center):
            raise MismatchError(
                f"embeddings have length {embeddings.shape[1]}, the predictor was trained on "
                f"{len(self.center)}. Embed with the same encoder."
            )
        units = ((embeddings - self.center) @ self.basis).T  # [p, n]
        for i, (matrix, bias) in enumerate(self.weights):
            if i:
                units = np.maximum(units, 0)
            units = matrix @ units + bias[..., None]  # [seed, out, n]
        return np.asarray(self.active[units[:, self.active].argmax(1)])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, complete or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for i, (matrix, bias) in enumerate(self.weights):
            arrays |= {f"{i}.weight": matrix, f"{i}.bias": bias}
        facts = {name: getattr(self, name) for name in (*_COUNTS, *_VALUES)}
        facts |= {"chosen": asdict(self.chosen), "settings": asdict(self.settings)}
        write_predictor(Path(path), arrays, kind=KIND, facts=facts)

    @staticmethod
    def load(path: str | Path) -> "LayerPredictor":
        """Read what `save` wrote; needs no torch and executes nothing.

        Raises:
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
    """Make a predictor of a file's facts and arrays, which may be wrong in any way."""
    settings = W2SSettings(**with_tuples(facts["settings"]))
    chosen = ChosenSetting(**facts["chosen"])
    axes = (settings.rates, settings.widths, settings.depths, settings.decays, settings.epochs)
    for value, axis in zip(astuple(chosen), axes, strict=True):
        if value not in axis:
            raise ValueError(f"the chosen {value} is not on the grid's {list(axis)}")
    expected, inputs = dict(_ARRAYS), "p"
    for i in range(chosen.depth + 1):
        units = "layer" if i == chosen.depth else "unit"
        expected[f"{i}.weight"] = (np.float32, f"seed {units} {inputs}")
        expected[f"{i}.bias"] = (np.float32, f"seed {units}")
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


def train_layer_predictors(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float[np.ndarray, "n layer"],
    *,
    train: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    letters: Sequence[str],
    layers: Sequence[int] | Int64[np.ndarray, " layer"],
    settings: W2SSettings,
    device: str = "cpu",
    on_network: Callable[[int], object] = lambda _: None,
) -> dict[int, LayerPredictor]:
    """Train one predictor for each K of frequency smoothing, all of them together.

    A network is an MLP with ReLU on the embedding, taught the (smoothed) best layer of each sample
    by cross-entropy and AdamW, as in "Where to Steer" (2026), section 4. Labels, frequencies and
    active layers of a fold come from that fold's own train part; layers that are not active there
    are closed. A setting's value is the mean slope at the layer that it predicts, over all held-out
    samples; no model is run, since the slopes of all layers are known.

    Embeddings are centred on the train mean and turned into the principal directions of all train
    samples, then divided by one number. That loses nothing with `components=None`, as train samples
    span no more; but AdamW's step is not the same in every basis, so this is AdamW in the principal
    one, not in the encoder's.

    Arguments are as in `LayerPredictor.fit`, but for plain arrays and lists; `train` are its rows.
    Groups that are equal but for white space and case are in one fold. `on_network` is called with
    the number of networks trained since its last call; in all they are `settings.n_networks`, or
    fewer where there are fewer folds.

    Returns:
        The predictors by K.

    Raises:
        MismatchError: fewer than two distinct train prompts, an embedding whose norm is not 1, or a
            K above the number of layers.
        NotFiniteError: a train sample's slope or embedding is not finite; names the sample.
    """
    from actcache.analysis.predict.w2s.train_layers import train_all

    rows = _train_rows(embeddings, slope, train, groups, letters, layers)
    trained = train_all(
        embeddings[rows],
        np.asarray(slope[rows], np.float64),
        groups=[groups[i] for i in rows],
        letters=[letters[i] for i in rows],
        settings=settings,
        device=device,
        on_network=on_network,
    )
    numbers = np.asarray(layers, np.int64)
    return {known["top"]: LayerPredictor(layers=numbers, **known) for known in trained}


def _train_rows(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float[np.ndarray, "n layer"],
    train: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    letters: Sequence[str],
    layers: Sequence[int] | Int64[np.ndarray, " layer"],
) -> Int64[np.ndarray, " train"]:
    """Check all that is given; numbers of the train samples."""
    counts = {"slopes": len(slope), "train flags": len(train), "prompts": len(groups)}
    for name, count in {**counts, "letters": len(letters)}.items():
        if count != len(embeddings):
            raise MismatchError(
                f"{count} {name} came with {len(embeddings)} embeddings. Pass one a sample."
            )
    if len(layers) != slope.shape[1]:
        raise MismatchError(
            f"{len(layers)} layers came with slopes at {slope.shape[1]}. Pass one a column."
        )
    rows = np.flatnonzero(train)
    if not len(rows):
        raise MismatchError("the train split has no sample, expected some. Give rows a split.")
    bad = rows[~np.isfinite(slope[rows]).all(1)]
    if len(bad):
        raise NotFiniteError(
            f"a slope of sample {bad[0]} is not finite. Sweep again, or leave that sample out."
        )
    check_embeddings(embeddings, rows)
    return rows
