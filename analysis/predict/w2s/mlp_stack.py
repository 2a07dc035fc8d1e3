"""Many small classifiers trained at once: one shape, their own labels, rates, decays and rows.

Networks that share rows share their batches too, so the first layer of all of them is one matrix
product; each network ends up where PyTorch would have taken it alone, up to rounding. Refuses to
know what is classified, and how networks are compared or chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from actcache.analysis.predict.adamw_stack import StackedAdamW, linear_views, uniform_weights

Weights = list[tuple[Tensor, Tensor]]
"""Matrix `[…, out, in]` and bias `[…, out]` of each layer, as `torch.nn.Linear` has them."""

STACK_BYTES = 6 << 20
"""Weights, gradients and AdamW's moments of a stack on a CPU, at most, unless one part has more.
They are to stay in the cache; below that a step costs its calls, whatever the stack's size."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a network looks like: linear layers with ReLU between them."""

    n_inputs: int
    """Length of an input."""

    width: int
    """Units of each hidden layer."""

    depth: int
    """Hidden layers, at least one."""

    n_outputs: int
    """Classes, those that a network may not choose included."""

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Outputs and inputs of each linear layer, the first one first."""
        sizes = [self.n_inputs, *[self.width] * self.depth, self.n_outputs]
        return [(out, inputs) for inputs, out in pairwise(sizes)]

    @property
    def n_weights(self) -> int:
        """Entries of all matrices and biases."""
        return sum(out * (inputs + 1) for out, inputs in self.layers)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that k networks are trained on, batch by batch in one order, and rows kept from them."""

    inputs: Float[Tensor, "rows n_inputs"]
    """Train rows. Their dtype is what the networks are computed in."""

    labels: Int64[Tensor, "k rows"]
    """What each network is taught; allowed classes only."""

    allowed: Bool[Tensor, "k n_outputs"]
    """Classes that each network may choose; the logits of others are -inf."""

    held_out: Float[Tensor, "m n_inputs"]
    """Rows that are predicted at each checkpoint."""

    seed: int
    """Of the order of batches, and of the initial weights, which all k networks share."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The networks of one part, as training left them."""

    weights: list[tuple[Float[np.ndarray, "k _ _"], Float[np.ndarray, "k _"]]]
    """Matrix `[k, out, in]` and bias `[k, out]` of each layer after the last epoch."""

    loss: Float[np.ndarray, "checkpoint k"]
    """Mean cross-entropy over the batches of each checkpoint's epoch, each row as it was met."""

    predicted: Int64[np.ndarray, "checkpoint k m"]
    """Class of each held-out row."""


