"""Scores of selected layers: what every strategy is worth, and how predictors were trained.

All are of test samples, but for cross-validation's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from actcache.analysis.names import FIXED, W2S_SHUFFLED, w2s
from actcache.analysis.predict.embedding_space import silhouette_by_behavior
from actcache.analysis.predict.outcome import (
    DirectionSetScores,
    EncoderScore,
    NetworkLayers,
    NetworkScore,
    TrainingScore,
    VariantScores,
)
from actcache.analysis.predict.selections import LayerSelections
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.layer_ranks import best_layers
from actcache.analysis.sweep.steerability import LETTER_SAMPLES
from actcache.analysis.sweep.strategies import (
    LayerStrategy,
    SplitScore,
    over_splits,
    score_behaviors,
)
from actcache.encoders import Embeddings

if TYPE_CHECKING:
    from actcache.analysis.predict.learned_vectors import LearnedVectors

Selections = Mapping[str, LayerSelections]
"""By behavior."""


def variants_of(selections: Selections) -> tuple[str, ...]:
    """Name the variants that test samples have, `base` first."""
    names = [v for c in selections.values() for v in c.rows.variant[c.rows.test].tolist()]
    return tuple(sorted(dict.fromkeys(names), key=lambda name: name != "base"))


def letters_of(selections: Selections) -> tuple[str, ...]:
    """Name the letters that enough test samples have."""
    counts = Counter(
        x for c in selections.values() for x in c.rows.letter[c.rows.test].tolist() if x
    )
    return tuple(sorted(x for x, n in counts.items() if n >= LETTER_SAMPLES))


def score_set(
    selections: Selections,
    *,
    layers: Sequence[int],
    variants: Sequence[str],
    letters: Sequence[str],
    top: Sequence[int],
    seed: int,
    draws: int,
    splits: Mapping[str, Sequence[SplitScore]],
) -> DirectionSetScores:
    """Score every strategy with one set of directions.

    `splits` has each behavior's fixed layer on several splits, or is empty.
    `layers` has the number of each layer, `top` the K of the predictors. Each set's bootstrap draws
    are its own, whatever others there are.
    """
    rng = np.random.default_rng(seed)
    by_variant = {}
    for variant in variants:
        behaviors, mean = score_behaviors(_tested(selections, variant), rng, draws=draws)
        if variant == "base" and splits:  # they are of base prompts
            mean = mean | {FIXED: over_splits(mean[FIXED], [splits[x] for x in behaviors])}
            behaviors = {
                behavior: scores | {FIXED: over_splits(scores[FIXED], [splits[behavior]])}
                for behavior, scores in behaviors.items()
            }
        by_variant[variant] = VariantScores(mean=mean, behaviors=behaviors)
    by_letter = {}
    for letter in letters:
        tested = _tested(selections, letter=letter)
        if tested:
            by_letter[letter] = score_behaviors(tested, rng, draws=draws)[1]
    primary = _primary(selections, top)
    over_shuffled = None
    if primary is not None:
        over_shuffled = gain_over_shuffled(_tested(selections), primary, rng, draws)
    return DirectionSetScores(
        fixed_layer={
            behavior: layers[selection.fixed] for behavior, selection in selections.items()
        },
        primary=primary,
        variants=by_variant,
        by_letter=by_letter,
        over_shuffled=over_shuffled,
        training={behavior: _training(selection) for behavior, selection in selections.items()},
        accuracy={behavior: _accuracy(selection) for behavior, selection in selections.items()},
        oracle_distance={
            behavior: float(np.abs(_best(selection) - selection.fixed).mean())
            for behavior, selection in selections.items()
        },
    )


def score_networks(
    learned: "LearnedVectors", selections: Selections, layers: Sequence[int]
) -> dict[str, NetworkScore]:
    """Read each behavior's networks, and those at its fixed layer, off their training."""
    scores = {}
    for behavior, networks in learned.networks.items():
        at = selections[behavior].fixed
        share = learned.letter_share(behavior)
        scores[behavior] = NetworkScore(
            fixed_layer=layers[at],
            context_layer=int(networks.context_layer[at]),
            components=int(networks.components[at]),
            rate=float(networks.rate[at]),
            epochs=int(networks.epoch[at]),
            validation_loss=float(networks.validation_loss[at]),
            mean_loss=float(networks.mean_loss[at]),
            letter_share=None if isinstance(share, str) else float(share[at]),
            no_letter=share if isinstance(share, str) else "",
            layers=NetworkLayers(
                context_layer=tuple(networks.context_layer.tolist()),
                validation_loss=tuple(networks.validation_loss.tolist()),
                mean_loss=tuple(networks.mean_loss.tolist()),
                letter_share=None if isinstance(share, str) else tuple(share.tolist()),
            ),
        )
    return scores


