"""L2S: small networks that predict from a prompt's residual the vector to steer it with.

For each steered layer one network `g(c) = W2·tanh(W1·c + b1)`, chosen among those of all context
layers, numbers of components and learning rates by its error on validation samples (Learning to
Steer, Parekh et al. 2025; for text as in Where to Steer, 2026). Training imports torch; a trained
predictor is applied, saved and loaded with NumPy alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from actcache.analysis.predict.l2s.coordinates import Layer, SampleSplit
from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.predictor_file import (
    Expected,
    check_arrays,
    read_predictor,
    with_tuples,
    write_predictor,
)
from actcache.errors import MismatchError
from actcache.progress import SILENT, Progress
from actcache.store.store import Store

KIND = "vector predictor"
"""What a file of one says it is."""

FILE = "networks.safetensors"
"""Name of a behavior's networks in their folder of OUT."""


@dataclass(frozen=True, kw_only=True)
class VectorPredictor:
    """The networks of some steered layers, in the coordinates of the residual stream."""

    settings: L2SSettings
    n_train: int
    n_validation: int
    """Samples that the networks were trained on, and samples that chose among them."""

    layers: Int64[np.ndarray, " layer"]
    """Steered layers, in the order of all that follows."""

    context_layers: Int64[np.ndarray, " context"]
    """Layers whose residuals were tried as contexts."""

    losses: Float64[np.ndarray, "layer context component rate"]
    """Validation loss of every network at its best evaluation: mean squared distance of target and
    prediction, whatever the training loss was. Units of residuals, squared."""

    mean_loss: Float64[np.ndarray, " layer"]
    """The same for the mean train target, which ignores the prompt: a network whose loss is not
    below it is useless."""

    validation_loss: Float64[np.ndarray, " layer"]
    """The same for the chosen networks."""

    context_layer: Int64[np.ndarray, " layer"]
    components: Int64[np.ndarray, " layer"]
    rate: Float64[np.ndarray, " layer"]
    epoch: Int64[np.ndarray, " layer"]
    """Of the chosen networks: the layer that each reads, its point among the settings' components
    and rates, and the epochs after which it was kept."""

    encoder: Float32[np.ndarray, "layer hidden d_model"]
    """W1, with the contexts' scale and basis multiplied in."""

    bias: Float32[np.ndarray, "layer hidden"]
    """b1, with the contexts' mean taken in."""

    decoder: Float32[np.ndarray, "layer hidden d_model"]
    """W2, transposed; in units of residuals."""

    def __repr__(self) -> str:  # a notebook shows no weights
        _, hidden, d_model = self.encoder.shape
        return (
            f"VectorPredictor(layers={self.layers.tolist()}, hidden={hidden}, d_model={d_model}, "
            f"n_train={self.n_train}, useful at {int(self.useful.sum())} layers)"
        )

    @property
    def useful(self) -> Bool[np.ndarray, " layer"]:
        """Whether the chosen network beats the mean train target on the validation samples."""
        return np.asarray(self.validation_loss < self.mean_loss)

    @classmethod
    def fit(
        cls,
        store: Store,
        *,
        rows: Bool[np.ndarray, " n"],
        validation: Bool[np.ndarray, " n"] | None = None,
        layers: Sequence[int] | None = None,
        context_layers: Sequence[int] | None = None,
        settings: L2SSettings | None = None,
        device: str = "cpu",
        progress: Progress = SILENT,
    ) -> "VectorPredictor":
        """Train on a store of pairs: from the prompt's residual to positive minus negative.

        Args:
            store: with the positions prompt, positive and negative.
            rows: samples to learn from.
            validation: samples that choose among the networks; by default those of the split
                "validation" with the behaviors and variants of `rows`.
            layers: layers to steer; by default all.
            context_layers: layers to read; by default `default_context_layers`.
            settings: by default `L2SSettings()`.
            device: where to train.
            progress: shows the networks that are trained.

        Raises:
            ActcacheError: as `train_vector_predictor`.
        """
        for name, mask in (("rows", rows), ("validation", validation)):
            if mask is not None and mask.shape != (store.n,):
                raise MismatchError(
                    f"{name} have shape {list(mask.shape)}, expected a mask over {store.n} "
                    "samples. Pass for example store['split'] == 'train'."
                )
        if validation is None:
            validation = store["split"] == "validation"
            for column in ("behavior", "variant"):
                validation &= np.isin(store[column], np.unique(store[column][rows]))
        chosen = np.flatnonzero(rows | validation)
        prompt, positive, negative = map(store.resid, ("prompt", "positive", "negative"))

        def target(layer: int) -> Float32[np.ndarray, "n d_model"]:
            pair = positive.layer(layer, chosen), negative.layer(layer, chosen)
            return np.asarray(np.subtract(*pair, dtype=np.float32))

        def context(layer: int) -> Float32[np.ndarray, "n d_model"]:
            return np.asarray(prompt.layer(layer, chosen), np.float32)

        layers = (store.layers if layers is None else np.asarray(layers)).tolist()
        contexts = context_layers or store.layers[default_context_layers(store.n_layers)].tolist()
        settings = settings or L2SSettings()
        total = len(layers) * len(contexts) * len(settings.rates) * len(settings.components)
        with progress.steps("networks of L2S", total) as on_step:
            return train_vector_predictor(
                target,
                context,
                layers=layers,
                context_layers=contexts,
                train=rows[chosen],
                validation=validation[chosen],
                settings=settings,
                device=device,
                on_step=on_step,
            )

    def directions(
        self, contexts: Mapping[int, Float[np.ndarray, "b d_model"]] | Layer
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict one vector for each sample and steered layer; at multiplier 1 as the targets.

        Contexts are residuals of the last prompt token, of the samples to steer, for each layer in
        `context_layer`: a mapping, or a function of the layer, which is called once for each.
        """
        by_layer: dict[int, np.ndarray] = {}
        for layer in np.unique(self.context_layer).tolist():
            try:
                context = contexts[layer] if isinstance(contexts, Mapping) else contexts(layer)
            except KeyError:
                raise MismatchError(
                    f"there are no contexts of layer {layer}, expected those of "
                    f"{np.unique(self.context_layer).tolist()}. Pass them all."
                ) from None
            by_layer[layer] = np.asarray(context, np.float32)
        n = len(next(iter(by_layer.values())))
        d_model = self.encoder.shape[2]
        for layer, context in by_layer.items():
            if context.shape != (n, d_model):
                raise MismatchError(
                    f"the contexts of layer {layer} have shape {list(context.shape)}, expected "
                    f"{[n, d_model]}. Pass residuals of the model that the networks are of."
                )
        out = np.empty((n, len(self.layers), d_model), np.float32)
        for i, layer in enumerate(self.context_layer.tolist()):
            h = np.tanh(by_layer[layer] @ self.encoder[i].T + self.bias[i])
            out[:, i] = h @ self.decoder[i]
        return out

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, complete or not at all."""
        facts = {name: getattr(self, name) for name in _COUNTS}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        facts["settings"] = asdict(self.settings)
        write_predictor(Path(path), arrays, kind=KIND, facts=facts)

    @staticmethod
    def load(path: str | Path) -> "VectorPredictor":
        """Read what `save` wrote; needs no torch and executes nothing.

        Raises:
            FormatError: it is damaged, or not a vector predictor.
        """
        return read_predictor(Path(path), kind=KIND, parse=_parse)


_COUNTS = ("n_train", "n_validation")
_ARRAYS: Expected = {
    "layers": (np.int64, "layer"),
    "context_layers": (np.int64, "context"),
    "losses": (np.float64, "layer context component rate"),
    "mean_loss": (np.float64, "layer"),
    "validation_loss": (np.float64, "layer"),
    "context_layer": (np.int64, "layer"),
    "components": (np.int64, "layer"),
    "rate": (np.float64, "layer"),
    "epoch": (np.int64, "layer"),
    "encoder": (np.float32, "layer hidden d_model"),
    "bias": (np.float32, "layer hidden"),
    "decoder": (np.float32, "layer hidden d_model"),
}


def _parse(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> VectorPredictor:
    settings = L2SSettings(**with_tuples(facts["settings"]))
    sizes = {
        "component": len(settings.components),
        "rate": len(settings.rates),
        "hidden": settings.hidden,
    }
    check_arrays(arrays, _ARRAYS, sizes)
    return VectorPredictor(
        settings=settings,
        n_train=int(facts["n_train"]),
        n_validation=int(facts["n_validation"]),
        **{name: arrays[name] for name in _ARRAYS},
    )


def train_vector_predictor(
    target: Layer,
    context: Layer,
    *,
    layers: Sequence[int],
    context_layers: Sequence[int],
    train: Bool[np.ndarray, " n"],
    validation: Bool[np.ndarray, " n"],
    settings: L2SSettings,
    device: str = "cpu",
    on_step: Callable[[int], object] | None = None,
) -> VectorPredictor:
    """Train networks for every steered and context layer, and keep each steered layer's best.

    As in the papers but for coordinates and scale. Contexts and targets are taken in the basis of
    their train principal components: the squared error is the same in every orthonormal basis, and
    the part of a held-out target outside it is counted as error. Contexts are centred and scaled to
    root mean square 1 a coordinate (residuals of layers differ a hundredfold in norm, and tanh
    would be flat or saturated), targets to root mean square norm √hidden, about that of a
    network's first output. Adam steps each coordinate alike, so the basis matters to it: this is
    Adam in the principal one. The squared error is summed over coordinates; with the mean Adam
    would step alike but for its eps. With the loss `code` targets keep the coordinates of the
    residual stream, since the absolute error is not the same in every basis.

    `W2` starts with the right singular vectors of the centred train targets. Where they are fewer
    than hidden units the others start at zero, from where they learn since their tanh is not zero.

    Arguments are as in `VectorPredictor.fit`, with `train` for its rows. `target` reads a steered
    layer's targets `[n, d_model]`, positive minus negative residual; `context` a context layer's
    residuals `[n, d_model]` of the last prompt token. Either is called once a layer, so that memory
    holds one layer of all samples. `on_step` is called with the number of networks trained since
    its last call; in all they are steered layers × context layers × components × rates.

    Raises:
        MismatchError: no samples, samples on both sides, or train samples that are all equal.
        NotFiniteError: a residual is infinite or not a number.
    """
    from actcache.analysis.predict.l2s.train_vectors import train_networks

    for name, rows in (("train", train), ("validation", validation)):
        if not rows.any():
            raise MismatchError(
                f"{name} holds none of the {len(rows)} samples, expected one or more. "
                "Split the samples anew."
            )
    if len(train) != len(validation) or (train & validation).any():
        raise MismatchError(
            f"train and validation are {len(train)} and {len(validation)} samples, expected "
            "equally many, and none that is in both. Pass masks that exclude each other."
        )
    for name, chosen in (("layers", layers), ("context_layers", context_layers)):
        if not chosen or len(set(chosen)) != len(chosen):
            raise MismatchError(
                f"{name} are {list(chosen)}, expected one or more, each once. Pass others."
            )
    split = SampleSplit(
        n=len(train), train=np.flatnonzero(train), held_out=np.flatnonzero(validation)
    )
    return VectorPredictor(
        settings=settings,
        n_train=len(split.train),
        n_validation=len(split.held_out),
        layers=np.array(layers, np.int64),
        context_layers=np.array(context_layers, np.int64),
        **train_networks(
            target,
            context,
            layers=layers,
            context_layers=context_layers,
            split=split,
            settings=settings,
            device=device,
            on_step=on_step or (lambda _: None),
        ),
    )
