"""Many small classifiers trained at once: one shape, their own labels, rates, decays and rows.

Networks that share rows share their batches too, so the first layer of all of them is one matrix
product; each network ends up where PyTorch would have taken it alone, up to rounding.

Axes: f parts (folds, seeds) of k networks each, n = f·k networks part by part; b rows of a batch,
m held-out rows. Activations are `[n, units, b]`, rows last, so that a matrix `[n, out, in]`
multiplies from the left as it lies in memory.
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
They are to stay in the cache; below that the calls of a step dominate, whatever its size."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a network of linear layers with ReLU between them.

    It has one or more hidden layers (`depth`) of `width` units, and an output for each class, those
    that it may not choose included.
    """

    n_inputs: int
    width: int
    depth: int
    n_outputs: int

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
    """Rows that k networks are trained on, batch by batch in one order, and rows held out."""

    inputs: Float[Tensor, "rows n_inputs"]
    """Train rows. The networks are computed in their dtype."""

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
    """The networks of one part after training."""

    weights: list[tuple[Float[np.ndarray, "k _ _"], Float[np.ndarray, "k _"]]]
    """Matrix `[k, out, in]` and bias `[k, out]` of each layer after the last epoch."""

    loss: Float[np.ndarray, "checkpoint k"]
    """Mean cross-entropy over the batches of each checkpoint's epoch, each in its own step."""

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

    Parts have equal k, inputs and classes; their numbers of rows may differ. Each of the k networks
    has a learning rate and a weight decay, on matrices and biases as in `torch.optim.AdamW`.
    `epochs` are checkpoints, rising; the last one ends the training. `together` is how many parts
    make one stack: more of them fill a GPU; on a CPU large ones leave the cache. None is as many as
    `STACK_BYTES` hold on a CPU, else all; it changes nothing beyond rounding. `on_part` is called
    with the number of networks that were finished since its last call.
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
    results: dict[int, Trained] = {}
    for chosen in _stacks([len(part.inputs) for part in parts], batch, size):
        stack = _Stack([parts[i] for i in chosen], shape, batch, device)
        trained = stack.train(rates, decays, epochs)
        results.update(zip(chosen, trained, strict=True))
        on_part(len(chosen) * len(rates))
    return [results[i] for i in range(len(parts))]


def initial_weights(seed: int, shape: Shape) -> Weights:
    """Draw initial weights uniform in ±1/sqrt(inputs), as `torch.nn.Linear` does."""
    weights = []
    for layer, (out, inputs) in enumerate(shape.layers):
        seeds = np.random.SeedSequence([seed, layer]).generate_state(2, np.uint32).tolist()
        matrix, bias = (
            uniform_weights([tensor_seed], size, bound=inputs**-0.5, device="cpu")[0]
            for tensor_seed, size in zip(seeds, ((out, inputs), (out,)), strict=True)
        )
        weights.append((matrix, bias))
    return weights


