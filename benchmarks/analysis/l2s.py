"""What do all L2S networks of a behavior cost beside one at a time in PyTorch, and are they as good?

Synthetic residuals of 1,000 rows, 400 of them train, 100 validation. Rival `basis` trains the same
networks from the same weights in the same coordinates, each alone, and must end at the same losses.
Rival `plain` is the usual script: `torch.nn.Linear` on the raw residuals, autograd, Adam. Both are
timed on one network and multiplied by the number of networks. `--store` compares the errors of both
on real residuals.
"""

import itertools
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from actcache.analysis.predict.l2s.coordinates import (
    SampleSplit,
    principal_coordinates,
)
from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.l2s.tanh_stack import Trained, Weights, networks_at_once, train_stack
from actcache.analysis.predict.l2s.vector_predictor import train_vector_predictor
from actcache.store.store import Store, open_store
from benchmarks.support.turns import arguments, in_turns, ratio, report

PLAIN_RATES = (5e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Rates of the usual script: 5e-5 and 1e-4 are those of the paper's code."""


PAUSES = 16
"""Plain networks that are timed between ours, in the run that trains all of them."""


class Residuals:
    """Layers of targets and contexts, made on request from 64 latents and noise."""

    def __init__(self, *, n: int, d: int) -> None:
        self._n, self._d = n, d
        self._latent = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
        self._latent /= np.sqrt(np.arange(1, 65, dtype=np.float32))
        self.seconds = 0.0

    def context(self, layer: int) -> Float32[np.ndarray, "n d"]:
        """Return what the networks read."""
        return self._made(self._latent, 2 * layer)

    def target(self, layer: int) -> Float32[np.ndarray, "n d"]:
        """Return what the networks predict."""
        return self._made(np.tanh(3 * self._latent[:, ::-1]), 2 * layer + 1)

    def _made(self, latent: np.ndarray, seed: int) -> np.ndarray:
        start = time.perf_counter()
        rng = np.random.default_rng(seed)
        out = rng.standard_normal((self._n, self._d), dtype=np.float32)
        out += latent @ rng.standard_normal((64, self._d), dtype=np.float32)
        out += 3 * rng.standard_normal(self._d, dtype=np.float32)
        self.seconds += time.perf_counter() - start
        return out


def train_alone(
    data: Sequence[Tensor],
    *,
    rate: float,
    settings: L2SSettings,
    first: Sequence[Tensor] | None = None,
    decoder: Tensor | None = None,
) -> tuple[float, nn.Module]:
    """Train one network the usual way; return its least held-out error, and the network then.

    Args:
        data: train contexts and targets, held-out contexts and targets.
        rate: learning rate of Adam.
        settings: everything else.
        first: initial encoder, bias and decoder; PyTorch's own by default.
        decoder: the initial decoder alone.
    """
    contexts, targets, held_contexts, held_targets = data
    inward = nn.Linear(contexts.shape[1], settings.hidden)
    outward = nn.Linear(settings.hidden, targets.shape[1], bias=False)
    with torch.no_grad():
        if first is not None:
            inward.weight.copy_(first[0])
            inward.bias.copy_(first[1])
            decoder = first[2]
        if decoder is not None:
            outward.weight.copy_(decoder.T)
    net = nn.Sequential(inward, nn.Tanh(), outward)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    n_steps = settings.epochs * -(-len(contexts) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(settings.seed)
    best = np.inf
    best_weights = {name: value.clone() for name, value in net.state_dict().items()}
    for epoch in range(1, settings.epochs + 1):
        for rows in torch.randperm(len(contexts), generator=generator).split(settings.batch):
            optimizer.zero_grad()
            loss = (net(contexts[rows]) - targets[rows]).square().sum(1).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % settings.check_every == 0 or epoch == settings.epochs:
            with torch.no_grad():
                error = (net(held_contexts) - held_targets).square().sum(1).mean().item()
            if error < best:
                best = error
                best_weights = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(best_weights)
    return best, net


def right_singular(targets: np.ndarray, hidden: int) -> Tensor:
    """Return an initial decoder: right singular vectors of the centred targets, then zeros."""
    vectors = np.linalg.svd(targets - targets.mean(0), full_matrices=False)[2][:hidden]
    padded = np.pad(vectors, ((0, hidden - len(vectors)), (0, 0)))
    return torch.tensor(padded, dtype=torch.float32)


def speed(
    residuals: Residuals,
    rows: SampleSplit,
    *,
    d: int,
    layers: int,
    settings: L2SSettings,
    repeats: int,
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Measure a stack of networks against both rivals; return also what trains a plain one."""
    limit = max(settings.components)
    contexts = principal_coordinates(
        residuals.context(0).astype(np.float64), rows, centred=True, limit=limit
    )
    r = contexts.train.shape[1]
    at_once = networks_at_once(
        hidden=settings.hidden,
        inputs=r,
        outputs=r + 1,
        samples=rows.n,
        device=torch.device("cpu"),
    )
    k = min(at_once, layers)
    targets = [
        principal_coordinates(
            residuals.target(layer).astype(np.float64), rows, centred=False, limit=limit
        )
        for layer in range(k)
    ]
    scale = contexts.size / r**0.5
    c, held_c = (
        torch.tensor(x / scale, dtype=torch.float32) for x in (contexts.train, contexts.held_out)
    )
    units = [one.size / settings.hidden**0.5 for one in targets]
    z, held_z = (
        torch.tensor(np.stack([getattr(x, side) / u for x, u in zip(targets, units, strict=True)]))
        for side in ("train", "held_out")
    )
    z, held_z = z.float(), held_z.float()
    generator = torch.Generator().manual_seed(0)
    first = Weights(
        encoder=torch.empty(k, settings.hidden, r).uniform_(
            -(r**-0.5), r**-0.5, generator=generator
        ),
        bias=torch.zeros(k, settings.hidden),
        decoder=torch.stack([right_singular(x.numpy(), settings.hidden) for x in z]),
    )
    context, target = residuals.context(0), residuals.target(0)
    plain_decoder = right_singular(target[rows.train], settings.hidden)
    plain_data = [
        torch.from_numpy(x[side]) for side in (rows.train, rows.held_out) for x in (context, target)
    ]
    rate = settings.rates[0]
    results: dict[str, Any] = {}

    def train_together() -> None:
        [results["ours"]] = train_stack(
            c,
            z,
            held_contexts=held_c,
            held_targets=held_z,
            first=first,
            units=torch.ones(k),
            rates=[rate],
            epochs=settings.epochs,
            batch=settings.batch,
            check_every=settings.check_every,
            seed=settings.seed,
        )

    def basis() -> None:
        weights = (first.encoder[0], first.bias[0], first.decoder[0])
        data = (c, z[0], held_c, held_z[0])
        results["basis"] = train_alone(data, rate=rate, settings=settings, first=weights)[0]

    def plain() -> None:
        train_alone(plain_data, rate=rate, settings=settings, decoder=plain_decoder)

    took = in_turns({"ours": train_together, "basis": basis, "plain": plain}, repeats=repeats)
    trained = results["ours"]
    assert isinstance(trained, Trained)
    first_loss = float(trained.error[0])
    figures = {
        "plain, one at a time / stack": k / ratio(took, "ours", "plain"),
        "same basis, one at a time / stack": k / ratio(took, "ours", "basis"),
        "loss of the first network, stack": first_loss,
        "loss of the first network, alone in the same basis": results["basis"],
        "relative difference": abs(first_loss / results["basis"] - 1),
        "networks in the stack": k,
        "coordinates": r,
        "multiply-adds of plain / ours": d / r,
    }
    return figures, plain


def whole(
    residuals: Residuals,
    masks: dict[str, np.ndarray],
    plain: Callable[[], None],
    *,
    layers: int,
    settings: L2SSettings,
) -> dict[str, Any]:
    """Train all networks by the public function, with a plain one now and then in between."""
    contexts = default_context_layers(layers)
    total = layers * len(contexts) * len(settings.components) * len(settings.rates)
    done: list[int] = []
    alone: list[float] = []

    def on_step(n: int) -> None:
        done.append(n)
        if sum(done) >= total * (len(alone) + 1) / PAUSES:
            begin = time.perf_counter()
            plain()
            alone.append(time.perf_counter() - begin)

    residuals.seconds = 0.0
    start = time.perf_counter()
    predictor = train_vector_predictor(
        residuals.target,
        residuals.context,
        layers=range(layers),
        context_layers=contexts,
        train=masks["train"],
        validation=masks["validation"],
        settings=settings,
        on_step=on_step,
    )
    seconds = time.perf_counter() - start - residuals.seconds - sum(alone)
    return {
        "networks in all": total,
        "plain, one at a time (scaled up) / all networks": float(np.mean(alone)) * total / seconds,
        "seconds for all, without making the residuals": seconds,
        "validation loss / that of the mean, median of layers": float(
            np.median(predictor.validation_loss / predictor.mean_loss)
        ),
        "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def quality(store: Store, behavior: str, *, layer: int, settings: L2SSettings) -> dict[str, Any]:
    """Return errors of one layer's networks over those of the train mean, ours and plain."""
    rows, split = store["behavior"] == behavior, store["split"]
    train, held, test = (
        np.flatnonzero(rows & (split == side)) for side in ("train", "validation", "test")
    )
    contexts = default_context_layers(store.n_layers)

    def target(of_layer: int) -> np.ndarray:
        sides = (store.resid(side).layer(of_layer) for side in ("positive", "negative"))
        return np.asarray(np.subtract(*sides, dtype=np.float32))

    def context(of_layer: int) -> np.ndarray:
        return np.asarray(store.resid("prompt").layer(of_layer), np.float32)

    predictor = train_vector_predictor(
        target,
        context,
        layers=[layer],
        context_layers=contexts,
        train=rows & (split == "train"),
        validation=rows & (split == "validation"),
        settings=settings,
    )
    z = target(layer)
    decoder = right_singular(z[train], settings.hidden)
    networks = []
    for context_layer, rate in itertools.product(contexts, PLAIN_RATES):
        c = context(context_layer)
        data = [torch.from_numpy(x[side]) for side in (train, held) for x in (c, z)]
        error, net = train_alone(data, rate=rate, settings=settings, decoder=decoder)
        with torch.no_grad():
            networks.append((error, net(torch.from_numpy(c[test])).numpy()))
    error, plain = min(networks, key=lambda network: network[0])
    predicted = predictor.directions(lambda of_layer: context(of_layer)[test])[:, 0]

    def share(predicted: np.ndarray) -> float:
        mean = z[train].mean(0, keepdims=True)
        return float(((predicted - z[test]) ** 2).sum() / ((mean - z[test]) ** 2).sum())

    return {
        f"{behavior}: validation, ours": float(
            predictor.validation_loss[0] / predictor.mean_loss[0]
        ),
        f"{behavior}: validation, plain": error / float(predictor.mean_loss[0]),
        f"{behavior}: test, ours": share(predicted),
        f"{behavior}: test, plain": share(plain),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--d", type=int, default=4096, help="width of the residuals (default 4096)")
    parser.add_argument("--layers", type=int, default=32, help="steered layers (default 32)")
    parser.add_argument("--n", type=int, default=1000, help="rows (default 1000); 40%% are train")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--exact", action="store_true", help="use all components in the whole behavior"
    )
    parser.add_argument("--no-whole", action="store_true", help="skip the whole behavior")
    parser.add_argument("--store", help="real residuals: how good are the networks?")
    parser.add_argument("--quick", action="store_true", help="small: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.d, args.layers, args.n, args.epochs, args.repeats = 256, 3, 100, 4, 1
    torch.set_num_threads(args.threads)
    about = {"threads": args.threads, "epochs": args.epochs}
    settings = L2SSettings(epochs=args.epochs)
    if args.store:
        with open_store(args.store) as store:
            layer = store.n_layers // 2
            figures: dict[str, Any] = {}
            for behavior in np.unique(store["behavior"]).tolist():
                figures |= quality(store, behavior, layer=layer, settings=settings)
        report("l2s, squared error over that of the mean", figures, about={**about, "layer": layer})
        return
    row = np.arange(args.n)
    masks = {
        "train": row < args.n * 2 // 5,
        "validation": (row >= args.n * 2 // 5) & (row < args.n // 2),
    }
    rows = SampleSplit(
        n=args.n, train=np.flatnonzero(masks["train"]), held_out=np.flatnonzero(masks["validation"])
    )
    exact = L2SSettings(epochs=args.epochs, components=(args.n,))
    residuals = Residuals(n=args.n, d=args.d)
    figures, plain = speed(
        residuals, rows, d=args.d, layers=args.layers, settings=exact, repeats=args.repeats
    )
    if not args.no_whole:
        chosen = exact if args.exact else settings
        figures |= whole(residuals, masks, plain, layers=args.layers, settings=chosen)
    about |= {"rows": args.n, "d": args.d, "layers": args.layers, "residuals": "synthetic"}
    report("l2s", figures, about=about)


if __name__ == "__main__":
    main()
