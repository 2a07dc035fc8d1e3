"""Trains the networks of all steered layers, context layers, components and rates; keeps the best.

Turns residuals into coordinates and the chosen networks back into those of the residual stream.
Holds the coordinates of all context layers, and of as many steered layers as train together. How a
stack of networks is trained is `tanh_stack`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from actcache.analysis.predict.adamw_stack import uniform_weights
from actcache.analysis.predict.l2s.coordinates import (
    Coordinates,
    Layer,
    SampleSplit,
    mean_square,
    own_coordinates,
    principal_coordinates,
    read_layer,
)
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.l2s.tanh_stack import Weights, networks_at_once, train_stack
from actcache.analysis.stats.pca import principal_components


def train_networks(
    target: Layer,
    context: Layer,
    *,
    layers: Sequence[int],
    context_layers: Sequence[int],
    split: SampleSplit,
    settings: L2SSettings,
    device: str,
    on_step: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Train all networks; the arrays of a `VectorPredictor` by the names of its fields."""
    limit = max(settings.components)
    contexts = []
    for layer in context_layers:
        vectors = read_layer(context, layer, split, what="context")
        contexts.append(principal_coordinates(vectors, split, centred=True, limit=limit))
    search = _Search(contexts, settings, torch.device(device), on_step)
    d_model = contexts[0].d_model
    at_once = networks_at_once(
        hidden=settings.hidden,
        inputs=max(context.train.shape[1] for context in contexts),
        outputs=d_model if settings.loss == "code" else min(limit, len(split.train), d_model),
        samples=len(split.train) + len(split.held_out),
        device=search.device,
    )
    at_once = max(at_once // len(settings.rates), 1)  # layers: all rates train together
    losses = np.empty((len(layers), len(contexts), len(settings.components), len(settings.rates)))
    mean_loss = np.empty(len(layers))
    encoder = np.empty((len(layers), settings.hidden, d_model), np.float32)
    decoder = np.empty_like(encoder)
    bias = np.empty(encoder.shape[:2], np.float32)
    chosen: list[_Network] = []
    for start in range(0, len(layers), at_once):
        block = slice(start, start + at_once)
        targets = []
        for i, layer in enumerate(layers[block], start):
            vectors = read_layer(target, layer, split, what="target")
            mean_loss[i] = mean_square(vectors[split.held_out] - vectors[split.train].mean(0))
            targets.append(
                own_coordinates(vectors, split)
                if settings.loss == "code"
                # About zero, since the networks have no output bias.
                else principal_coordinates(vectors, split, centred=False, limit=limit)
            )
        seeds = np.array(
            [
                [_seed(settings.seed, layer, context_layer) for context_layer in context_layers]
                for layer in layers[block]
            ]
        )
        losses[block], best = search.train(targets, seeds)
        for i, (network, coordinates) in enumerate(zip(best, targets, strict=True), start):
            encoder[i], bias[i], decoder[i] = search.in_residuals(network, coordinates)
        chosen += best
    return {
        "losses": losses,
        "mean_loss": mean_loss,
        "validation_loss": np.array([network.loss for network in chosen]),
        "context_layer": np.array([context_layers[x.context] for x in chosen], np.int64),
        "components": np.array([settings.components[x.component] for x in chosen], np.int64),
        "rate": np.array([settings.rates[network.rate] for network in chosen], np.float64),
        "epoch": np.array([network.epoch for network in chosen], np.int64),
        "encoder": encoder,
        "bias": bias,
        "decoder": decoder,
    }


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The best network of a steered layer so far; its choices are places in their lists."""

    loss: float
    context: int
    component: int
    rate: int
    epoch: int
    encoder: Float64[np.ndarray, "h r"]
    bias: Float64[np.ndarray, " h"]
    decoder: Float64[np.ndarray, "h s"]


@dataclass(frozen=True)
class _Search:
    """What the networks of all steered layers share: contexts, settings and device."""

    contexts: Sequence[Coordinates]
    settings: L2SSettings
    device: torch.device
    on_step: Callable[[int], object]

    def train(
        self, targets: Sequence[Coordinates], seeds: Int64[np.ndarray, "layer context"]
    ) -> tuple[Float64[np.ndarray, "layer context component rate"], list[_Network]]:
        """Train every network of some steered layers: all losses, and the best of each layer."""
        settings, n_rates = self.settings, len(self.settings.rates)
        losses = np.empty((len(targets), len(self.contexts), len(settings.components), n_rates))
        best: list[_Network | None] = [None] * len(targets)
        trained: dict[tuple[int, int, int], int] = {}
        for j, count in enumerate(settings.components):
            stack = _TargetStack([x.first(count) for x in targets], settings, self.device)
            for i, whole_context in enumerate(self.contexts):
                context = whole_context.first(count)
                shape = (i, context.train.shape[1], stack.train.shape[2])
                if shape in trained:  # this count cuts no more off than an earlier one did
                    losses[:, i, j] = losses[:, i, trained[shape]]
                    self.on_step(len(targets) * n_rates)
                    continue
                trained[shape] = j
                scale = _context_scale(context)
                first = _first_weights(seeds[:, i], stack.decoder, inputs=shape[1])
                inputs = _tensor(context.train / scale, self.device)
                held_out_inputs = _tensor(context.held_out / scale, self.device)
                by_rate = train_stack(
                    inputs,
                    stack.train,
                    held_contexts=held_out_inputs,
                    held_targets=stack.held_out,
                    first=first,
                    units=_tensor(stack.scales, self.device),
                    rates=settings.rates,
                    loss=settings.loss,
                    epochs=settings.epochs,
                    batch=settings.batch,
                    check_every=settings.check_every,
                    seed=settings.seed,
                )
                for r, networks in enumerate(by_rate):
                    # From scaled coordinates to squared residuals, with what lies outside them.
                    error = networks.error.double().cpu().numpy() * stack.scales**2 + stack.outside
                    losses[:, i, j, r] = error
                    for k, network in enumerate(best):
                        if network is None or error[k] < network.loss:
                            best[k] = _Network(
                                loss=float(error[k]),
                                context=i,
                                component=j,
                                rate=r,
                                epoch=int(networks.epoch[k]),
                                encoder=_array(networks.weights.encoder[k]),
                                bias=_array(networks.weights.bias[k]),
                                decoder=_array(networks.weights.decoder[k]),
                            )
                    self.on_step(len(targets))
        return losses, [network for network in best if network is not None]

    def in_residuals(
        self, network: _Network, whole_target: Coordinates
    ) -> tuple[
        Float64[np.ndarray, "h d_model"],
        Float64[np.ndarray, " h"],
        Float64[np.ndarray, "h d_model"],
    ]:
        """Fold scales, bases and centre into W1, b1 and W2, which then act on residuals."""
        count = self.settings.components[network.component]
        context = self.contexts[network.context].first(count)
        target = whole_target.first(count)
        encoder = context.to_residuals(network.encoder / _context_scale(context))
        assert context.components is not None
        bias = network.bias - encoder @ context.components.center
        # A stack is as wide as its widest target: columns beyond this target's are zero padding.
        decoder = network.decoder[:, : target.train.shape[1]]
        return encoder, bias, target.to_residuals(decoder * _target_scale(target, self.settings))


class _TargetStack:
    """Targets of some layers as tensors, each scaled, with zeros where one has fewer coordinates.

    A zero target with a zero weight has a gradient of zero, so the weight stays zero.
    """

    def __init__(
        self, targets: Sequence[Coordinates], settings: L2SSettings, device: torch.device
    ) -> None:
        self.scales = np.array([_target_scale(target, settings) for target in targets])
        self.outside = np.array([target.outside for target in targets])
        width = max(target.train.shape[1] for target in targets)
        scaled = list(zip(targets, self.scales, strict=True))
        self.train = torch.stack([_tensor(x.train / s, device, width=width) for x, s in scaled])
        self.held_out = torch.stack(
            [_tensor(x.held_out / s, device, width=width) for x, s in scaled]
        )
        decoders = [_right_singular(target.train, settings.hidden) for target in targets]
        self.decoder = torch.stack([_tensor(x, device, width=width) for x in decoders])


def _right_singular(
    train: Float64[np.ndarray, "n s"], hidden: int
) -> Float64[np.ndarray, "hidden s"]:
    """The first right singular vectors of the centred train targets; zeros below, if too few."""
    basis = principal_components(train, centred=True, limit=hidden).basis
    return np.pad(basis.T.astype(np.float64), ((0, hidden - basis.shape[1]), (0, 0)))


def _first_weights(seeds: Int64[np.ndarray, " k"], decoder: Tensor, *, inputs: int) -> Weights:
    """Initial weights and bias as of `torch.nn.Linear`, a seed a network; the given decoders."""
    drawn = uniform_weights(
        seeds.tolist(), (decoder.shape[1], inputs + 1), bound=inputs**-0.5, device=decoder.device
    )
    return Weights(
        encoder=drawn[..., :inputs].contiguous(),
        bias=drawn[..., inputs].contiguous(),
        decoder=decoder,
    )


def _seed(seed: int, layer: int, context_layer: int) -> int:
    """Seed of one network, whatever else is trained with it."""
    return int(np.random.SeedSequence((seed, layer, context_layer)).generate_state(1)[0])


def _context_scale(contexts: Coordinates) -> float:
    """Root mean square of a coordinate, which contexts are divided by."""
    return float(contexts.size / contexts.train.shape[1] ** 0.5)


def _target_scale(targets: Coordinates, settings: L2SSettings) -> float:
    """What targets are divided by, so that their root mean square length is √hidden."""
    return float(targets.size / settings.hidden**0.5)


def _tensor(
    values: Float64[np.ndarray, "..."], device: torch.device, *, width: int | None = None
) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    if width is not None:
        tensor = torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor


def _array(tensor: Tensor) -> Float64[np.ndarray, "..."]:
    return np.asarray(tensor.double().cpu().numpy())