def batch_orders(seed: int, n_rows: int) -> Iterator[Int64[Tensor, " rows"]]:
    """Draw the order of rows for one epoch after the other, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(n_rows, generator=generator)


def _stacks(n_rows: Sequence[int], batch: int, size: int) -> Iterator[list[int]]:
    """Parts to train together: up to `size` with as many steps in an epoch."""
    n_steps = [-(-rows // batch) for rows in n_rows]
    for steps in sorted(set(n_steps)):
        same = [i for i, n in enumerate(n_steps) if n == steps]
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
        # Share of each row in its batch's mean loss; 0 for padding, which then has no gradient.
        share = torch.zeros(len(parts), self._rows, dtype=dtype)
        for row, part in zip(share, parts, strict=True):
            for start in range(0, len(part.inputs), batch):
                stop = min(start + batch, len(part.inputs))
                row[start:stop] = 1 / (stop - start)
        self._share = share.repeat_interleave(self._k, 0)[:, None].to(device)  # [n, 1, rows]
        allowed = torch.cat([part.allowed for part in parts])
        # Added to the logits: -inf for the classes that a network may not choose.
        closed = torch.zeros(n, shape.n_outputs, 1, dtype=dtype)
        self._closed = closed.masked_fill_(~allowed[..., None], -torch.inf).to(device)
        # All weights lie in one tensor, all gradients in another: AdamW steps them in one go.
        self._flat = torch.empty(n * shape.n_weights, dtype=dtype, device=device)
        self._flat_grad = torch.empty_like(self._flat)
        self._weights = linear_views(self._flat, shape.layers, n=n)
        self._grads = linear_views(self._flat_grad, shape.layers, n=n)
        starts = [initial_weights(part.seed, shape) for part in parts]
        for layer, pair in enumerate(self._weights):
            for i, weights in enumerate(pair):
                first = torch.stack([start[layer][i] for start in starts])
                weights.copy_(first.repeat_interleave(self._k, 0))

    def train(
        self, rates: Sequence[float], decays: Sequence[float], epochs: Sequence[int]
    ) -> list[Trained]:
        """Run all epochs; one result a part, as `train_classifiers` returns them."""
        n_parts = len(self._parts)
        optimizer = StackedAdamW(
            self._flat, lr=self._per_weight(rates), weight_decay=self._per_weight(decays)
        )
        orders = [batch_orders(part.seed, len(part.inputs)) for part in self._parts]
        part_index = torch.arange(n_parts, device=self._device)[:, None]
        losses, predicted = [], []
        for epoch in range(1, epochs[-1] + 1):
            order = _padded([next(order) for order in orders]).to(self._device)  # [f, rows]
            inputs = self._inputs[part_index, order]  # [f, rows, n_inputs]
            labels = self._labels.gather(2, order[:, None].expand_as(self._labels))
            labels = labels.reshape(-1, 1, self._rows)  # [n, 1, rows]
            batch_losses = []
            for start in range(0, self._rows, self._batch):
                batch = slice(start, start + self._batch)
                loss = self._fill_gradients(
                    inputs[:, batch], labels[..., batch], batch, with_loss=epoch in epochs
                )
                optimizer.step(self._flat_grad)
                batch_losses.append(loss)
            if epoch in epochs:
                losses.append(torch.cat(batch_losses, 1).sum(1))
                predicted.append(self._forward(self._held_out)[1].argmax(1))  # [n, m]
        return self._results(torch.stack(losses), torch.stack(predicted))

    def _per_weight(self, values: Sequence[float]) -> Float[Tensor, " weight"]:
        """Repeat the value of each of the k networks for each of its weights."""
        repeated = torch.empty_like(self._flat)
        per_network = repeated.new_tensor(list(values) * len(self._parts))
        for pair in linear_views(repeated, self._shape.layers, n=len(per_network)):
            for tensor in pair:
                tensor.copy_(per_network.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor))
        return repeated

    def _forward(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute hidden units `[n, width, b]` of each layer, and logits `[n, n_outputs, b]`."""
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

    def _fill_gradients(
        self, inputs: Tensor, labels: Tensor, batch: slice, *, with_loss: bool
    ) -> Tensor:
        """Overwrite every weight's gradient with that of the batch's mean loss.

        Returns `[n, b]`, each row's loss by its share in the epoch; empty unless `with_loss`.
        """
        hidden, logits = self._forward(inputs)
        share = self._share[..., batch]
        loss = logits.new_empty(len(logits), 0)
        if with_loss:
            rows = torch.tensor([len(part.inputs) for part in self._parts], device=self._device)
            row_loss = (logits.logsumexp(1, keepdim=True) - logits.gather(1, labels)) * (share > 0)
            loss = row_loss[:, 0] / rows.repeat_interleave(self._k)[:, None]
        # Gradient of the mean cross-entropy in the logits: (softmax - one-hot label) · share.
        back = torch.softmax(logits, 1)
        back.scatter_add_(1, labels, torch.full_like(share, -1)).mul_(share)  # [n, n_outputs, b]
        upper = zip(self._weights[:0:-1], self._grads[:0:-1], hidden[::-1], strict=True)
        for (matrix, _), (of_matrix, of_bias), units in upper:
            torch.bmm(back, units.mT, out=of_matrix)
            torch.sum(back, 2, out=of_bias)
            # What autograd runs for ReLU: one pass, where `units > 0` as a mask takes several.
            back = torch.ops.aten.threshold_backward(torch.bmm(matrix.mT, back), units, 0)
        # The first layer reads inputs that the k networks of a part share: one product a part.
        of_matrix, of_bias = self._grads[0]
        torch.sum(back, 2, out=of_bias)
        back = back.view(len(inputs), -1, inputs.shape[1])  # [f, k·width, b]
        torch.bmm(back, inputs, out=of_matrix.view(len(inputs), -1, inputs.shape[2]))
        return loss

    def _results(self, losses: Tensor, predicted: Tensor) -> list[Trained]:
        results = []
        for i, part in enumerate(self._parts):
            networks = slice(i * self._k, (i + 1) * self._k)
            results.append(
                Trained(
                    weights=[
                        (w[networks].cpu().numpy(), b[networks].cpu().numpy())
                        for w, b in self._weights
                    ],
                    loss=losses[:, networks].cpu().numpy(),
                    predicted=predicted[:, networks, : len(part.held_out)].cpu().numpy(),
                )
            )
        return results


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors, with zeros after those that are shorter."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)
