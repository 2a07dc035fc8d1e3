"""Tables of predictors, after "Where to Steer": what is worth what, where, and for whom."""

from collections.abc import Mapping

from actcache.analysis.names import (
    CROSS_FITTED,
    DIRECTION_SETS,
    FIXED,
    ORACLE,
    W2S_SHUFFLED,
    strategy_label,
    w2s,
)
from actcache.analysis.report.tables import Table
from actcache.analysis.summary import PredictorScores, StrategyScore, Summary

MEAN = "mean over behaviors"
"""Stands in the column of behaviors for their mean."""


def short_table(summary: Summary) -> Table:
    """Make the first table without what is there for comparison alone: for a terminal."""
    top = summary.predictors.top if summary.predictors else ()
    return _strategy_table(summary, (FIXED, CROSS_FITTED, W2S_SHUFFLED, ORACLE, *map(w2s, top)))


def predictor_tables(summary: Summary) -> list[Table]:
    """Make all tables of the predictors."""
    scores = _scores(summary)
    tables = [_strategy_table(summary), _behavior_table(scores)]
    if len(scores.variants) > 1:
        tables += _variant_tables(scores)
    if scores.letters:
        tables.append(_letter_table(scores))
    tables += [_accuracy_table(scores), _active_table(scores), _training_table(scores)]
    if scores.networks:
        tables.append(_network_table(scores))
    return [*tables, _encoder_table(scores)]


def _scores(summary: Summary) -> PredictorScores:
    assert summary.predictors is not None, "the stage predictors did not run"
    return summary.predictors


def _strategy_table(summary: Summary, only: tuple[str, ...] | None = None) -> Table:
    scores = _scores(summary)
    n_behaviors = len(scores.behaviors)
    return Table(
        "Steerability on test samples, mean over behaviors",
        [
            {
                "layer chosen by": _label(name, strategy),
                "steerability (SE)": _steerability(strategy, score),
                "steerable (SE)": f"{score.share:.3f} ({score.share_error:.3f})",
                "gain over fixed": _gain(score) if strategy != FIXED else "",
                "verdict": summary.verdict_words("predictors", name, strategy),
            }
            for name in _sets(scores)
            for strategy, score in scores.sets[name].base.mean.items()
            if only is None or strategy in only
        ],
        f"Slope of propensity per unit multiplier; {n_behaviors} behavior"
        f"{'s' if n_behaviors > 1 else ''}, each counting the same. SE: over "
        f"{scores.seeds} trainings of the predictor, 0 where nothing is trained"
        f"{_over_splits(summary)}. Gain: with "
        "its 95 % interval, samples resampled. Oracle, second, third and fourth look at the "
        "test samples' own slopes; cross-fitted chooses with one half of the multipliers and "
        "is read with the other. Halves of a curved response have other slopes than the whole "
        "grid, so its slope stands beside the fixed layer's in the same halves.",
    )


def _over_splits(summary: Summary) -> str:
    if summary.config.splits == 1:
        return ""
    return (
        f"; of the fixed layer with CAA vectors and own differences over {summary.config.splits} "
        "splits (base prompts)"
    )


def _behavior_table(scores: PredictorScores) -> Table:
    columns = (FIXED, *map(w2s, scores.top), W2S_SHUFFLED, ORACLE)

    def row(behavior: str, name: str) -> dict[str, str]:
        of_set = scores.sets[name]
        one = behavior in of_set.fixed_layer
        strategies = of_set.base.behaviors[behavior] if one else of_set.base.mean
        distances = [*of_set.oracle_distance.values()]
        distance = of_set.oracle_distance[behavior] if one else sum(distances) / len(distances)
        return {
            "behavior": behavior,
            "vector": DIRECTION_SETS[name],
            "layer": str(of_set.fixed_layer[behavior]) if one else "",
            **{strategy_label(key): _with_error(strategies.get(key)) for key in columns},
            "oracle gain": _percent(strategies),
            "|best − fixed|": f"{distance:.2f}",
        }

    return Table(
        "Steerability by behavior",
        [row(behavior, name) for behavior in (*scores.behaviors, MEAN) for name in _sets(scores)],
        "Steerability (SE) / share of steerable samples. SE: over trainings of the predictor. "
        "Oracle gain: over the fixed layer, in percent of it. |best − fixed|: mean distance in "
        "layers of a sample's best layer from the fixed one.",
    )


