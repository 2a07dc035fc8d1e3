"""Tables of predictors, after "Where to Steer": what is worth what, where, and for whom."""

from collections.abc import Callable

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
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.summary import PredictorScores, StrategyScore, Summary


def short_table(summary: Summary) -> Table:
    """Make the first table without what is there for comparison alone: for a terminal."""
    scores = _scores(summary)
    shown = (FIXED, CROSS_FITTED, W2S_SHUFFLED, ORACLE, *map(w2s, scores.top))
    return _strategy_table(summary, only=lambda strategy: strategy in shown)


def predictor_tables(summary: Summary) -> list[Table]:
    """Make all tables of the predictors."""
    scores = _scores(summary)
    tables = [_strategy_table(summary, only=lambda _strategy: True), _behavior_table(scores)]
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


def _strategy_table(summary: Summary, *, only: Callable[[str], bool]) -> Table:
    scores = _scores(summary)
    n_behaviors = len(scores.behaviors)

    def words(name: str, strategy: str) -> str:
        verdicts = summary.verdicts_on("predictors", name, strategy)
        return "; ".join(dict.fromkeys(verdict.word for verdict in verdicts))

    return Table(
        title="Steerability on test samples, mean over behaviors",
        columns=(
            *("layer chosen by", "steerability (SE)", "steerable (SE)", "gain over fixed"),
            "verdict",
        ),
        rows=[
            [
                f"{DIRECTION_SETS[name]}, {strategy_label(strategy)}",
                f"{score.slope.value:.3f} ({score.slope_error:.3f})",
                f"{score.share:.3f} ({score.share_error:.3f})",
                _gain(score.gain) if strategy != FIXED else "",
                words(name, strategy),
            ]
            for name in _sets(scores)
            for strategy, score in scores.sets[name].base.mean.items()
            if only(strategy)
        ],
        note=(
            f"Slope of propensity per unit multiplier; {n_behaviors} behavior"
            f"{'s' if n_behaviors > 1 else ''}, each counting the same. SE: over "
            f"{scores.seeds} trainings of the predictor, 0 where nothing is trained. Gain: with "
            "its 95 % interval, samples resampled. Oracle, second, third and fourth look at the "
            "test samples' own slopes; cross-fitted chooses with one half of the multipliers and "
            "is read with the other, so its slope and gain are of halves of the grid."
        ),
    )


def _behavior_table(scores: PredictorScores) -> Table:
    def row(behavior: str, name: str) -> list[str]:
        of_set = scores.sets[name]
        by_strategy = of_set.base.behaviors[behavior]
        shown = (FIXED, of_set.primary or "", W2S_SHUFFLED, ORACLE)
        return [
            behavior,
            DIRECTION_SETS[name],
            str(of_set.fixed_layer[behavior]),
            *(_slope_share(by_strategy[x]) if x in by_strategy else "-" for x in shown),
        ]

    primary = [
        f"{DIRECTION_SETS[name]}: {strategy_label(str(scores.sets[name].primary))[4:]}"
        for name in _trained(scores)
    ]
    return Table(
        title="Steerability by behavior",
        columns=("behavior", "vector", "layer", "fixed layer", "W2S", "W2S shuffled", "oracle"),
        rows=[row(behavior, name) for behavior in scores.behaviors for name in _sets(scores)],
        note=(
            "Steerability / share of steerable samples. W2S: with the K that gained most in "
            f"cross-validation ({', '.join(primary)})."
        ),
    )


def _variant_table(scores: PredictorScores) -> Table:
    return Table(
        title="Other framings of the test prompts, mean over behaviors",
        columns=("layer chosen by", *scores.variants),
        rows=[
            [
                f"{DIRECTION_SETS[name]}, {strategy_label(strategy)}",
                *(
                    _slope_share(scores.sets[name].variants[v].mean[strategy])
                    for v in scores.variants
                ),
            ]
            for name, strategy in _main_strategies(scores)
        ],
        note=(
            "Steerability / share of steerable samples. Directions, networks, fixed layers and "
            "predictors are of base train samples alone."
        ),
    )


