"""Trains W2S classifiers: cross-validation inside train, then the chosen settings on all of train.

"Where to Steer" (2026), section 4. Gives what `layer_predictor` makes predictors of; knows nothing
of models, stores and test samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from actcache.analysis.predict.w2s.cross_validate import (
    Choice,
    choose,
    fixed_reached,
    search,
    shared_rows,
)
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.analysis.predict.w2s.mlp_stack import Part, train_classifiers
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.stats.pca import principal_basis
from actcache.analysis.sweep.layer_ranks import active_layers, layer_frequencies, smoothed_labels


@dataclass(frozen=True, kw_only=True)
class TrainedClassifiers:
    """What training gives: one choice, network stack and set of active layers for each K."""

    n_folds: int
    """Folds that were used."""

    fixed: Float64[np.ndarray, " n"]
    """Each train sample's slope at the layer that is best on average over the other folds."""

    choices: Sequence[Choice]
    active: Sequence[Int64[np.ndarray, " _"]]
    weights: Sequence[tuple[tuple[np.ndarray, np.ndarray], ...]]
    """Matrix `[seed, out, in]` and bias `[seed, out]` of each linear layer."""

    center: Float32[np.ndarray, " e"]
    basis: Float32[np.ndarray, "e p"]


def train_all(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float64[np.ndarray, "n layer"],
    *,
    groups: Sequence[str],
    letters: Sequence[str],
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> TrainedClassifiers:
    """Search the grid and train the chosen settings; all arguments are of train samples alone."""
    center, basis = principal_basis(embeddings, components=settings.components)
    inputs = (embeddings - center) @ basis  # [n, p]
    fold = grouped_folds(groups, letters, n_folds=settings.folds, seed=settings.seed)
    reached = search(inputs, slope, fold, settings, device, on_network)
    fixed = fixed_reached(slope, fold)
    choices = [choose(table, fixed, settings) for table in reached]
    frequency = layer_frequencies(slope)
    labels = [smoothed_labels(slope, top=top, frequency=frequency) for top in settings.top]
    weights = []
    for taught, choice in zip(labels, choices, strict=True):
        # One part a seed: the same rows in another order, from other initial weights.
        parts = [
            shared_rows(
                inputs, taught[None], slope.shape[1], [settings.seed, 1, number], inputs[:0]
            )
            for number in range(settings.seeds)
        ]
        weights.append(_refit(parts, choice.setting, settings, device, on_network))
    return TrainedClassifiers(
        n_folds=int(fold.max()) + 1,
        fixed=fixed,
        choices=choices,
        active=[active_layers(taught) for taught in labels],
        weights=weights,
        center=center,
        basis=basis,
    )


def _refit(
    parts: Sequence[Part],
    chosen: ChosenSetting,
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Train one setting on each part; matrices and biases `[seed, …]` of each linear layer."""
    trained = train_classifiers(
        parts,
        width=chosen.width,
        depth=chosen.depth,
        rates=[chosen.rate],
        decays=[chosen.decay],
        epochs=[chosen.epochs],
        batch=settings.batch,
        device=device,
        on_part=on_network,
    )
    layers = zip(*[part.weights for part in trained], strict=True)
    return tuple(
        (np.concatenate([w for w, _ in layer]), np.concatenate([b for _, b in layer]))
        for layer in layers
    )