def _accuracy_table(scores: PredictorScores) -> Table:
    def of(name: str, behavior: str, key: str) -> float:
        by_behavior = scores.sets[name].accuracy
        if behavior in by_behavior:
            return by_behavior[behavior][key]
        return sum(accuracy[key] for accuracy in by_behavior.values()) / len(by_behavior)

    return Table(
        "Best layers predicted",
        [
            {
                "behavior": behavior,
                "vector": DIRECTION_SETS[name],
                **{
                    strategy_label(key): f"{of(name, behavior, key):.0%}"
                    for key in (*map(w2s, scores.top), W2S_SHUFFLED)
                },
            }
            for behavior in (*scores.behaviors, MEAN)
            for name in _trained(scores)
        ],
        "Share of test samples whose best layer the predictor names.",
    )


def _variant_tables(scores: PredictorScores) -> list[Table]:
    """The mean over behaviors, and each behavior, under every framing of the test prompts."""
    columns = (FIXED, *map(w2s, scores.top), ORACLE)

    def row(name: str, strategy: str, behavior: str | None) -> dict[str, str]:
        def score(variant: str) -> StrategyScore | None:
            tested = scores.sets[name].variants[variant]
            strategies = tested.mean if behavior is None else tested.behaviors.get(behavior, {})
            return strategies.get(strategy)

        return {
            **({} if behavior is None else {"behavior": behavior}),
            "layer chosen by": _label(name, strategy),
            **{variant: _with_error(score(variant)) for variant in scores.variants},
        }

    def rows(behavior: str | None) -> list[dict[str, str]]:
        return [
            row(name, strategy, behavior)
            for name in _sets(scores)
            for strategy in columns
            if strategy in scores.sets[name].base.mean
        ]

    note = (
        "Steerability (SE) / share of steerable samples. SE: over trainings of the predictor. "
        "Directions, networks, fixed layers and predictors are of base train samples alone."
    )
    by_behavior = [row for behavior in scores.behaviors for row in rows(behavior)]
    return [
        Table("Other framings of the test prompts, mean over behaviors", rows(None), note),
        Table("Other framings of the test prompts, by behavior", by_behavior, note),
    ]


def _letter_table(scores: PredictorScores) -> Table:
    return Table(
        "By the letter of the positive completion, mean over behaviors",
        [
            {
                "layer chosen by": _label(name, strategy),
                **{
                    x: _slope_share(scores.sets[name].by_letter[x][strategy])
                    for x in scores.letters
                },
            }
            for name, strategy in _main_strategies(scores)
            if set(scores.letters) <= scores.sets[name].by_letter.keys()
        ],
        "Steerability / share of steerable samples. A vector that moves the letter instead of "
        "the behavior is steerable for one letter and not for the other.",
    )


def _active_table(scores: PredictorScores) -> Table:
    return Table(
        f"Active layers after pruning, of {len(scores.layers)}",
        [
            {
                "behavior": behavior,
                **{
                    _label(name, w2s(top)): str(
                        len(scores.sets[name].training[behavior][w2s(top)].active_layers)
                    )
                    for name in _trained(scores)
                    for top in scores.top
                },
            }
            for behavior in scores.behaviors
        ],
        "Layers that are the (smoothed) best one of some train sample.",
    )


