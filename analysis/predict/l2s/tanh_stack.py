"""Trains many networks `tanh(c·W1 + b)·W2` that read the same contexts, as one stack of tensors.

Networks of a stack share contexts, learning rate and the order of the samples; each has targets
and first weights of its own and ends as it would alone. With one hidden layer the gradients are
four matrix products, written out here: the first layer of all networks is one product. Refuses to
know layers, behaviors and what coordinates mean.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

COSINE_SHARE = 0.1
"""Weight of the cosine in the loss `code`, reached in a straight line at `COSINE_EPOCHS`."""

COSINE_EPOCHS = 100

STACK_BYTES = {"cpu": 12 << 20}
"""Weights, gradients and Adam's moments of a stack at most. On a CPU they are to stay in the cache:
Adam reads all of them every step."""

TOTAL_BYTES = 1 << 30
"""The same and the targets, in the order of the data and in that of an epoch, on any device."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of k networks with h hidden units, r inputs and s outputs."""

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
    targets: Float[Tensor, "k n s"],
    *,
    held_contexts: Float[Tensor, "m r"],
    held_targets: Float[Tensor, "k m s"],
    first: Weights,
    units: Float[Tensor, " k"],
    rate: float,
    loss: str = "paper",
    epochs: int = 100,
    batch: int = 64,
    check_every: int = 10,
    seed: int = 0,
) -> Trained:
    """Adam (Kingma & Ba 2015) with a cosine schedule from `rate` to 0, step by step.

    Args:
        contexts: what the networks read.
        targets: what each of them should say.
        held_contexts: those of the held-out samples.
        held_targets: likewise.
        first: weights to start from; they are left as they are.
        units: what 1 of a target is worth; the two terms of `code` weigh differently in other
            units. `paper` does not look at it.
        rate: largest step of a weight.
        loss: of `conventions.LOSSES`.
        epochs: passes over the samples.
        batch: samples a step; the last one of an epoch takes what is left.
        check_every: epochs between looks at the held-out samples; the last epoch is one.
        seed: of the order of the samples, new in every epoch and the same for every network.

    Returns:
        Each network at its best look.
    """
    device, dtype = contexts.device, contexts.dtype
    k = len(targets)
    now = Weights(
        encoder=first.encoder.clone(), bias=first.bias.clone(), decoder=first.decoder.clone()
    )
    slopes = Weights(
        encoder=torch.empty_like(now.encoder),
        bias=torch.empty_like(now.bias),
        decoder=torch.empty_like(now.decoder),
    )
    now.encoder.grad, now.bias.grad, now.decoder.grad = slopes.encoder, slopes.bias, slopes.decoder
    optimizer = torch.optim.Adam(
        [now.encoder, now.bias, now.decoder], lr=rate, fused=device.type in ("cpu", "cuda")
    )
    best = Trained(
        weights=first,
        error=torch.full((k,), math.inf, device=device, dtype=dtype),
        epoch=torch.zeros(k, dtype=torch.int64, device=device),
    )
    n = len(contexts)
    n_steps, step = epochs * math.ceil(n / batch), 0
    generator = torch.Generator().manual_seed(seed)
    inputs, wanted = torch.empty_like(contexts), torch.empty_like(targets)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(n, generator=generator).to(device)
        torch.index_select(contexts, 0, order, out=inputs)
        torch.index_select(targets, 1, order, out=wanted)
        share = COSINE_SHARE * min(1.0, epoch / COSINE_EPOCHS)
        for start in range(0, n, batch):
            fill_slopes(
                slopes,
                now,
                inputs[start : start + batch],
                wanted[:, start : start + batch],
                loss=loss,
                units=units,
                share=share,
            )
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / n_steps)) / 2
            optimizer.step()
            step += 1
        if epoch % check_every == 0 or epoch == epochs:
            best = _better(best, now, held_contexts, held_targets, epoch)
    return best


def outputs(weights: Weights, contexts: Float[Tensor, "n r"]) -> Float[Tensor, "k n s"]:
    """What each network says."""
    return torch.bmm(_each(_hidden(weights, contexts), weights), weights.decoder)


def fill_slopes(
    slopes: Weights,
    weights: Weights,
    contexts: Float[Tensor, "b r"],
    targets: Float[Tensor, "k b s"],
    *,
    loss: str,
    units: Float[Tensor, " k"],
    share: float,
) -> None:
    """Overwrite `slopes` with the gradient of each network's mean loss over some samples."""
    h = _hidden(weights, contexts)
    each = _each(h, weights)
    error = torch.bmm(each, weights.decoder).sub_(targets)
    if loss == "code":
        error = _code_slope(error, targets, units=units, share=share)
    error.mul_(2 / len(contexts))
    torch.bmm(each.transpose(1, 2), error, out=slopes.decoder)
    back = torch.bmm(error, weights.decoder.transpose(1, 2)).transpose(0, 1).reshape(h.shape)
    back.mul_(h.square().neg_().add_(1))
    torch.mm(back.T, contexts, out=slopes.encoder.flatten(0, 1))
    torch.sum(back, 0, out=slopes.bias.flatten())


def _hidden(weights: Weights, contexts: Float[Tensor, "b r"]) -> Float[Tensor, "b kh"]:
    encoder = weights.encoder.flatten(0, 1)
    return torch.addmm(weights.bias.flatten(), contexts, encoder.T).tanh_()


def _each(h: Float[Tensor, "b kh"], weights: Weights) -> Float[Tensor, "k b h"]:
    """The same, network by network; a view."""
    k, hidden, _ = weights.encoder.shape
    return h.view(-1, k, hidden).transpose(0, 1)


def _code_slope(
    error: Float[Tensor, "k b s"],
    z: Float[Tensor, "k b s"],
    *,
    units: Float[Tensor, " k"],
    share: float,
) -> Float[Tensor, "k b s"]:
    """Half the slope of `code` in the output, where `error` is output less target."""
    s = z.shape[-1]
    unit = units.view(-1, 1, 1)
    output = error + z
    size = output.norm(dim=-1, keepdim=True).clamp_min_(1e-8)
    true = z / z.norm(dim=-1, keepdim=True).clamp_min_(1e-8)
    cosine = (output * true).sum(-1, keepdim=True) / size
    turn = (true - output * (cosine / size)) / size
    half = error * (unit * unit / s)
    return half.add_(error.sign().mul_(unit / (2 * s))).sub_(turn.mul_(share / 2))


def _better(
    best: Trained,
    now: Weights,
    contexts: Float[Tensor, "m r"],
    targets: Float[Tensor, "k m s"],
    epoch: int,
) -> Trained:
    """Of each network the better of two: as it was at its best look, and as it is."""
    error = (outputs(now, contexts) - targets).square_().sum(-1).mean(-1)
    won = error < best.error

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(won.view(-1, *[1] * (new.dim() - 1)), new, old)

    return Trained(
        weights=Weights(
            encoder=pick(best.weights.encoder, now.encoder),
            bias=pick(best.weights.bias, now.bias),
            decoder=pick(best.weights.decoder, now.decoder),
        ),
        error=pick(best.error, error),
        epoch=torch.where(won, epoch, best.epoch),
    )
