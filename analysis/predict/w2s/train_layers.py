"""Trains W2S classifiers: cross-validation inside train, then the chosen settings on all of train.

"Where to Steer" (2026), section 4. Gives what `layer_predictor` makes predictors of; knows nothing
of models, stores and test samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from actcache.analysis.predict.w2s.cross_validate import choose, fixed_reached, search, shared_rows
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.analysis.predict.w2s.mlp_stack import Part, train_classifiers
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.stats.pca import principal_basis
from actcache.analysis.sweep.layer_ranks import active_layers, layer_frequencies, smoothed_labels


def train_all(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float64[np.ndarray, "n layer"],
    *,
    groups: Sequence[str],
    letters: Sequence[str],
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> list[dict[str, Any]]:
    """Search the grid and train the chosen settings, all on train samples.

    Gives for each K the fields of a `LayerPredictor` by their names.
    """
    center, basis = principal_basis(embeddings, components=settings.components)
    inputs = (embeddings - center) @ basis  # [n, p]
    fold = grouped_folds(groups, letters, n_folds=settings.folds, seed=settings.seed)
    reached = search(inputs, slope, fold, settings, device, on_network)
    fixed = fixed_reached(slope, fold)
    choices = [choose(table, fixed, settings) for table in reached]
    frequency = layer_frequencies(slope)
    labels = [smoothed_labels(slope, top=top, frequency=frequency) for top in settings.top]
    value = float(fixed.mean())
    predictors = []
    for top, taught, choice in zip(settings.top, labels, choices, strict=True):
        # One part a seed: the same rows in another order, from other initial weights.
        parts = [
            shared_rows(
                inputs, taught[None], slope.shape[1], [settings.seed, 1, number], inputs[:0]
            )
            for number in range(settings.seeds)
        ]
        predictors.append(
            {
                "top": top,
                "active": active_layers(taught),
                "chosen": choice.setting,
                "cv_value": float(choice.table.max()),
                "cv_crossfit": value + float(choice.gain.mean()),
                "cv_fixed": value,
                "cv_gain": float(choice.gain.mean()),
                "cv_gain_error": float(choice.gain.std(ddof=1) / len(slope) ** 0.5),
                "n_folds": int(fold.max()) + 1,
                "cv": choice.table,
                "settings": settings,
                "center": center,
                "basis": basis,
                "weights": _refit(parts, choice.setting, settings, device, on_network),
            }
        )
    return predictors


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