def _training_table(scores: PredictorScores) -> Table:
    settings = ("rate", "width", "depth", "decay", "epochs")
    return Table(
        "Layer predictors in cross-validation on train samples",
        [
            {
                "predictor": f"{behavior}, {_label(name, strategy)}",
                **{column: f"{getattr(score.chosen, column):g}" for column in settings},
                "value": f"{score.cv_crossfit:.3f}",
                "gain (SE)": f"{score.cv_gain:+.3f} ({score.cv_gain_error:.3f})",
            }
            for name in _trained(scores)
            for behavior, by_strategy in scores.sets[name].training.items()
            for strategy, score in by_strategy.items()
        ],
        "Value: mean slope at the layers predicted for held-out folds, without the bias of "
        "choosing the setting on them (BBC-CV). Gain: over one layer for all, chosen in each "
        "fold's own train part.",
    )


def _network_table(scores: PredictorScores) -> Table:
    return Table(
        "Networks of L2S",
        [
            {
                "behavior": behavior,
                "steered layer": str(network.fixed_layer),
                "context layer": str(network.context_layer),
                "rate": f"{network.rate:g}",
                "epochs": str(network.epochs),
                "validation loss": f"{network.validation_loss:.4g}",
                "of the mean": f"{network.mean_loss:.4g}",
                "along the letter": "-"
                if network.letter_share is None
                else f"{network.letter_share:.0%}",
            }
            for behavior, network in scores.networks.items()
        ],
        "At the fixed layer, which the samples' own differences choose. Of the mean: the loss "
        "of one vector for all. Along the letter: the mean share of a predicted vector's "
        "squared norm that lies in the letter direction.",
    )


def _encoder_table(scores: PredictorScores) -> Table:
    return Table(
        "Encoders of the prompt",
        [
            {
                "encoder": name,
                "dimensions": str(encoder.n_dimensions),
                "silhouette": "-" if encoder.silhouette is None else f"{encoder.silhouette:.3f}",
                "accuracy": f"{encoder.accuracy:.3f}",
                "steerability": f"{encoder.value:.3f}",
                "gain over fixed": f"{encoder.value - encoder.fixed:+.3f}",
            }
            for name, encoder in scores.encoders.items()
        ],
        "Silhouette: of the behaviors, cosine distance, base test samples. Accuracy: share of "
        "test samples whose best layer is predicted, CAA vectors, Top-1.",
    )


def _sets(scores: PredictorScores) -> list[str]:
    return [name for name in DIRECTION_SETS if name in scores.sets]


def _trained(scores: PredictorScores) -> list[str]:
    return [name for name in _sets(scores) if scores.sets[name].primary is not None]


def _main_strategies(scores: PredictorScores) -> list[tuple[str, str]]:
    """Direction set and strategy of the short tables' rows."""
    return [
        (name, strategy)
        for name in _sets(scores)
        for strategy in (FIXED, scores.sets[name].primary, ORACLE)
        if strategy is not None
    ]


def _label(name: str, strategy: str) -> str:
    return f"{DIRECTION_SETS[name]}, {strategy_label(strategy)}"


def _steerability(strategy: str, score: StrategyScore) -> str:
    if strategy == CROSS_FITTED:
        fixed = score.slope.value - score.gain.value
        return f"{score.slope.value:.3f} in halves, fixed layer {fixed:.3f}"
    return f"{score.slope.value:.3f} ({score.slope_error:.3f})"


def _with_error(score: StrategyScore | None) -> str:
    if score is None:
        return "-"
    return f"{score.slope.value:.3f} ({score.slope_error:.3f}) / {score.share:.3f}"


def _percent(strategies: Mapping[str, StrategyScore]) -> str:
    """The oracle's gain in percent of the fixed layer's slope, where that is above 0."""
    fixed = strategies[FIXED].slope.value
    return f"{strategies[ORACLE].gain.value / fixed:+.1%}" if fixed > 0 else "-"


def _slope_share(score: StrategyScore) -> str:
    return f"{score.slope.value:.3f} / {score.share:.3f}"


def _gain(score: StrategyScore) -> str:
    gain = score.gain
    return f"{gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}]"
