"""Many small networks of one shape, trained as stacked tensors: their weights, their AdamW.

The first dimension counts networks. Each has its own seed, learning rate and weight decay, so a
stack of k gives what k runs of PyTorch one after the other would. Refuses to know what the networks
compute.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def uniform_weights(
    seeds: Sequence[int], shape: tuple[int, ...], *, bound: float, device: torch.device | str
) -> Float[Tensor, "k ..."]:
    """Weights uniform in ±bound, network i's from a generator of its own seed.

    Drawn on the CPU, so that a seed means the same weights on every device.

    Args:
        seeds: one a network.
        shape: of one network's weights.
        bound: `1 / sqrt(inputs)` is what `torch.nn.Linear` takes, for weight and bias alike.
        device: where they will be.

    Returns:
        float32, `[k, *shape]`.
    """
    stack = torch.empty(len(seeds), *shape)
    for weights, seed in zip(stack, seeds, strict=True):
        weights.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    return stack.to(device)


def linear_views(
    flat: Float[Tensor, " weights"], layers: Sequence[tuple[int, int]], *, n: int
) -> list[tuple[Float[Tensor, "n out in"], Float[Tensor, "n out"]]]:
    """Matrix and bias of each linear layer of n networks, as parts of one tensor.

    Args:
        flat: as many entries as they have together.
        layers: outputs and inputs of each.
        n: networks.
    """
    sizes = [n * size for out, inputs in layers for size in (out * inputs, out)]
    parts = iter(flat.split(sizes))
    return [(next(parts).view(n, out, inputs), next(parts).view(n, out)) for out, inputs in layers]


def training_device(name: str) -> str:
    """Where small networks are trained: as it is called, but `auto` is cuda where there is one.

    mps has to be asked for: nothing was measured there.
    """
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


class StackedAdamW:
    """AdamW (Loshchilov & Hutter 2019) where each network of a stack has its own rate and decay.

    What `torch.optim.AdamW` does to each network alone, eps and bias correction included; without
    decay it is `torch.optim.Adam`. PyTorch's own takes one rate for a whole tensor.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: Float[Tensor, " k"],
        weight_decay: Float[Tensor, " k"],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Hold the moments of `parameters`, each `[k, …]` and a leaf with gradients."""
        self._parameters = list(parameters)
        self._lr = lr
        self._shrink = lr * weight_decay
        self._betas = betas
        self._eps = eps
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._room = [torch.empty_like(p) for p in self._parameters]
        self._n_steps = 0

    @torch.no_grad()
    def step(self, *, scale: float = 1.0) -> None:
        """One step from the gradients, which are cleared; all rates times `scale`, a schedule's."""
        self._n_steps += 1
        beta1, beta2 = self._betas
        # Bias correction is moved into two numbers: fewer passes over the weights.
        size = (1 - beta2**self._n_steps) ** 0.5
        factor = scale * size / (1 - beta1**self._n_steps)
        for p, first, second, step in zip(
            self._parameters, self._first, self._second, self._room, strict=True
        ):
            assert p.grad is not None
            each = (-1, *[1] * (p.dim() - 1))
            first.lerp_(p.grad, 1 - beta1)
            second.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.addcmul_(p, self._shrink.view(each), value=-scale)
            torch.sqrt(second, out=step).add_(self._eps * size)
            torch.div(first, step, out=step)
            p.sub_(step.mul_(self._lr.view(each)), alpha=factor)
            p.grad = None
