"""Trains many networks `tanh(c·W1 + b)·W2` that read the same contexts, as one stack of tensors.

Networks of a stack share contexts and the order of the samples; each has its own targets, initial
weights and learning rate, and ends as it would alone. With one hidden layer the gradients are four
matrix products, written out here: 1.75 × as fast as autograd, and the first layer of all networks
is one product.

Axes: k networks, z targets (k is a multiple of z: targets are trained on with several rates, rate
by rate), h hidden units, r inputs, s outputs, n samples (b of them in a batch, m held out).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from actcache.analysis.predict.adamw_stack import FusedAdam

COSINE_SHARE = 0.1
"""Weight of the cosine in the loss `code`, reached linearly at `COSINE_EPOCHS`."""

COSINE_EPOCHS = 100

STACK_BYTES = {"cpu": 12 << 20}
"""Weights, gradients and Adam's moments of a stack at most. On a CPU they are to stay in the cache:
Adam reads all of them every step."""

TOTAL_BYTES = 1 << 30
"""The same with the targets, in the order of the data and in that of an epoch, on any device."""


class Weights(NamedTuple):
    """Of k networks with h hidden units, r inputs and s outputs; or their gradients."""

    encoder: Float[Tensor, "k h r"]
    bias: Float[Tensor, "k h"]
    decoder: Float[Tensor, "k h s"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The networks as they were when each did best on held-out samples."""

    weights: Weights
    error: Float[Tensor, " k"]
    """Mean over held-out samples of the squared error, summed over coordinates."""

    epoch: Int64[Tensor, " k"]
    """Epochs after which that was."""


