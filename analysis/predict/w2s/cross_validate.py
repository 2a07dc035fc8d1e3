"""Cross-validation of W2S: every point of the grid on every fold, and the one that steers best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from actcache.analysis.predict.w2s.mlp_stack import Part, train_classifiers
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.sweep.layer_ranks import layer_frequencies, smoothed_labels

DRAWS = 200
"""Bootstrap draws that correct the value of the chosen point."""


def search(
    inputs: Float[np.ndarray, "n p"],
    slope: Float64[np.ndarray, "n layer"],
    fold: Int64[np.ndarray, " n"],
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> Float64[np.ndarray, "top n rate width depth decay epochs"]:
    """Slope at the layer predicted for each sample while it is held out, at every grid point.

    Inputs are train samples' embeddings in principal directions. Networks of one fold, width and
    depth are trained together: all K, rates and decays.
    """
    top, rates, decays = settings.top, settings.rates, settings.decays
    networks = list(product(range(len(top)), rates, decays))
    parts, held_out_rows = [], []
    for number in range(int(fold.max()) + 1):
        inside, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        frequency = layer_frequencies(slope[inside])
        by_top = [smoothed_labels(slope[inside], top=k, frequency=frequency) for k in top]
        labels = np.stack([by_top[i] for i, _, _ in networks])
        seed = [settings.seed, 0, number]
        parts.append(shared_rows(inputs[inside], labels, slope.shape[1], seed, inputs[held_out]))
        held_out_rows.append(held_out)
    sizes = (len(rates), len(settings.widths), len(settings.depths), len(decays))
    reached = np.empty((len(top), len(slope), *sizes, len(settings.epochs)))
    for (w, width), (d, depth) in product(enumerate(settings.widths), enumerate(settings.depths)):
        trained = train_classifiers(
            parts,
            width=width,
            depth=depth,
            rates=[rate for _, rate, _ in networks],
            decays=[decay for _, _, decay in networks],
            epochs=settings.epochs,
            batch=settings.batch,
            device=device,
            on_part=on_network,
        )
        for held_out, networks_of_fold in zip(held_out_rows, trained, strict=True):
            scores = slope[held_out, networks_of_fold.predicted]  # [epochs, k, m]
            # The k networks are every (top, rate, decay), in the order of `networks`.
            split = (len(settings.epochs), len(top), len(rates), len(decays), len(held_out))
            of_shape = reached[:, :, :, w, d]  # a view: [top, n, rate, decay, epochs]
            of_shape[:, held_out] = scores.reshape(split).transpose(1, 4, 2, 3, 0)
    return reached


@dataclass(frozen=True)
class Choice:
    """The best point of the grid, and its value on held-out samples."""

    setting: ChosenSetting
    """The point with the largest mean."""

    table: Float64[np.ndarray, "rate width depth decay epochs"]
    """Mean of each point."""

    gain: Float64[np.ndarray, " n"]
    """Slope of each sample at points that were chosen without it, minus that at the fixed layer:
    its mean is free of the bias of having chosen the largest, and its spread gives the error."""


def choose(
    reached: Float64[np.ndarray, "n rate width depth decay epochs"],
    fixed: Float64[np.ndarray, " n"],
    settings: W2SSettings,
) -> Choice:
    """Choose the point of the grid with the largest mean over samples, the first of equals.

    The largest of many means is biased upwards. So samples are drawn with replacement, `DRAWS`
    times; the best point of the drawn samples is scored on those that were not drawn, beside the
    fixed layer on the same ones (Tsamardinos, Greasidou & Borboudakis 2018, BBC-CV). Scores are
    averaged sample by sample, so that their mean and its standard error are of one estimator.
    """
    n = len(reached)
    points = reached.reshape(n, -1)  # [n, point]
    rng = np.random.default_rng([settings.seed, 2])
    # How often each sample is in each draw; a product with it gives the means of all draws.
    counts = np.stack(
        [np.bincount(drawn, minlength=n) for drawn in rng.integers(n, size=(DRAWS, n))]
    )
    best = (counts @ points).argmax(1)  # [draw]
    left_out = counts == 0  # [draw, n]
    gains = (points[:, best] - fixed[:, None]).T  # [draw, n]
    # Of two samples or more, each is left out of some draw: one in four, or more, leave it out.
    gain = (gains * left_out).sum(0) / left_out.sum(0)
    table = reached.mean(0)
    rate, width, depth, decay, epochs = np.unravel_index(table.argmax(), table.shape)
    setting = ChosenSetting(
        rate=settings.rates[rate],
        width=settings.widths[width],
        depth=settings.depths[depth],
        decay=settings.decays[decay],
        epochs=settings.epochs[epochs],
    )
    return Choice(
        setting=setting,
        table=table,
        gain=gain,
    )


def fixed_reached(
    slope: Float64[np.ndarray, "n layer"], fold: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Each sample's slope at the layer that is best on average over the other folds."""
    reached = np.empty(len(slope))
    for number in range(int(fold.max()) + 1):
        held_out = fold == number
        reached[held_out] = slope[held_out, slope[~held_out].mean(0).argmax()]
    return reached


def shared_rows(
    inputs: Float[np.ndarray, "rows p"],
    labels: Int64[np.ndarray, "k rows"],
    n_layers: int,
    seed: Sequence[int],
    held_out: Float[np.ndarray, "m p"],
) -> Part:
    """Give k networks rows of one fold; each chooses among the layers that occur in its labels.

    The numbers of `seed` are mixed to one; `n_layers` counts all layers, active or not.
    """
    allowed = np.zeros((len(labels), n_layers), bool)
    np.put_along_axis(allowed, labels, True, axis=1)
    return Part(
        inputs=torch.from_numpy(inputs),
        labels=torch.from_numpy(labels),
        allowed=torch.from_numpy(allowed),
        held_out=torch.from_numpy(held_out),
        seed=int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]),
    )
