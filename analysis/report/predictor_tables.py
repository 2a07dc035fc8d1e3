"""Tables of predictors, after "Where to Steer": what is worth what, where, and for whom."""

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


def short_table(summary: Summary) -> Table:
    """Make the first table without what is there for comparison alone: for a terminal."""
    top = summary.predictors.top if summary.predictors else ()
    return _strategy_table(summary, (FIXED, CROSS_FITTED, W2S_SHUFFLED, ORACLE, *map(w2s, top)))


def predictor_tables(summary: Summary) -> list[Table]:
    """Make all tables of the predictors."""
    scores = _scores(summary)
    tables = [_strategy_table(summary), _behavior_table(scores)]
    if len(scores.variants) > 1:
        tables.append(_variant_table(scores))
    if scores.letters:
        tables.append(_letter_table(scores))
    tables += [_active_table(scores), _training_table(scores)]
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
                "steerability (SE)": f"{score.slope.value:.3f} ({score.slope_error:.3f})",
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
        f"{scores.seeds} trainings of the predictor, 0 where nothing is trained. Gain: with "
        "its 95 % interval, samples resampled. Oracle, second, third and fourth look at the "
        "test samples' own slopes; cross-fitted chooses with one half of the multipliers and "
        "is read with the other, so its slope and gain are of halves of the grid.",
    )


def _behavior_table(scores: PredictorScores) -> Table:
    def row(behavior: str, name: str) -> dict[str, str]:
        of_set = scores.sets[name]
        by_strategy = of_set.base.behaviors[behavior]
        shown = {
            "fixed layer": FIXED,
            "W2S": of_set.primary or "",
            "W2S shuffled": W2S_SHUFFLED,
            "oracle": ORACLE,
        }
        return {
            "behavior": behavior,
            "vector": DIRECTION_SETS[name],
            "layer": str(of_set.fixed_layer[behavior]),
            **{
                column: _slope_share(by_strategy[key]) if key in by_strategy else "-"
                for column, key in shown.items()
            },
        }

    primary = [
        f"{DIRECTION_SETS[name]}: {strategy_label(str(scores.sets[name].primary))[4:]}"
        for name in _trained(scores)
    ]
    return Table(
        "Steerability by behavior",
        [row(behavior, name) for behavior in scores.behaviors for name in _sets(scores)],
        "Steerability / share of steerable samples. W2S: with the K that gained most in "
        f"cross-validation ({', '.join(primary)}).",
    )


def _variant_table(scores: PredictorScores) -> Table:
    return Table(
        "Other framings of the test prompts, mean over behaviors",
        [
            {
                "layer chosen by": _label(name, strategy),
                **{
                    variant: _slope_share(scores.sets[name].variants[variant].mean[strategy])
                    for variant in scores.variants
                },
            }
            for name, strategy in _main_strategies(scores)
        ],
        "Steerability / share of steerable samples. Directions, networks, fixed layers and "
        "predictors are of base train samples alone.",
    )


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


def _slope_share(score: StrategyScore) -> str:
    return f"{score.slope.value:.3f} / {score.share:.3f}"


def _gain(score: StrategyScore) -> str:
    gain = score.gain
    return f"{gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}]"