def networks_at_once(
    *, hidden: int, inputs: int, outputs: int, samples: int, device: torch.device
) -> int:
    """How many networks a stack should hold on a device: 1 or more."""
    one = 4 * 4 * hidden * (inputs + outputs + 1)  # weight, gradient, two moments, in float32
    data = 2 * 4 * samples * outputs
    at_most = min(STACK_BYTES.get(device.type, TOTAL_BYTES) // one, TOTAL_BYTES // (one + data))
    return max(at_most, 1)


def train_stack(
    contexts: Float[Tensor, "n r"],
    targets: Float[Tensor, "z n s"],
    *,
    held_contexts: Float[Tensor, "m r"],
    held_targets: Float[Tensor, "z m s"],
    first: Weights,
    units: Float[Tensor, " z"],
    rates: Sequence[float],
    loss: str = "paper",
    epochs: int = 100,
    batch: int = 64,
    check_every: int = 10,
    seed: int = 0,
) -> list[Trained]:
    """Train by Adam (Kingma & Ba 2015) with a cosine schedule from each rate to 0, step by step.

    Settings are as in `L2SSettings`. The order of the samples is new in every epoch and the same
    for every network; the last batch has those that are left. Networks are evaluated on the
    held-out samples every `check_every` epochs and after the last one. The initial weights `first`,
    of one network for each target, stay unchanged. `units` is what 1 of a target is worth: the two
    terms of `code` weigh differently in other units.

    Returns:
        For each rate the networks of all targets.
    """
    device, dtype = contexts.device, contexts.dtype
    z, k = len(targets), len(rates) * len(targets)
    first = Weights(*(tensor.repeat(len(rates), *[1] * (tensor.dim() - 1)) for tensor in first))
    weights = Weights(*(tensor.clone() for tensor in first))
    gradients = Weights(*(torch.empty_like(tensor) for tensor in first))
    optimizers = [
        FusedAdam(_of_rate(weights, i, z), _of_rate(gradients, i, z)) for i in range(len(rates))
    ]
    best = Trained(
        weights=first,
        error=torch.full((k,), math.inf, device=device, dtype=dtype),
        epoch=torch.zeros(k, dtype=torch.int64, device=device),
    )
    n = len(contexts)
    n_steps, step = epochs * math.ceil(n / batch), 0
    generator = torch.Generator().manual_seed(seed)
    # Shuffled once an epoch into buffers, so that each batch is a view and no step gathers rows.
    inputs, outputs_wanted = torch.empty_like(contexts), torch.empty_like(targets)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(n, generator=generator).to(device)
        torch.index_select(contexts, 0, order, out=inputs)
        torch.index_select(targets, 1, order, out=outputs_wanted)
        share = COSINE_SHARE * min(1.0, epoch / COSINE_EPOCHS)
        for start in range(0, n, batch):
            fill_gradients(
                gradients,
                weights,
                inputs[start : start + batch],
                outputs_wanted[:, start : start + batch],
                loss=loss,
                units=units,
                share=share,
            )
            lowered = (1 + math.cos(math.pi * step / n_steps)) / 2
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.step(rate * lowered)
            step += 1
        if epoch % check_every == 0 or epoch == epochs:
            best = _better(best, weights, held_contexts, held_targets, epoch)
    return [
        Trained(
            weights=_of_rate(best.weights, i, z),
            error=best.error[i * z : (i + 1) * z],
            epoch=best.epoch[i * z : (i + 1) * z],
        )
        for i in range(len(rates))
    ]


def _of_rate(weights: Weights, number: int, z: int) -> Weights:
    """Views of the networks of one rate."""
    return Weights(*(tensor[number * z : (number + 1) * z] for tensor in weights))


def outputs(weights: Weights, contexts: Float[Tensor, "n r"]) -> Float[Tensor, "k n s"]:
    """Predict with each network."""
    return torch.bmm(_by_network(_hidden(weights, contexts), weights), weights.decoder)


def fill_gradients(
    gradients: Weights,
    weights: Weights,
    contexts: Float[Tensor, "b r"],
    targets: Float[Tensor, "z b s"],
    *,
    loss: str,
    units: Float[Tensor, " z"],
    share: float,
) -> None:
    """Overwrite `gradients` with those of each network's mean loss over some samples."""
    # Hidden units of all networks side by side, [b, k·h]: contexts are shared, so W1 of all
    # networks is one matrix [k·h, r] and each of its products one large one instead of k.
    h = _hidden(weights, contexts)
    hidden = _by_network(h, weights)  # [k, b, h]
    predicted = torch.bmm(hidden, weights.decoder)  # [k, b, s]
    error = _by_rate(predicted, targets).sub_(targets)
    if loss == "code":
        error = _code_slope(error, targets, units=units, share=share)
    error = error.mul_(2 / len(contexts)).flatten(0, 1)  # now the loss's gradient in the output
    torch.bmm(hidden.transpose(1, 2), error, out=gradients.decoder)
    # Through W2 to the hidden units, laid side by side again, then through tanh: tanh' = 1 - h².
    back = torch.bmm(error, weights.decoder.transpose(1, 2)).transpose(0, 1).reshape(h.shape)
    back.mul_(h.square().neg_().add_(1))
    torch.mm(back.T, contexts, out=gradients.encoder.flatten(0, 1))
    torch.sum(back, 0, out=gradients.bias.flatten())


def _hidden(weights: Weights, contexts: Float[Tensor, "b r"]) -> Float[Tensor, "b kh"]:
    encoder = weights.encoder.flatten(0, 1)
    return torch.addmm(weights.bias.flatten(), contexts, encoder.T).tanh_()


def _by_network(h: Float[Tensor, "b kh"], weights: Weights) -> Float[Tensor, "k b h"]:
    """The same hidden units, network by network; a view."""
    k, hidden, _ = weights.encoder.shape
    return h.view(-1, k, hidden).transpose(0, 1)


def _by_rate(
    predicted: Float[Tensor, "k n s"], targets: Float[Tensor, "z n s"]
) -> Float[Tensor, "rate z n s"]:
    """The networks of each rate beside the targets of each; a view."""
    return predicted.view(-1, *targets.shape)


def _code_slope(
    error: Float[Tensor, "rate z b s"],
    z: Float[Tensor, "z b s"],
    *,
    units: Float[Tensor, " z"],
    share: float,
) -> Float[Tensor, "rate z b s"]:
    """Half the gradient of `code` in the output, where `error` is output minus target z.

    With u the unit, the loss is mean (u·e)² + mean |u·e| − share·cos(output, z), means over s. Half
    of it, so that the factor 2 of the squared error's gradient does for both losses.
    """
    s = z.shape[-1]
    unit = units.view(-1, 1, 1)
    output = error + z
    size = output.norm(dim=-1, keepdim=True).clamp_min_(1e-8)
    true = z / z.norm(dim=-1, keepdim=True).clamp_min_(1e-8)
    cosine = (output * true).sum(-1, keepdim=True) / size
    turn = (true - output * (cosine / size)) / size  # gradient of the cosine
    half = error * (unit * unit / s)
    return half.add_(error.sign().mul_(unit / (2 * s))).sub_(turn.mul_(share / 2))


def _better(
    best: Trained,
    weights: Weights,
    contexts: Float[Tensor, "m r"],
    targets: Float[Tensor, "z m s"],
    epoch: int,
) -> Trained:
    """Of each network the better of two: as at its best evaluation so far, and as it is now."""
    error = _by_rate(outputs(weights, contexts), targets) - targets
    error = error.square_().sum(-1).mean(-1).flatten()
    won = error < best.error

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(won.view(-1, *[1] * (new.dim() - 1)), new, old)

    return Trained(
        weights=Weights(*map(pick, best.weights, weights)),
        error=pick(best.error, error),
        epoch=torch.where(won, epoch, best.epoch),
    )
