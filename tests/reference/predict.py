"""Embedding separation, and W2S and L2S networks one at a time with PyTorch's own parts."""

import numpy as np
import torch

from tests.reference.sweep import layers_by_slope


def silhouette(embeddings, behaviors):
    """Rousseeuw 1987 with cosine distance, pair by pair; 0 for a row alone in its behavior."""
    units = [
        np.asarray(row, np.float64) / np.linalg.norm(row.astype(np.float64)) for row in embeddings
    ]
    labels = []
    for i, unit in enumerate(units):
        distances: dict[object, list[float]] = {}
        for j, other in enumerate(units):
            if j != i:
                distances.setdefault(behaviors[j], []).append(
                    float(((unit - other) ** 2).sum()) / 2
                )
        of_behavior = distances.pop(behaviors[i], None)
        if of_behavior is None:
            labels.append(0.0)
            continue
        a, b = np.mean(of_behavior), min(np.mean(distance) for distance in distances.values())
        labels.append(float((b - a) / max(a, b)) if max(a, b) > 1e-14 else 0.0)
    return np.array(labels)


def classifier_alone(part, network, *, start, orders, rate, decay, epochs, batch):
    """One network as PyTorch trains it: losses and held-out classes of each checkpoint, weights.

    `part` has inputs, labels `[k, rows]`, allowed classes and held-out rows; `start` the first
    weights, `orders` the order of rows of each epoch.
    """
    modules: list[torch.nn.Module] = []
    for matrix, bias in start:
        linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0], dtype=part.inputs.dtype)
        with torch.no_grad():
            linear.weight.copy_(matrix)
            linear.bias.copy_(bias)
        modules += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    closed = torch.zeros(part.allowed.shape[1]).masked_fill(~part.allowed[network], -torch.inf)
    labels = part.labels[network]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    losses, predicted = [], []
    for epoch in range(1, epochs[-1] + 1):
        order, total = next(orders), 0.0
        for rows in order.split(batch):
            optimizer.zero_grad()
            logits = net(part.inputs[rows]) + closed
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(order)
        if epoch in epochs:
            losses.append(total)
            with torch.no_grad():
                predicted.append((net(part.held_out) + closed).argmax(1))
    linears = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    weights = [(layer.weight.detach(), layer.bias.detach()) for layer in linears]
    return losses, predicted, weights


def fixed_layer_cv(slope, fold):
    """Mean slope where each fold's samples take the layer that is best on average over the others."""
    total = 0.0
    for i in range(len(slope)):
        others = [j for j in range(len(slope)) if fold[j] != fold[i]]
        means = [
            sum(slope[j][layer] for j in others) / len(others) for layer in range(len(slope[0]))
        ]
        total += slope[i][layers_by_slope(means)[0]] / len(slope)
    return total


def l2s_loss(predicted, target, *, loss, unit, epoch):
    """Mean over samples of one network's loss; `unit` is what 1 of a target is worth."""
    total = 0.0
    for g, z in zip(predicted, target, strict=True):
        if loss == "paper":
            total = total + ((z - g) ** 2).sum()
        else:
            error = unit * (g - z)
            cosine = torch.nn.functional.cosine_similarity(g, z, dim=0)
            total = total + (error**2).mean() + error.abs().mean()
            total = total - 0.1 * min(1.0, epoch / 100) * cosine
    return total / len(predicted)


def l2s_alone(
    contexts,
    targets,
    held_contexts,
    held_targets,
    *,
    encoder,
    bias,
    decoder,
    unit,
    rate,
    loss,
    epochs,
    batch,
    check_every,
    seed,
):
    """One network with PyTorch's own layers, optimizer, schedule and gradients: best error, epoch, weights."""
    inward = torch.nn.Linear(contexts.shape[1], len(bias), dtype=contexts.dtype)
    outward = torch.nn.Linear(len(bias), targets.shape[1], bias=False, dtype=contexts.dtype)
    with torch.no_grad():
        inward.weight.copy_(encoder)
        inward.bias.copy_(bias)
        outward.weight.copy_(decoder.T)
    net = torch.nn.Sequential(inward, torch.nn.Tanh(), outward)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    n = len(contexts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-n // batch))
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, int, list[torch.Tensor]] = (float("inf"), 0, [])
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(n, generator=generator).split(batch):
            optimizer.zero_grad()
            value = l2s_loss(net(contexts[rows]), targets[rows], loss=loss, unit=unit, epoch=epoch)
            value.backward()
            optimizer.step()
            schedule.step()
        if epoch % check_every == 0 or epoch == epochs:
            with torch.no_grad():
                error = ((net(held_contexts) - held_targets) ** 2).sum(1).mean().item()
            if error < best[0]:
                best = (error, epoch, [p.detach().clone() for p in net.parameters()])
    return best


def principal_basis(rows, *, limit):
    """Right singular vectors with the largest singular values, each with its largest entry positive."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0]][:limit]
    for vector in basis:
        if vector[np.argmax(np.abs(vector))] < 0:
            vector *= -1
    return basis


def l2s_network(z, c, *, train, held, layer, context_layer, count, rate, settings):
    """One network of one steered and one context layer: its error in the residual stream, and a function."""
    hidden = settings.hidden
    mean = c[train].mean(0)
    inward = principal_basis(c[train] - mean, limit=count)
    outward = np.eye(z.shape[1])
    if settings.loss == "paper":
        outward = principal_basis(z[train], limit=count)
    inputs, targets = (c - mean) @ inward.T, z @ outward.T
    input_scale = np.sqrt((inputs[train] ** 2).sum(1).mean() / len(inward))
    unit = np.sqrt((targets[train] ** 2).sum(1).mean() / hidden)
    first = np.zeros((hidden, len(outward)))
    basis = principal_basis(targets[train] - targets[train].mean(0), limit=hidden)
    first[: len(basis)] = basis
    seed = np.random.SeedSequence((settings.seed, layer, context_layer)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(seed))
    bound = len(inward) ** -0.5
    drawn = torch.empty(hidden, len(inward) + 1).uniform_(-bound, bound, generator=generator)

    def tensor(values):
        return torch.tensor(values, dtype=torch.float64)

    _, epoch, weights = l2s_alone(
        tensor(inputs[train] / input_scale),
        tensor(targets[train] / unit),
        tensor(inputs[held] / input_scale),
        tensor(targets[held] / unit),
        encoder=drawn[:, :-1],
        bias=drawn[:, -1],
        decoder=tensor(first),
        unit=unit,
        rate=rate,
        loss=settings.loss,
        epochs=settings.epochs,
        batch=settings.batch,
        check_every=settings.check_every,
        seed=settings.seed,
    )
    w1, b1, w2 = (w.numpy() for w in weights)

    def predict(context):
        h = np.tanh(w1 @ (inward @ (context - mean) / input_scale) + b1)
        return outward.T @ (w2 @ h) * unit

    error = sum(((z[i] - predict(c[i])) ** 2).sum() for i in held) / len(held)
    return error, epoch, predict