def train_classifiers(
    parts: Sequence[Part],
    *,
    width: int,
    depth: int,
    rates: Sequence[float],
    decays: Sequence[float],
    epochs: Sequence[int],
    batch: int,
    device: torch.device | str = "cpu",
    together: int | None = None,
    on_part: Callable[[int], object] = lambda _: None,
) -> list[Trained]:
    """Train k networks on each part: cross-entropy, AdamW, batches of shuffled rows.

    The gradients are written out: a network of ReLU and softmax needs few products, and all of
    them are batched over networks. The last batch of an epoch is as small as it comes, its loss a
    mean like the others'.

    Args:
        parts: of equal k, inputs and classes; their numbers of rows may differ.
        width: units of each hidden layer.
        depth: hidden layers.
        rates: learning rate of each of the k networks.
        decays: weight decay of each, on matrices and biases, as `torch.optim.AdamW` does it.
        epochs: checkpoints, rising; the last one ends the training.
        batch: rows in a step.
        device: where to compute.
        together: parts in one stack. More of them fill a GPU; on a CPU large ones leave the cache.
            None is as many as `STACK_BYTES` hold on a CPU, else all. Changes nothing beyond
            rounding.
        on_part: told how many networks are done, each time some are.

    Returns:
        One a part, in order.
    """
    device = torch.device(device)
    shape = Shape(
        n_inputs=parts[0].inputs.shape[1],
        width=width,
        depth=depth,
        n_outputs=parts[0].allowed.shape[1],
    )
    one = 4 * len(rates) * shape.n_weights * parts[0].inputs.element_size()
    size = together or (max(STACK_BYTES // one, 1) if device.type == "cpu" else len(parts))
    found: dict[int, Trained] = {}
    for chosen in _stacks([len(part.inputs) for part in parts], batch, size):
        stack = _Stack([parts[i] for i in chosen], shape, batch, device)
        trained = stack.train(rates, decays, epochs)
        found.update(zip(chosen, trained, strict=True))
        on_part(len(chosen) * len(rates))
    return [found[i] for i in range(len(parts))]


def initial_weights(seed: int, shape: Shape) -> Weights:
    """What a network starts from: uniform in ±1/sqrt(inputs), as `torch.nn.Linear` draws them."""
    weights = []
    for at, (out, inputs) in enumerate(shape.layers):
        seeds = np.random.SeedSequence([seed, at]).generate_state(2, np.uint32).tolist()
        matrix, bias = (
            uniform_weights([own], size, bound=inputs**-0.5, device="cpu")[0]
            for own, size in zip(seeds, ((out, inputs), (out,)), strict=True)
        )
        weights.append((matrix, bias))
    return weights


def batch_orders(seed: int, n_rows: int) -> Iterator[Int64[Tensor, " rows"]]:
    """The order of rows in each epoch, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(n_rows, generator=generator)


def _stacks(n_rows: Sequence[int], batch: int, size: int) -> Iterator[list[int]]:
    """Parts to train together: up to `size` with as many steps in an epoch."""
    n_steps = [-(-rows // batch) for rows in n_rows]
    for steps in sorted(set(n_steps)):
        same = [i for i, each in enumerate(n_steps) if each == steps]
        for start in range(0, len(same), size):
            yield same[start : start + size]


class _Stack:
    """The networks of f parts of as many steps, each stacked k deep: f·k of them, part by part."""

    def __init__(self, parts: list[Part], shape: Shape, batch: int, device: torch.device) -> None:
        self._parts, self._shape, self._batch, self._device = parts, shape, batch, device
        dtype = parts[0].inputs.dtype
        self._k = len(parts[0].labels)
        n = len(parts) * self._k
        self._rows = max(len(part.inputs) for part in parts)
        self._inputs = _padded([part.inputs for part in parts]).to(device)  # [f, rows, n_inputs]
        self._labels = _padded([part.labels.T for part in parts]).mT.to(device)  # [f, k, rows]
        self._held_out = _padded([part.held_out for part in parts]).to(device)  # [f, m, n_inputs]
        share = torch.zeros(len(parts), self._rows, dtype=dtype)  # of a batch's mean; 0 is padding
        for row, part in zip(share, parts, strict=True):
            for start in range(0, len(part.inputs), batch):
                stop = min(start + batch, len(part.inputs))
                row[start:stop] = 1 / (stop - start)
        self._share = share.repeat_interleave(self._k, 0)[:, None].to(device)  # [n, 1, rows]
        allowed = torch.cat([part.allowed for part in parts])
        closed = torch.zeros(n, shape.n_outputs, 1, dtype=dtype)
        self._closed = closed.masked_fill_(~allowed[..., None], -torch.inf).to(device)
        # All weights lie in one tensor, all gradients in another: AdamW steps them at one go.
        self._flat = torch.empty(n * shape.n_weights, dtype=dtype, device=device)
        self._slopes = torch.empty_like(self._flat)
        self._weights = linear_views(self._flat, shape.layers, n=n)
        self._grads = linear_views(self._slopes, shape.layers, n=n)
        starts = [initial_weights(part.seed, shape) for part in parts]
        for at, pair in enumerate(self._weights):
            for i, weights in enumerate(pair):
                first = torch.stack([start[at][i] for start in starts])
                weights.copy_(first.repeat_interleave(self._k, 0))

    def train(
        self, rates: Sequence[float], decays: Sequence[float], epochs: Sequence[int]
    ) -> list[Trained]:
        """All epochs; what `train_classifiers` returns of these parts."""
        n_parts = len(self._parts)
        optimizer = StackedAdamW(
            [self._flat], lr=self._each(rates), weight_decay=self._each(decays)
        )
        orders = [batch_orders(part.seed, len(part.inputs)) for part in self._parts]
        which = torch.arange(n_parts, device=self._device)[:, None]
        losses, predicted = [], []
        for epoch in range(1, epochs[-1] + 1):
            order = _padded([next(each) for each in orders]).to(self._device)  # [f, rows]
            inputs = self._inputs[which, order]  # [f, rows, n_inputs]
            labels = self._labels.gather(2, order[:, None].expand_as(self._labels))
            labels = labels.reshape(-1, 1, self._rows)  # [n, 1, rows]
            loss = []
            for start in range(0, self._rows, self._batch):
                at = slice(start, start + self._batch)
                told = self._gradients(inputs[:, at], labels[..., at], at, tell=epoch in epochs)
                self._flat.grad = self._slopes
                optimizer.step()
                loss.append(told)
            if epoch in epochs:
                losses.append(torch.cat(loss, 1).sum(1))
                predicted.append(self._forward(self._held_out)[1].argmax(1))  # [n, m]
        return self._results(torch.stack(losses), torch.stack(predicted))

    def _each(self, values: Sequence[float]) -> Float[Tensor, " weight"]:
        """What each of the k networks has, for each of all weights."""
        found = torch.empty_like(self._flat)
        per_network = found.new_tensor(list(values) * len(self._parts))
        for pair in linear_views(found, self._shape.layers, n=len(per_network)):
            for tensor in pair:
                tensor.copy_(per_network.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor))
        return found

    def _forward(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden units `[n, width, b]` of each layer, and logits `[n, n_outputs, b]`."""
        (matrix, bias), *rest = self._weights
        n_parts, n_rows = inputs.shape[:2]
        # One product for all networks of a part: [k·width, n_inputs] @ [n_inputs, b].
        first = torch.baddbmm(
            bias.view(n_parts, -1, 1), matrix.view(n_parts, -1, inputs.shape[2]), inputs.mT
        )
        hidden = [first.view(len(matrix), self._shape.width, n_rows).relu_()]
        for matrix, bias in rest[:-1]:
            hidden.append(torch.baddbmm(bias[..., None], matrix, hidden[-1]).relu_())
        matrix, bias = rest[-1]
        return hidden, torch.baddbmm(bias[..., None] + self._closed, matrix, hidden[-1])

    def _gradients(self, inputs: Tensor, labels: Tensor, at: slice, *, tell: bool) -> Tensor:
        """Overwrite every weight's gradient with that of the batch's mean loss; `tell` the losses.

        Returns `[n, rows]`, each row's loss by its share in the epoch; empty without `tell`.
        """
        hidden, logits = self._forward(inputs)
        share = self._share[..., at]
        loss = logits.new_empty(len(logits), 0)
        if tell:
            rows = torch.tensor([len(part.inputs) for part in self._parts], device=self._device)
            each = (logits.logsumexp(1, keepdim=True) - logits.gather(1, labels)) * (share > 0)
            loss = each[:, 0] / rows.repeat_interleave(self._k)[:, None]
        back = torch.softmax(logits, 1)
        back.scatter_add_(1, labels, torch.full_like(share, -1)).mul_(share)  # [n, n_outputs, b]
        upper = zip(self._weights[:0:-1], self._grads[:0:-1], hidden[::-1], strict=True)
        for (matrix, _), (of_matrix, of_bias), units in upper:
            torch.bmm(back, units.mT, out=of_matrix)
            torch.sum(back, 2, out=of_bias)
            # What autograd runs for ReLU: one pass, where `units > 0` as a mask takes several.
            back = torch.ops.aten.threshold_backward(torch.bmm(matrix.mT, back), units, 0)
        of_matrix, of_bias = self._grads[0]
        torch.sum(back, 2, out=of_bias)
        back = back.view(len(inputs), -1, inputs.shape[1])  # [f, k·width, b]
        torch.bmm(back, inputs, out=of_matrix.view(len(inputs), -1, inputs.shape[2]))
        return loss

    def _results(self, losses: Tensor, predicted: Tensor) -> list[Trained]:
        found = []
        for i, part in enumerate(self._parts):
            own = slice(i * self._k, (i + 1) * self._k)
            found.append(
                Trained(
                    weights=[
                        (w[own].cpu().numpy(), b[own].cpu().numpy()) for w, b in self._weights
                    ],
                    loss=losses[:, own].cpu().numpy(),
                    predicted=predicted[:, own, : len(part.held_out)].cpu().numpy(),
                )
            )
        return found


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stacked, with zeros after those that are shorter."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)
