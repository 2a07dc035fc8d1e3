"""Trains the networks of all steered layers, context layers, components and rates; keeps the best.

Turns residuals into coordinates and chosen networks back into the residual stream's. Holds the
coordinates of all context layers, and of as many steered layers as train together. Refuses to know
how a network is trained.
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
    Rows,
    context_coordinates,
    mean_square,
    own_coordinates,
    read_layer,
    target_coordinates,
)
from actcache.analysis.predict.l2s.tanh_stack import Weights, networks_at_once, train_stack
from actcache.analysis.predict.l2s.vector_predictor import L2SSettings, Layer, VectorPredictor
from actcache.analysis.stats.pca import principal_components


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The best network of a steered layer so far."""

    loss: float
    context: int
    component: int
    rate: int
    epoch: int
    encoder: Float64[np.ndarray, "h r"]
    bias: Float64[np.ndarray, " h"]
    decoder: Float64[np.ndarray, "h s"]


def choose_networks(
    target: Layer,
    context: Layer,
    *,
    layers: Sequence[int],
    context_layers: Sequence[int],
    rows: Rows,
    settings: L2SSettings,
    device: str,
    on_step: Callable[[int], object],
) -> VectorPredictor:
    """What `train_vector_predictor` does once its arguments are checked; same errors."""
    limit = max(settings.components)
    contexts = [
        context_coordinates(read_layer(context, layer, rows, what="context"), rows, limit=limit)
        for layer in context_layers
    ]
    place = torch.device(device)
    widest = max(each.train.shape[1] for each in contexts)
    d_model = contexts[0].to_residuals(np.zeros((1, contexts[0].train.shape[1]))).shape[1]
    at_once = networks_at_once(
        hidden=settings.hidden,
        inputs=widest,
        outputs=d_model if settings.loss == "code" else min(limit, len(rows.train), d_model),
        samples=len(rows.train) + len(rows.held),
        device=place,
    )
    losses = np.empty(
        (len(layers), len(contexts), len(settings.components), len(settings.rates)), np.float64
    )
    mean_loss = np.empty(len(layers))
    chosen: list[_Network] = []
    encoder = np.empty((len(layers), settings.hidden, d_model), np.float32)
    decoder = np.empty_like(encoder)
    bias = np.empty(encoder.shape[:2], np.float32)
    for start in range(0, len(layers), at_once):
        here = slice(start, start + at_once)
        targets = []
        for i, layer in list(enumerate(layers))[here]:
            vectors = read_layer(target, layer, rows, what="target")
            mean_loss[i] = mean_square(vectors[rows.held] - vectors[rows.train].mean(0))
            targets.append(
                own_coordinates(vectors, rows)
                if settings.loss == "code"
                else target_coordinates(vectors, rows, limit=limit)
            )
        seeds = np.array(
            [
                [_seed(settings.seed, layer, each) for each in context_layers]
                for layer in layers[here]
            ]
        )
        losses[here], best = _train_block(
            targets, contexts, seeds=seeds, settings=settings, place=place, on_step=on_step
        )
        for i, (network, of) in enumerate(zip(best, targets, strict=True), start):
            seen = contexts[network.context].first(settings.components[network.component])
            said = of.first(settings.components[network.component])
            inward = seen.to_residuals(network.encoder / _context_scale(seen))
            assert seen.components is not None
            encoder[i] = inward
            bias[i] = network.bias - inward @ seen.components.center
            outward = network.decoder[:, : said.train.shape[1]]
            decoder[i] = said.to_residuals(outward * _target_scale(said, settings))
        chosen += best
    return VectorPredictor(
        settings=settings,
        n_train=len(rows.train),
        n_validation=len(rows.held),
        layers=np.array(layers, np.int64),
        context_layers=np.array(context_layers, np.int64),
        losses=losses,
        mean_loss=mean_loss,
        validation_loss=np.array([network.loss for network in chosen]),
        context_layer=np.array([context_layers[network.context] for network in chosen], np.int64),
        components=np.array([settings.components[x.component] for x in chosen], np.int64),
        rate=np.array([settings.rates[network.rate] for network in chosen], np.float64),
        epoch=np.array([network.epoch for network in chosen], np.int64),
        encoder=encoder,
        bias=bias,
        decoder=decoder,
    )


