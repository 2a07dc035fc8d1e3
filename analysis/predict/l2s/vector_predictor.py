"""L2S: small networks that read a prompt's residual and say which vector should steer it.

For each steered layer one network `g(c) = W2·tanh(W1·c + b1)`, chosen among those of all context
layers, numbers of components and learning rates by its error on validation samples (Learning to
Steer, Parekh et al. 2025; for text as in Where to Steer, 2026). What is chosen is applied and kept
without torch. Refuses to know stores, models and what its vectors are used for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from actcache.conventions import LOSSES
from actcache.errors import ActcacheError, MismatchError

Layer = Callable[[int], Float[np.ndarray, "n d_model"]]
"""Gives one layer of all samples when it is asked for."""


@dataclass(frozen=True, kw_only=True)
class L2SSettings:
    """How the networks are made and trained."""

    loss: str = "paper"
    """`paper`: squared error. `code`: mean squared and mean absolute error less a share of the
    cosine, as the paper's public code has it; several times slower."""

    hidden: int = 100
    """Hidden units."""

    rates: Sequence[float] = (1e-3, 4e-3, 1.6e-2)
    """Learning rates that are tried."""

    components: Sequence[int] = (32, 128)
    """How many principal components of contexts and targets a network reads and says: tried like
    rates. A number above that of the train samples leaves nothing out; at 400 samples of 4096 that
    takes about three times as long as these two."""

    epochs: int = 100
    """Passes over the train samples."""

    batch: int = 64
    """Samples a step."""

    check_every: int = 10
    """Epochs between looks at the validation samples; the best look is kept."""

    seed: int = 0
    """Of first weights and of the order of the samples."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ActcacheError(
                f"loss is '{self.loss}', expected {' or '.join(LOSSES)}. Pass one of them."
            )
        for name in ("hidden", "epochs", "batch", "check_every"):
            if getattr(self, name) < 1:
                raise ActcacheError(
                    f"{name} is {getattr(self, name)}, expected 1 or more. Pass a larger one."
                )
        for name in ("rates", "components"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise ActcacheError(
                    f"{name} are {list(values)}, expected one or more, each once and above 0. "
                    "Pass others."
                )
        if not 0 <= self.seed < 2**32:
            raise ActcacheError(f"seed is {self.seed}, expected 0 to {2**32 - 1}. Pass another.")


@dataclass(frozen=True, kw_only=True)
class VectorPredictor:
    """The networks of some steered layers, in the coordinates of the residual stream."""

    settings: L2SSettings
    n_train: int
    """Samples that the networks were trained on."""

    n_validation: int
    """Samples that chose among them."""

    layers: Int64[np.ndarray, " layer"]
    """Steered layers, in the order of all that follows."""

    context_layers: Int64[np.ndarray, " context"]
    """Layers whose residuals were tried as contexts."""

    losses: Float64[np.ndarray, "layer context component rate"]
    """Validation loss of every network at its best look: mean squared distance of target and
    prediction, whatever the training loss was. Units of residuals, squared."""

    mean_loss: Float64[np.ndarray, " layer"]
    """The same for the mean train target, which is blind to the prompt: a network whose loss is
    not below it is of no use."""

    validation_loss: Float64[np.ndarray, " layer"]
    """The same for the chosen networks."""

    context_layer: Int64[np.ndarray, " layer"]
    """Layer that the chosen network reads."""

    components: Int64[np.ndarray, " layer"]
    """Of the settings' components the chosen one."""

    rate: Float64[np.ndarray, " layer"]
    """Of the settings' rates the chosen one."""

    epoch: Int64[np.ndarray, " layer"]
    """Epochs after which the chosen network was kept."""

    encoder: Float32[np.ndarray, "layer hidden d_model"]
    """W1, with the contexts' scale and basis multiplied in."""

    bias: Float32[np.ndarray, "layer hidden"]
    """b1, with the contexts' mean taken in."""

    decoder: Float32[np.ndarray, "layer hidden d_model"]
    """W2, transposed; in units of residuals."""

    @property
    def useful(self) -> Bool[np.ndarray, " layer"]:
        """Whether the chosen network beats the mean train target on the validation samples."""
        return np.asarray(self.validation_loss < self.mean_loss)

    def directions(
        self, contexts: Mapping[int, Float[np.ndarray, "b d_model"]] | Layer
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """One vector for each sample and steered layer; multiplier 1 is the target's length.

        Args:
            contexts: residuals of the last prompt token, of the samples to steer, for each layer
                in `context_layer`; a mapping or a function of the layer, which is called once for
                each.

        Raises:
            MismatchError: a layer is missing, or of another shape than the first or the networks.
        """
        read: dict[int, np.ndarray] = {}
        for layer in np.unique(self.context_layer).tolist():
            try:
                found = contexts[layer] if isinstance(contexts, Mapping) else contexts(layer)
            except KeyError:
                raise MismatchError(
                    f"there are no contexts of layer {layer}, expected those of "
                    f"{np.unique(self.context_layer).tolist()}. Pass them all."
                ) from None
            read[layer] = np.asarray(found, np.float32)
        n = len(next(iter(read.values())))
        d_model = self.encoder.shape[2]
        for layer, context in read.items():
            if context.shape != (n, d_model):
                raise MismatchError(
                    f"the contexts of layer {layer} have shape {list(context.shape)}, expected "
                    f"{[n, d_model]}. Pass residuals of the model that the networks are of."
                )
        out = np.empty((n, len(self.layers), d_model), np.float32)
        for i, layer in enumerate(self.context_layer.tolist()):
            h = np.tanh(read[layer] @ self.encoder[i].T + self.bias[i])
            out[:, i] = h @ self.decoder[i]
        return out

    def save(self, path: str | Path) -> None:
        """Write all of it to one safetensors file, aside and then renamed."""
        from actcache.analysis.predict.l2s.vector_file import write_predictor

        write_predictor(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> "VectorPredictor":
        """Read what `save` wrote; needs no torch and executes nothing.

        Raises:
            StoreNotFoundError: there is no such file.
            FormatError: it is damaged, or something else.
        """
        from actcache.analysis.predict.l2s.vector_file import read_predictor

        return read_predictor(Path(path))


def default_context_layers(n_layers: int) -> list[int]:
    """About 8 layers, evenly spaced, the first and the last among them.

    The paper's own list is not public. All layers of a deep model would take four times as long.
    """
    return [int(layer) for layer in np.unique(np.linspace(0, n_layers - 1, 8).round())]


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
    what of a held-out target lies outside is counted as error. Contexts are centred and scaled to
    root mean square 1 a coordinate (residuals of layers differ a hundredfold in norm, and tanh
    would be flat or saturated), targets to root mean square norm √hidden, which is about what a
    network says at first. Adam steps each coordinate alike, so the basis matters to it: this is
    Adam in the principal one. The squared error is summed over coordinates; with the mean Adam
    would step alike but for its eps. With the loss `code` targets keep the coordinates of the
    residual stream, since the absolute error is not the same in every basis.

    `W2` starts with the right singular vectors of the centred train targets. Where they are fewer
    than hidden units the others start at zero, from where they learn since their tanh is not zero.

    Args:
        target: a steered layer's targets `[n, d_model]`: positive less negative residual.
        context: a context layer's residuals `[n, d_model]` of the last prompt token. Either is
            called once a layer, so that memory holds one layer of all samples.
        layers: layers to steer.
        context_layers: layers to read; see `default_context_layers`.
        train: samples to learn from.
        validation: samples that choose; none of `train`.
        settings: the rest.
        device: where to train.
        on_step: called with the number of networks that were trained since it was last called; in
            all they are steered layers × context layers × components × rates.

    Raises:
        MismatchError: no samples or layers, samples on both sides, arrays that do not fit, or train
            samples that are all equal.
        NotFiniteError: a residual is infinite or not a number.
    """
    from actcache.analysis.predict.l2s.coordinates import Rows
    from actcache.analysis.predict.l2s.train_vectors import choose_networks

    for name, rows in (("train", train), ("validation", validation)):
        if not rows.any():
            raise MismatchError(
                f"{name} holds none of the {len(rows)} samples, expected one or more. "
                "Split the samples anew."
            )
    if len(train) != len(validation) or (train & validation).any():
        raise MismatchError(
            f"train and validation are {len(train)} and {len(validation)} samples, "
            f"expected as many, and none that is in both. Pass masks that exclude each other."
        )
    for name, chosen in (("layers", layers), ("context_layers", context_layers)):
        if not chosen or len(set(chosen)) != len(chosen):
            raise MismatchError(
                f"{name} are {list(chosen)}, expected one or more, each once. Pass others."
            )
    return choose_networks(
        target,
        context,
        layers=layers,
        context_layers=context_layers,
        rows=Rows(n=len(train), train=np.flatnonzero(train), held=np.flatnonzero(validation)),
        settings=settings,
        device=device,
        on_step=on_step or (lambda _: None),
    )
