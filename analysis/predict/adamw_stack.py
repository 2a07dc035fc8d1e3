"""Many small networks of one shape, trained as stacked tensors: their weights, AdamW and Adam.

Each network has its own seed, learning rate and weight decay, so a stack of k gives what k runs of
PyTorch one after the other would.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's, PyTorch's defaults."""


def uniform_weights(
    seeds: Sequence[int], shape: tuple[int, ...], *, bound: float, device: torch.device | str
) -> Float[Tensor, "k ..."]:
    """Draw weights uniform in ±bound, those of each network from a generator of its own seed.

    Drawn on the CPU, so that a seed means the same weights on every device. `torch.nn.Linear` takes
    `1 / sqrt(inputs)` as the bound, for weight and bias alike.
    """
    stack = torch.empty(len(seeds), *shape)
    for weights, seed in zip(stack, seeds, strict=True):
        weights.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    return stack.to(device)


def linear_views(
    flat: Float[Tensor, " weights"], layers: Sequence[tuple[int, int]], *, n: int
) -> list[tuple[Float[Tensor, "n out in"], Float[Tensor, "n out"]]]:
    """View one tensor as matrix and bias of each layer `(out, in)` of n networks."""
    sizes = [n * size for out, inputs in layers for size in (out * inputs, out)]
    parts = iter(flat.split(sizes))
    return [(next(parts).view(n, out, inputs), next(parts).view(n, out)) for out, inputs in layers]


def training_device(name: str) -> str:
    """Name the device to train small networks on: `auto` is cuda if available, else cpu.

    mps must be named: nothing was measured there.
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
        weights: Float[Tensor, " weight"],
        *,
        lr: Float[Tensor, " weight"],
        weight_decay: Float[Tensor, " weight"],
    ) -> None:
        self._weights = weights
        self._lr = lr
        self._shrink = lr * weight_decay
        self._first = torch.zeros_like(weights)
        self._second = torch.zeros_like(weights)
        self._buffer = torch.empty_like(weights)
        self._n_steps = 0

    @torch.no_grad()
    def step(self, gradient: Float[Tensor, " weight"]) -> None:
        """Take one step."""
        self._n_steps += 1
        beta1, beta2 = BETAS
        # Adam's step is lr · (m / c1) / (sqrt(v) / c2 + eps), with bias corrections c1 = 1 - β1^t
        # and c2 = sqrt(1 - β2^t). Multiplied by c2 / c2:
        # lr · c2/c1 · m / (sqrt(v) + eps·c2), where the corrections are two numbers, so that each
        # tensor is passed over fewer times.
        size = (1 - beta2**self._n_steps) ** 0.5
        factor = size / (1 - beta1**self._n_steps)
        weights, step = self._weights, self._buffer
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weights.addcmul_(weights, self._shrink, value=-1)
        torch.sqrt(self._second, out=step).add_(EPS * size)
        torch.div(self._first, step, out=step)
        weights.sub_(step.mul_(self._lr), alpha=factor)


class FusedAdam:
    """Adam (Kingma & Ba 2015) of a few tensors, whose gradients lie in the same buffers every step.

    Does what `torch.optim.Adam(fused=True)` does: it calls the same function. On small tensors
    PyTorch's own class takes five times as long to get there.
    """

    def __init__(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._weights, self._gradients = list(weights), list(gradients)
        self._first = [torch.zeros_like(tensor) for tensor in weights]
        self._second = [torch.zeros_like(tensor) for tensor in weights]
        self._n_steps = torch.zeros((), dtype=torch.float32, device=self._weights[0].device)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step at a learning rate."""
        self._n_steps += 1
        beta1, beta2 = BETAS
        torch._fused_adam_(
            self._weights,
            self._gradients,
            self._first,
            self._second,
            [],
            [self._n_steps] * len(self._weights),
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )
