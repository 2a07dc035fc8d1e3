"""What does W2S's cross-validated grid cost beside one network at a time, and is its choice the same?

One at a time is the usual PyTorch: torch.nn.Sequential, cross_entropy, AdamW, one
network after another. It is timed (a) in the same principal directions and (b) on the raw
embeddings, both on a sample of the networks (as many of each shape), scaled up; the figures say
so. All networks are also trained once as in (a), to compare losses, predictions and choice.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from actcache.analysis.predict.w2s.cross_validate import choose, fixed_reached, search, shared_rows
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.analysis.predict.w2s.mlp_stack import (
    Part,
    Shape,
    batch_orders,
    initial_weights,
    train_classifiers,
)
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.stats.pca import principal_basis
from actcache.analysis.sweep.layer_ranks import layer_frequencies, smoothed_labels
from benchmarks.support.turns import arguments, in_turns, ratio, report


@dataclass(frozen=True)
class Cell:
    """One network of the grid."""

    fold: int
    top: int
    width: int
    depth: int
    rate: float
    decay: float


def planted(n: int, e: int, n_layers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make embeddings of eight topics, and slopes that peak at a layer of the topic."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(8, size=n)
    embeddings = rng.standard_normal((n, e)) * np.arange(1, e + 1) ** -0.7
    embeddings /= np.sqrt((embeddings**2).sum(1).mean())
    centers = rng.standard_normal((8, e))
    embeddings += 0.4 * centers[topic] / np.linalg.norm(centers[topic], axis=1)[:, None]
    embeddings /= np.linalg.norm(embeddings, axis=1)[:, None]
    best = rng.choice(n_layers, 8, replace=False)[topic]
    distance = (np.arange(n_layers) - best[:, None]) / (n_layers / 12)
    slope = 1.5 * np.exp(-(distance**2)) + 0.5 * rng.standard_normal((n, n_layers))
    return embeddings.astype(np.float32), slope


def moved(part: Part, device: str) -> Part:
    names = ("inputs", "labels", "allowed", "held_out")
    return replace(part, **{name: getattr(part, name).to(device) for name in names})


def alone(
    part: Part, cell: Cell, settings: W2SSettings, device: str
) -> tuple[list[float], torch.Tensor]:
    """Train one network in PyTorch; return loss and held-out classes at each checkpoint."""
    shape = Shape(
        n_inputs=part.inputs.shape[1],
        width=cell.width,
        depth=cell.depth,
        n_outputs=part.allowed.shape[1],
    )
    modules: list[torch.nn.Module] = []
    for matrix, bias in initial_weights(part.seed, shape):
        linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
        linear.load_state_dict({"weight": matrix, "bias": bias})
        modules += [linear, torch.nn.ReLU()]
    network = settings.top.index(cell.top)
    net = torch.nn.Sequential(*modules[:-1]).to(device)
    closed = torch.zeros(shape.n_outputs, device=device).masked_fill(
        ~part.allowed[network], -torch.inf
    )
    labels = part.labels[network]
    optimizer = torch.optim.AdamW(net.parameters(), lr=cell.rate, weight_decay=cell.decay)
    orders = batch_orders(part.seed, len(part.inputs))
    losses, predicted = [], []
    for epoch in range(1, settings.epochs[-1] + 1):
        order, total = next(orders).to(device), torch.zeros((), device=device)
        for rows in order.split(settings.batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(part.inputs[rows]) + closed, labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows) / len(order)
        if epoch in settings.epochs:
            losses.append(float(total))
            with torch.no_grad():
                predicted.append((net(part.held_out) + closed).argmax(1))
    return losses, torch.stack(predicted)


def cells_of(settings: W2SSettings) -> list[Cell]:
    axes = (settings.top, settings.widths, settings.depths, settings.rates, settings.decays)
    return [Cell(*point) for point in product(range(settings.folds), *axes)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=400, help="train samples (default 400)")
    parser.add_argument("--e", type=int, default=4096, help="length of embeddings (default 4096)")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--sample", type=int, default=3, help="networks of each shape (default 3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small: does it run at all?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = W2SSettings()
    if args.quick:
        args.n, args.e, args.layers, args.repeats, args.sample = 60, 64, 8, 1, 1
        settings = replace(settings, widths=(8, 16), epochs=(1, 3), folds=2)
    embeddings, slope = planted(args.n, args.e, args.layers)
    fold = grouped_folds(
        [str(i) for i in range(args.n)],
        ["AB"[i % 2] for i in range(args.n)],
        n_folds=settings.folds,
        seed=settings.seed,
    )

    def principal() -> np.ndarray:
        center, basis = principal_basis(embeddings, components=settings.components)
        inputs: np.ndarray = (embeddings - center) @ basis
        return inputs

    def parts_of(inputs: np.ndarray) -> list[Part]:
        """Make one part a fold; network i learns the labels of the i-th K."""
        parts = []
        for number in range(settings.folds):
            inside = fold != number
            frequency = layer_frequencies(slope[inside])
            labels = [
                smoothed_labels(slope[inside], top=k, frequency=frequency) for k in settings.top
            ]
            seed = [settings.seed, 0, number]
            parts.append(
                shared_rows(inputs[inside], np.stack(labels), args.layers, seed, inputs[~inside])
            )
        return parts

    in_basis, raw = (
        [moved(part, args.device) for part in parts_of(inputs)]
        for inputs in (principal(), embeddings)
    )
    cells = cells_of(settings)
    rng = np.random.default_rng(0)
    sample = []
    for shape in product(settings.widths, settings.depths):
        same = [cell for cell in cells if (cell.width, cell.depth) == shape]
        sample += [same[i] for i in rng.choice(len(same), args.sample, replace=False)]
    reached = np.empty(0)

    def search_grid() -> None:
        nonlocal reached
        reached = search(principal(), slope, fold, settings, args.device, lambda _: None)

    def one_by_one(parts: list[Part]) -> None:
        for cell in sample:
            alone(parts[cell.fold], cell, settings, args.device)

    start = time.perf_counter()
    took = in_turns(
        {
            "grid": search_grid,
            "alone": lambda: one_by_one(in_basis),
            "raw": lambda: one_by_one(raw),
        },
        repeats=args.repeats,
    )
    scale = len(cells) / len(sample)
    figures = {
        "(b) one at a time on raw embeddings / grid (timed on a sample)": scale
        / ratio(took, "grid", "raw"),
        "(a) one at a time in the same basis / grid (timed on a sample)": scale
        / ratio(took, "grid", "alone"),
        "grid, seconds": min(took["grid"]),
    }
    report(
        "w2s",
        figures | same_choice(in_basis, reached, slope, fold, settings, args.device),
        about={
            "train samples": args.n,
            "embedding": args.e,
            "layers": args.layers,
            "networks": len(cells),
            "sampled": len(sample),
            "seconds in all": round(time.perf_counter() - start),
        },
    )


def same_choice(
    parts: list[Part],
    reached: np.ndarray,
    slope: np.ndarray,
    fold: np.ndarray,
    settings: W2SSettings,
    device: str,
) -> dict[str, object]:
    """Train all networks one at a time; compare losses, predictions and choice with the grid's."""
    other = np.empty_like(reached)
    errors: list[float] = []
    start = time.perf_counter()
    losses_of = {}
    for cell in cells_of(settings):
        losses, classes = alone(parts[cell.fold], cell, settings, device)
        losses_of[cell] = losses
        held_out = np.flatnonzero(fold == cell.fold)
        place = (
            settings.top.index(cell.top),
            held_out,
            settings.rates.index(cell.rate),
            settings.widths.index(cell.width),
            settings.depths.index(cell.depth),
            settings.decays.index(cell.decay),
        )
        other[place] = slope[held_out, classes.cpu().numpy()].T
    took = time.perf_counter() - start
    for width, depth in product(settings.widths, settings.depths):
        networks = list(product(settings.top, settings.rates, settings.decays))
        stacked = train_classifiers(
            [
                replace(
                    part,
                    labels=part.labels.repeat_interleave(len(networks) // len(settings.top), 0),
                    allowed=part.allowed.repeat_interleave(len(networks) // len(settings.top), 0),
                )
                for part in parts
            ],
            width=width,
            depth=depth,
            rates=[rate for _, rate, _ in networks],
            decays=[decay for _, _, decay in networks],
            epochs=settings.epochs,
            batch=settings.batch,
            device=device,
        )
        for number, trained in enumerate(stacked):
            for i, (top, rate, decay) in enumerate(networks):
                cell = Cell(number, top, width, depth, rate, decay)
                errors.append(float(np.abs(trained.loss[:, i] / losses_of[cell] - 1).max()))
    fixed = fixed_reached(slope, fold)
    by_grid, one_at_a_time = (
        [choose(table, fixed, settings) for table in tables] for tables in (reached, other)
    )
    n_alike = sum(a.setting == b.setting for a, b in zip(by_grid, one_at_a_time, strict=True))
    return {
        "all networks of (a), one at a time once, seconds": took,
        "relative difference of losses, median over networks": float(np.median(errors)),
        "relative difference of losses, largest": max(errors),
        "held-out slopes that differ (share)": float((reached != other).mean()),
        "points chosen alike, of the K": f"{n_alike} of {len(by_grid)}",
        "largest difference of a chosen point's value": max(
            abs(a.table.max() - b.table.max()) for a, b in zip(by_grid, one_at_a_time, strict=True)
        ),
        "value of the chosen points": [round(float(a.table.max()), 4) for a in by_grid],
        "value of the fixed layer": round(float(fixed.mean()), 4),
    }


if __name__ == "__main__":
    main()
