"""W2S: learn from slopes which layer to steer each prompt at ("Where to Steer", 2026).

Cross-validation inside train searches the grid by the slope that the choice reaches; the chosen
setting is then trained on all train samples, once a seed. Knows slopes and embeddings as arrays;
refuses to know models, stores and test samples.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from actcache.analysis.predict.w2s.cross_validate import choose, fixed_reached, search, shared_rows
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor, check_embeddings
from actcache.analysis.predict.w2s.mlp_stack import Trained, train_classifiers
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.stats.pca import principal_basis
from actcache.analysis.sweep.layer_ranks import active_layers, layer_frequencies, smoothed_labels
from actcache.errors import MismatchError, NotFiniteError


def n_networks(settings: W2SSettings) -> int:
    """How many networks `train_layer_predictors` trains, at most: what `on_network` adds up to."""
    grid = len(list(product(settings.rates, settings.widths, settings.depths, settings.decays)))
    return len(settings.top) * (grid * settings.folds + settings.seeds)


def train_layer_predictors(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float[np.ndarray, "n layer"],
    *,
    train: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    letters: Sequence[str],
    layers: Sequence[int] | Int64[np.ndarray, " layer"],
    settings: W2SSettings,
    device: str = "cpu",
    on_network: Callable[[int], object] = lambda _: None,
) -> dict[int, LayerPredictor]:
    """Train one predictor for each K of frequency smoothing, all of them together.

    A network is an MLP with ReLU on the embedding, taught the (smoothed) best layer of each sample
    by cross-entropy and AdamW, as in "Where to Steer" (2026), section 4. Labels, frequencies and
    active layers of a fold come from that fold's own train part; layers that are not active there
    are closed. A setting's value is the mean slope at the layer that it predicts, over all held-out
    samples; no model is run, since the slopes of all layers are known.

    Embeddings are centred on the train mean and turned into the principal directions of all train
    samples, then divided by one number. That loses nothing with `components=None`, as train samples
    span no more; but AdamW's step is not the same in every basis, so this is AdamW in the principal
    one, not in the encoder's.

    Args:
        embeddings: one a sample, of unit norm. Rows outside `train` are never read.
        slope: steerability of each sample at each layer, from a sweep; as above.
        train: samples to learn from.
        groups: prompt of each sample: equal ones but for white space and case are in one fold.
        letters: letter of each sample's positive completion; folds balance them.
        layers: number of each layer that was swept, rising; the columns of `slope`.
        settings: the grid and the rest.
        device: where networks are trained.
        on_network: told how many more networks are done.

    Returns:
        The predictors by K.

    Raises:
        MismatchError: no train samples, fewer than two distinct train prompts, shapes that differ,
            an embedding whose norm is not 1, or a K above the number of layers.
        NotFiniteError: a train sample's slope or embedding is not finite; names the sample.
    """
    rows = _check(embeddings, slope, train, groups, letters, layers)
    slope = np.asarray(slope[rows], np.float64)
    center, basis = principal_basis(embeddings[rows], components=settings.components)
    inputs = (embeddings[rows] - center) @ basis  # [train, p]
    fold = grouped_folds(
        [groups[i] for i in rows],
        [letters[i] for i in rows],
        n_folds=settings.folds,
        seed=settings.seed,
    )
    reached = search(inputs, slope, fold, settings, device, on_network)
    fixed = fixed_reached(slope, fold)
    found = [choose(table, fixed, settings) for table in reached]
    weights = _refit(
        inputs, slope, [choice.setting for choice in found], settings, device, on_network
    )
    predictors = {}
    for top, choice, networks in zip(settings.top, found, weights, strict=True):
        labels = smoothed_labels(slope, top=top, frequency=layer_frequencies(slope))
        predictors[top] = LayerPredictor(
            top=top,
            layers=np.asarray(layers, np.int64),
            active=active_layers(labels),
            chosen=choice.setting,
            cv_value=float(choice.table.max()),
            cv_crossfit=choice.crossfit,
            cv_fixed=float(fixed.mean()),
            cv_gain=choice.crossfit - float(fixed.mean()),
            cv_gain_error=float(choice.gain.std(ddof=1) / len(rows) ** 0.5),
            n_folds=int(fold.max()) + 1,
            cv=choice.table,
            settings=settings,
            center=center,
            basis=basis,
            weights=networks,
        )
    return predictors


def _refit(
    inputs: Float32[np.ndarray, "n p"],
    slope: Float64[np.ndarray, "n layer"],
    chosen: Sequence[ChosenSetting],
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> list[tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Matrices and biases `[seed, …]` of each K's setting, trained on all samples."""
    frequency = layer_frequencies(slope)
    labels = [smoothed_labels(slope, top=top, frequency=frequency) for top in settings.top]
    weights: list[tuple[tuple[np.ndarray, np.ndarray], ...]] = []
    for own, setting in zip(labels, chosen, strict=True):
        parts = [
            shared_rows(inputs, own[None], slope.shape[1], [settings.seed, 1, number], inputs[:0])
            for number in range(settings.seeds)
        ]
        trained = train_classifiers(
            parts,
            width=setting.width,
            depth=setting.depth,
            rates=[setting.rate],
            decays=[setting.decay],
            epochs=[setting.epochs],
            batch=settings.batch,
            device=device,
            on_part=on_network,
        )
        weights.append(_stacked(trained))
    return weights


def _stacked(trained: Sequence[Trained]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    layers = zip(*[part.weights for part in trained], strict=True)
    return tuple(
        (np.concatenate([w for w, _ in layer]), np.concatenate([b for _, b in layer]))
        for layer in layers
    )


def _check(
    embeddings: Float32[np.ndarray, "n e"],
    slope: Float[np.ndarray, "n layer"],
    train: Bool[np.ndarray, " n"],
    groups: Sequence[str],
    letters: Sequence[str],
    layers: Sequence[int] | Int64[np.ndarray, " layer"],
) -> Int64[np.ndarray, " train"]:
    """Places of the train samples."""
    counts = {"slopes": len(slope), "train flags": len(train), "prompts": len(groups)}
    for name, count in {**counts, "letters": len(letters)}.items():
        if count != len(embeddings):
            raise MismatchError(
                f"{count} {name} came with {len(embeddings)} embeddings. Pass one a sample."
            )
    if len(layers) != slope.shape[1]:
        raise MismatchError(
            f"{len(layers)} layers came with slopes at {slope.shape[1]}. Pass one a column."
        )
    rows = np.flatnonzero(train)
    if not len(rows):
        raise MismatchError("the train split has no sample, expected some. Give rows a split.")
    bad = rows[~np.isfinite(slope[rows]).all(1)]
    if len(bad):
        raise NotFiniteError(
            f"a slope of sample {bad[0]} is not finite. Sweep again, or leave that sample out."
        )
    check_embeddings(embeddings, rows)
    return rows