def _train_block(
    targets: Sequence[Coordinates],
    contexts: Sequence[Coordinates],
    *,
    seeds: Int64[np.ndarray, "layer context"],
    settings: L2SSettings,
    place: torch.device,
    on_step: Callable[[int], object],
) -> tuple[Float64[np.ndarray, "layer context component rate"], list[_Network]]:
    """Every network of some steered layers: their losses, and the best of each layer."""
    n_rates = len(settings.rates)
    losses = np.empty((len(targets), len(contexts), len(settings.components), n_rates))
    best: list[_Network | None] = [None] * len(targets)
    trained: dict[tuple[int, int, int], int] = {}
    for j, count in enumerate(settings.components):
        goals = _Goals([each.first(count) for each in targets], settings, place)
        for i, context in enumerate(contexts):
            seen = context.first(count)
            shape = (i, seen.train.shape[1], goals.train.shape[2])
            if shape in trained:  # this count cuts no more off than an earlier one did
                losses[:, i, j] = losses[:, i, trained[shape]]
                on_step(len(targets) * n_rates)
                continue
            trained[shape] = j
            scale = _context_scale(seen)
            first = _first_weights(seeds[:, i], goals.decoder, inputs=shape[1])
            inputs, held_inputs = (_tensor(x / scale, place) for x in (seen.train, seen.held))
            for r, rate in enumerate(settings.rates):
                found = train_stack(
                    inputs,
                    goals.train,
                    held_contexts=held_inputs,
                    held_targets=goals.held,
                    first=first,
                    units=_tensor(goals.scales, place),
                    rate=rate,
                    loss=settings.loss,
                    epochs=settings.epochs,
                    batch=settings.batch,
                    check_every=settings.check_every,
                    seed=settings.seed,
                )
                error = found.error.double().cpu().numpy() * goals.scales**2 + goals.outside
                losses[:, i, j, r] = error
                for k, network in enumerate(best):
                    if network is None or error[k] < network.loss:
                        best[k] = _Network(
                            loss=float(error[k]),
                            context=i,
                            component=j,
                            rate=r,
                            epoch=int(found.epoch[k]),
                            encoder=_array(found.weights.encoder[k]),
                            bias=_array(found.weights.bias[k]),
                            decoder=_array(found.weights.decoder[k]),
                        )
                on_step(len(targets))
    return losses, [network for network in best if network is not None]


class _Goals:
    """Targets of some layers as tensors, each scaled, with zeros where one has fewer coordinates.

    A zero target with a zero weight has no slope, so it stays zero.
    """

    def __init__(
        self, targets: Sequence[Coordinates], settings: L2SSettings, place: torch.device
    ) -> None:
        self.scales = np.array([_target_scale(each, settings) for each in targets])
        self.outside = np.array([each.outside for each in targets])
        width = max(each.train.shape[1] for each in targets)
        scaled = list(zip(targets, self.scales, strict=True))
        self.train = torch.stack([_tensor(x.train / s, place, width=width) for x, s in scaled])
        self.held = torch.stack([_tensor(x.held / s, place, width=width) for x, s in scaled])
        decoders = [_right_singular(each.train, settings.hidden) for each in targets]
        self.decoder = torch.stack([_tensor(each, place, width=width) for each in decoders])


def _right_singular(
    train: Float64[np.ndarray, "n s"], hidden: int
) -> Float64[np.ndarray, "hidden s"]:
    """The first right singular vectors of the centred train targets; zeros below, if too few."""
    found = principal_components(train, centred=True, limit=hidden).basis
    return np.pad(found.T.astype(np.float64), ((0, hidden - found.shape[1]), (0, 0)))


def _first_weights(seeds: Int64[np.ndarray, " k"], decoder: Tensor, *, inputs: int) -> Weights:
    """`torch.nn.Linear`'s weights and bias, each network's of its own seed; the given decoders."""
    drawn = uniform_weights(
        seeds.tolist(), (decoder.shape[1], inputs + 1), bound=inputs**-0.5, device=decoder.device
    )
    return Weights(
        encoder=drawn[..., :inputs].contiguous(),
        bias=drawn[..., inputs].contiguous(),
        decoder=decoder,
    )


def _seed(seed: int, layer: int, context_layer: int) -> int:
    """Of one network, whatever else is trained with it."""
    return int(np.random.SeedSequence((seed, layer, context_layer)).generate_state(1)[0])


def _context_scale(contexts: Coordinates) -> float:
    """Makes a coordinate's root mean square 1."""
    return float(contexts.size / contexts.train.shape[1] ** 0.5)


def _target_scale(targets: Coordinates, settings: L2SSettings) -> float:
    """Makes the root mean square length √hidden."""
    return float(targets.size / settings.hidden**0.5)


def _tensor(
    values: Float64[np.ndarray, "..."], place: torch.device, *, width: int | None = None
) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float32, device=place)
    if width is not None:
        tensor = torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor


def _array(tensor: Tensor) -> Float64[np.ndarray, "..."]:
    return np.asarray(tensor.double().cpu().numpy())