def _letter_table(scores: PredictorScores) -> Table:
    return Table(
        title="By the letter of the positive completion, mean over behaviors",
        columns=("layer chosen by", *scores.letters),
        rows=[
            [
                f"{DIRECTION_SETS[name]}, {strategy_label(strategy)}",
                *(_slope_share(scores.sets[name].by_letter[x][strategy]) for x in scores.letters),
            ]
            for name, strategy in _main_strategies(scores)
            if set(scores.letters) <= scores.sets[name].by_letter.keys()
        ],
        note=(
            "Steerability / share of steerable samples. A vector that moves the letter instead of "
            "the behavior is steerable for one letter and not for the other."
        ),
    )


def _active_table(scores: PredictorScores) -> Table:
    shown = [(name, w2s(top)) for name in _trained(scores) for top in scores.top]
    return Table(
        title=f"Active layers after pruning, of {len(scores.layers)}",
        columns=(
            "behavior",
            *(f"{DIRECTION_SETS[name]}, {strategy_label(strategy)}" for name, strategy in shown),
        ),
        rows=[
            [
                behavior,
                *(
                    str(len(scores.sets[name].training[behavior][strategy].active_layers))
                    for name, strategy in shown
                ),
            ]
            for behavior in scores.behaviors
        ],
        note="Layers that are the (smoothed) best one of some train sample.",
    )


def _training_table(scores: PredictorScores) -> Table:
    return Table(
        title="Layer predictors in cross-validation on train samples",
        columns=("predictor", "rate", "width", "depth", "decay", "epochs", "value", "gain (SE)"),
        rows=[
            [
                f"{behavior}, {DIRECTION_SETS[name]}, {strategy_label(strategy)}",
                f"{each.chosen.rate:g}",
                f"{each.chosen.width:g}",
                f"{each.chosen.depth:g}",
                f"{each.chosen.decay:g}",
                f"{each.chosen.epochs:g}",
                f"{each.cv_crossfit:.3f}",
                f"{each.cv_gain:+.3f} ({each.cv_gain_error:.3f})",
            ]
            for name in _trained(scores)
            for behavior, by_strategy in scores.sets[name].training.items()
            for strategy, each in by_strategy.items()
        ],
        note=(
            "Value: mean slope at the layers predicted for held-out folds, without the bias of "
            "choosing the setting on them (BBC-CV). Gain: over one layer for all, chosen in each "
            "fold's own train part."
        ),
    )


def _network_table(scores: PredictorScores) -> Table:
    return Table(
        title="Networks of L2S",
        columns=(
            *("behavior", "steered layer", "context layer", "rate", "epochs"),
            *("validation loss", "of the mean", "along the letter"),
        ),
        rows=[
            [
                behavior,
                str(network.fixed_layer),
                str(network.context_layer),
                f"{network.rate:g}",
                str(network.epochs),
                f"{network.validation_loss:.4g}",
                f"{network.mean_loss:.4g}",
                f"{network.letter_share:.0%}" if network.letter_share is not None else "-",
            ]
            for behavior, network in scores.networks.items()
        ],
        note=(
            "At the fixed layer, which the samples' own differences choose. Of the mean: the loss "
            "of one vector for all. Along the letter: the mean share of a predicted vector's "
            "squared norm that lies in the letter direction."
        ),
    )


def _encoder_table(scores: PredictorScores) -> Table:
    return Table(
        title="Encoders of the prompt",
        columns=(
            *("encoder", "dimensions", "silhouette", "accuracy", "steerability"),
            "gain over fixed",
        ),
        rows=[
            [
                name,
                str(encoder.n_dimensions),
                "-" if encoder.silhouette is None else f"{encoder.silhouette:.3f}",
                f"{encoder.accuracy:.3f}",
                f"{encoder.value:.3f}",
                f"{encoder.value - encoder.fixed:+.3f}",
            ]
            for name, encoder in scores.encoders.items()
        ],
        note=(
            "Silhouette: of the behaviors, cosine distance, base test samples. Accuracy: share of "
            "test samples whose best layer is predicted, CAA vectors, Top-1."
        ),
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


def _slope_share(score: StrategyScore) -> str:
    return f"{score.slope.value:.3f} / {score.share:.3f}"


def _gain(gain: Interval) -> str:
    return f"{gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}]"
