"""The rows behind the charts of an analysis, from its summary."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from actcache.analysis.names import (
    CROSS_FITTED,
    DIRECTION_SETS,
    FIXED,
    MOST_FREQUENT,
    RANDOM,
    RANDOM_ACTIVE,
    RANKS,
    W2S_SHUFFLED,
    strategy_label,
)
from actcache.analysis.report.html.result_charts import KINDS
from actcache.analysis.report.plots import change_from_unsteered
from actcache.analysis.report.predictor_tables import MEAN
from actcache.analysis.summary import (
    LayerScores,
    PredictorScores,
    StrategyScore,
    Summary,
    SweepSummary,
)

Rows = list[dict[str, Any]]

PREDICTED, ON_TRAIN, ON_TEST = KINDS
_ON_TRAIN = (FIXED, MOST_FREQUENT, RANDOM, RANDOM_ACTIVE)


def framing_of(name: str) -> tuple[str, str]:
    """Part `behavior@variant`; a behavior alone is of base prompts."""
    behavior, _, framing = name.partition("@")
    return behavior, framing or "base"


def layer_rows(sweep: SweepSummary) -> Rows:
    """Mean slope by layer, of each behavior and framing, and of its random directions."""
    rows = []
    for name, scores in sweep.behaviors.items():
        behavior, framing = framing_of(name)
        vectors = {"steered": scores}
        if framing == "base":
            vectors |= {f"random {k + 1}": random for k, random in enumerate(scores.control)}
        for vector, of_vector in vectors.items():
            for place, layer in enumerate(sweep.layers):
                interval = of_vector.by_layer[place]
                rows.append(
                    {
                        "behavior": behavior,
                        "framing": framing,
                        "vector": vector,
                        "layer": layer,
                        "slope": interval.value,
                        "low": interval.low,
                        "high": interval.high,
                        "share": of_vector.share_by_layer[place],
                        "fixed": layer == scores.fixed_layer,
                    }
                )
    return rows


def grid_rows(sweep: SweepSummary) -> Rows:
    """Mean propensity of each layer and multiplier, and its change from multiplier 0."""
    rows = []
    for behavior, grid in sweep.mean_propensity.items():
        values = np.array(grid)
        change = change_from_unsteered(values, np.array(sweep.multipliers))
        fixed = sweep.behaviors[behavior].fixed_layer if behavior in sweep.behaviors else None
        for place, layer in enumerate(sweep.layers):
            for column, multiplier in enumerate(sweep.multipliers):
                rows.append(
                    {
                        "behavior": behavior,
                        "layer": layer,
                        "multiplier": multiplier,
                        "change": change[place, column],
                        "propensity": values[place, column],
                        "fixed": layer == fixed,
                    }
                )
    return rows


def strategy_rows(summary: Summary) -> Rows:
    """What every strategy is worth: mean over behaviors in each framing, behaviors in base."""
    if summary.predictors is not None:
        return _predictor_strategies(summary.predictors)
    rows = []
    for name, scores in summary.behaviors.items():
        behavior, framing = framing_of(name)
        strategies = {
            FIXED: scores.fixed,
            RANDOM: scores.random,
            "oracle": scores.oracle,
            CROSS_FITTED: scores.cross_fitted,
        }
        rows += _strategies("caa", behavior, framing, strategies)
    return rows


def _predictor_strategies(scores: PredictorScores) -> Rows:
    rows = []
    for name in (name for name in DIRECTION_SETS if name in scores.sets):
        for framing, tested in scores.sets[name].variants.items():
            rows += _strategies(name, MEAN, framing, tested.mean)
            if framing == "base":
                for behavior, strategies in tested.behaviors.items():
                    rows += _strategies(name, behavior, framing, strategies)
    return rows


def _strategies(
    vectors: str, behavior: str, framing: str, strategies: Mapping[str, StrategyScore | None]
) -> Rows:
    return [
        {
            "vectors": DIRECTION_SETS[vectors],
            "behavior": behavior,
            "framing": framing,
            "strategy": strategy_label(key),
            "kind": _kind(key),
            "drawn": key in (RANDOM, RANDOM_ACTIVE),
            "order": (PREDICTED, ON_TRAIN, ON_TEST).index(_kind(key)),
            "slope": score.slope.value,
            "low": score.slope.low,
            "high": score.slope.high,
            "gain": score.gain.value,
            "gain_low": score.gain.low,
            "gain_high": score.gain.high,
            "share": score.share,
        }
        for key, score in strategies.items()
        if score is not None and key not in RANKS[1:]  # far below, and in the tables
    ]


def _kind(strategy: str) -> str:
    """What a strategy looks at; the shuffled predictor is a predictor too."""
    if strategy in _ON_TRAIN:
        return ON_TRAIN
    return PREDICTED if strategy.startswith("w2s") or strategy == W2S_SHUFFLED else ON_TEST


def letter_rows(summary: Summary) -> Rows:
    """Slope at the fixed layer of all base test samples, and by letter of the positive answer."""
    return [
        {
            "behavior": name,
            "letter": letter,
            "n": scores.n,
            "slope": scores.fixed.slope.value,
            "low": scores.fixed.slope.low,
            "high": scores.fixed.slope.high,
            "share": scores.fixed.share,
        }
        for name, whole in summary.behaviors.items()
        if "@" not in name and whole.by_letter
        for letter, scores in {"all": whole, **whole.by_letter}.items()
    ]


def class_rows(layers: Mapping[str, LayerScores], labels: tuple[str, str]) -> Rows:
    """Mean projection of both classes at every layer, with how well they are told apart."""
    return [
        {
            "label": label,
            "layer": layer,
            "mean": scores.class_mean[k, layer],
            "low": scores.interval[k, layer, 0],
            "high": scores.interval[k, layer, 1],
            "discriminative": scores.discriminative[layer],
            "auc": scores.auc[layer],
            "fisher": scores.fisher[layer],
            "first": k == 0,
        }
        for scores in layers.values()
        for k, label in enumerate(labels)
        for layer in range(len(scores.auc))
    ]