def score_encoder(
    embeddings: Embeddings, selections: Selections, behaviors: Shaped[np.ndarray, " n"]
) -> EncoderScore:
    """Score an encoder: behaviors apart, best layers predicted, steerability reached.

    Embeddings and behaviors are of all rows of the store, selections by predictors that read them.
    """
    tested = np.zeros(len(behaviors), bool)
    accuracy, value, fixed = [], [], []
    for selection in selections.values():
        rows = _base_test(selection)
        tested[selection.rows.at[rows]] = True
        name = next(iter(selection.predicted))
        accuracy.append(_accuracy(selection)[name])
        strategies = selection.strategies(rows)
        value.append(float(strategies[name].slope.mean()))
        fixed.append(float(strategies[FIXED].slope.mean()))
    silhouette = None
    if len(selections) > 1:
        silhouette = silhouette_by_behavior(embeddings.values[tested], behaviors[tested]).mean
    return EncoderScore(
        settings=embeddings.settings,
        n_dimensions=embeddings.values.shape[1],
        n_truncated=embeddings.n_truncated,
        silhouette=None if silhouette is None else float(silhouette),
        accuracy=float(np.mean(accuracy)),
        value=float(np.mean(value)),
        fixed=float(np.mean(fixed)),
    )


def _training(selections: LayerSelections) -> dict[str, TrainingScore]:
    return {
        name: TrainingScore(
            active_layers=tuple(predictor.active_layers.tolist()),
            chosen=predictor.chosen,
            n_folds=predictor.n_folds,
            cv_value=predictor.cv_value,
            cv_crossfit=predictor.cv_crossfit,
            cv_fixed=predictor.cv_fixed,
            cv_gain=predictor.cv_gain,
            cv_gain_error=predictor.cv_gain_error,
        )
        for name, predictor in selections.predictors.items()
    }


def _best(selections: LayerSelections) -> Int64[np.ndarray, " n"]:
    """Places of the base test samples' best layers."""
    return best_layers(selections.slopes.slope[_base_test(selections)])


def _accuracy(selections: LayerSelections) -> dict[str, float]:
    best, rows = _best(selections), _base_test(selections)
    return {
        name: float((layers[:, rows] == best).mean())
        for name, layers in selections.predicted.items()
    }


def _base_test(selections: LayerSelections) -> Bool[np.ndarray, " row"]:
    return np.asarray(selections.rows.test & (selections.rows.variant == "base"))


def _primary(selections: Selections, top: Sequence[int]) -> str | None:
    """The predictor that gained most in cross-validation, mean over behaviors."""
    if not all(selection.predictors for selection in selections.values()):
        return None
    gains = {
        name: np.mean([selection.predictors[name].cv_gain for selection in selections.values()])
        for name in map(w2s, top)
    }
    return max(gains, key=lambda name: gains[name])


def _tested(
    selections: Selections, variant: str = "base", letter: str | None = None
) -> dict[str, dict[str, LayerStrategy]]:
    """Strategies of the behaviors that have such test samples."""
    strategies = {}
    for behavior, selection in selections.items():
        rows = selection.rows.test & (selection.rows.variant == variant)
        if letter is not None:
            rows &= selection.rows.letter == letter
        if rows.any():
            strategies[behavior] = selection.strategies(rows)
    return strategies


def gain_over_shuffled(
    tested: Mapping[str, Mapping[str, LayerStrategy]],
    primary: str,
    rng: np.random.Generator,
    draws: int,
) -> Interval:
    """Compare a predictor with that of shuffled prompts on the same samples: mean gain over it."""
    compared = {
        behavior: {
            primary: replace(strategies[primary], base=strategies[W2S_SHUFFLED].slope.mean(0))
        }
        for behavior, strategies in tested.items()
    }
    return score_behaviors(compared, rng, draws=draws)[1][primary].gain
