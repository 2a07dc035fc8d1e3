"""Verdicts: what the numbers show and what they do not, in a word and in a sentence.

A gain counts only with its whole interval above 0 and above its control. An oracle chooses the
layer by the slopes that score it, so its control is random directions. A predictor never saw the
samples that score it; its control is a predictor that was trained on shuffled prompts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from actcache.analysis.names import (
    CONTROL,
    CROSS_FITTED,
    DIRECTION_SETS,
    FIXED,
    L2S,
    L2S_WITHOUT_LETTER,
    W2S_SHUFFLED,
    strategy_label,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.summary import (
    LETTER_SAMPLES,
    BehaviorScores,
    DirectionSetScores,
    PredictorScores,
    Summary,
    Verdict,
)

STEERABLE, NOT_STEERABLE = "steerable", "not steerable"
AS_RANDOM = "not above random"
LETTER, MOSTLY_LETTER, BEYOND_LETTER = "letter, not behavior", "mostly letter", "not only letter"
GAIN, NO_GAIN, NOT_TESTED = "gain shown", "no gain", "gain not tested"


def verdicts(summary: Summary) -> tuple[Verdict, ...]:
    """Judge every behavior of the sweep and every direction set of the predictors."""
    judged = []
    layers = summary.sweep.layers if summary.sweep is not None else ()
    for behavior, scores in summary.behaviors.items():
        judged += [
            fixed_layer_verdict(behavior, scores, random_slope(scores, layers)),
            sample_gain_verdict(behavior, scores),
        ]
    if summary.predictors is not None:
        judged += predictor_verdicts(summary.predictors)
    return tuple(judged)


def random_slope(scores: BehaviorScores, layers: Sequence[int]) -> float | None:
    """Bound the slope that random directions have at the fixed layer; None without a control.

    The end of the widest interval on either side of 0, since a random direction has no sign.
    """
    if not scores.control:
        return None
    place = layers.index(scores.fixed_layer)
    intervals = [control.by_layer[place] for control in scores.control]
    return max(max(abs(x.low), abs(x.high)) for x in intervals)


def fixed_layer_verdict(behavior: str, scores: BehaviorScores, random: float | None) -> Verdict:
    """Judge the direction at the fixed layer: behavior, letter, or no more than chance?

    Args:
        behavior: or one framing of its prompts.
        scores: of its test samples.
        random: what `random_slope` says.
    """
    enough = {
        x: of_letter for x, of_letter in scores.by_letter.items() if of_letter.n >= LETTER_SAMPLES
    }
    split = _letter_split({x: of_letter.fixed.slope for x, of_letter in enough.items()})
    slope, layer = scores.fixed.slope, scores.fixed_layer
    verdict = partial(_verdict, "sweep", behavior, FIXED)
    if split:
        return verdict(
            LETTER,
            f"Warning: the direction moves the letter, not the behavior: slope by letter {split}. "
            "A layer chosen per sample then gains by the letter too.",
        )
    if slope.low > 0 and random is not None and slope.low <= random:
        return verdict(
            AS_RANDOM,
            f"At fixed layer {layer} the slope is {slope}, but random directions of the same norm "
            f"reach {random:.3g} there.",
        )
    if slope.low > 0:
        return verdict(
            STEERABLE,
            f"At fixed layer {layer} the slope is {slope}, with {scores.fixed.share:.0%} of the "
            "test samples above 0.",
        )
    return verdict(
        NOT_STEERABLE,
        f"At fixed layer {layer} the slope is {slope}, which is not above 0.",
    )


def sample_gain_verdict(behavior: str, scores: BehaviorScores) -> Verdict:
    """Judge whether choosing the layer per sample gains anything over the fixed layer."""
    verdict = partial(_verdict, "sweep", behavior, CROSS_FITTED)
    comparison, layer, oracle = scores.comparison, scores.fixed_layer, scores.oracle.gain
    if scores.cross_fitted is None:
        return verdict(
            NOT_TESTED,
            f"Warning: the oracle's gain over the fixed layer, {oracle} per unit "
            f"multiplier, is not tested, since {scores.no_cross_fit}; it is biased upwards.",
        )
    gain = scores.cross_fitted.gain
    beside = f" (random directions: {comparison.control_gain})" if comparison else ""
    if gain.low > 0 and (comparison is None or comparison.difference.low > 0):
        untested = "" if comparison else " No control was run: random directions may gain as much."
        return verdict(
            GAIN,
            f"A layer chosen per sample gains {gain} per unit multiplier over fixed layer "
            f"{layer}, cross-fitted{beside}.{untested}",
        )
    plain = f"{oracle.value:.3g}"
    if scores.control:
        random = np.mean([control.oracle.gain.value for control in scores.control])
        plain += f" (random directions: {random:.3g})"
    why = "its interval is not above 0"
    if gain.low > 0 and comparison:
        why = f"it is not shown to exceed theirs: difference {comparison.difference}"
    return verdict(
        NO_GAIN,
        f"Warning: no gain from choosing the layer per sample is shown. The oracle's {plain} over "
        f"fixed layer {layer} shrinks to {gain}{beside} when one half of the "
        f"multipliers chooses and the other scores, and {why}.",
    )


def predictor_verdicts(predictors: PredictorScores) -> list[Verdict]:
    """Judge each direction set: the gain of its predicted layers, and the letter in it."""
    judged = []
    for name, scores in predictors.sets.items():
        if name == CONTROL:
            continue
        if scores.primary is not None:
            judged.append(predicted_gain_verdict(name, scores, predictors.sets.get(CONTROL)))
        judged += letter_verdicts(name, scores)
    if {L2S, L2S_WITHOUT_LETTER} <= predictors.sets.keys():
        judged.append(shortcut_verdict(predictors.sets))
    return judged


def predicted_gain_verdict(
    name: str, scores: DirectionSetScores, control: DirectionSetScores | None
) -> Verdict:
    """Judge whether predicting the layer gains anything with these directions.

    The gain is measured on test samples by a predictor that never saw them, so it has no selection
    bias to be compared with: random directions gain as well, since a layer that is chosen for them
    turns their signs to one side. What they reach so is shown beside it.
    """
    primary, mean = str(scores.primary), scores.base.mean
    verdict = partial(_verdict, "predictors", name, primary)
    gain, over_shuffled = mean[primary].gain, scores.over_shuffled
    beside = f"shuffled prompts: {mean[W2S_SHUFFLED].gain}"
    if control is not None and control.primary is not None:
        random = control.base.mean[control.primary].slope
        beside += f"; it reaches {mean[primary].slope.value:.3g}, random vectors {random.value:.3g}"
    by_letter = {letter: of[primary].gain for letter, of in scores.by_letter.items()}
    gains = (
        f"{strategy_label(primary)} gains {gain} per unit multiplier over the fixed layer, "
        f"mean over behaviors ({beside})"
    )
    why = []
    if gain.low <= 0:
        why.append("its interval is not above 0")
    elif over_shuffled is not None and over_shuffled.low <= 0:
        why.append(
            f"a predictor of shuffled prompts does as well (difference {over_shuffled}): another "
            "fixed layer would do"
        )
    if gain.low > 0 and any(of_letter.value <= 0 for of_letter in by_letter.values()):
        letters = ", ".join(f"{letter} {of_letter}" for letter, of_letter in by_letter.items())
        why.append(f"it is not positive for every letter ({letters})")
    if not why:
        return verdict(GAIN, f"{DIRECTION_SETS[name]}: {gains}.")
    because = ", and ".join(why)
    return verdict(
        NO_GAIN,
        f"{DIRECTION_SETS[name]}: Warning: no gain of predicted layers is shown. {gains}: "
        f"{because}.",
    )


def letter_verdicts(name: str, scores: DirectionSetScores) -> list[Verdict]:
    """Warn where the slopes of the letters have opposite signs."""
    judged = []
    for strategy in (FIXED, *([scores.primary] if scores.primary else [])):
        split = _letter_split(
            {x: of_letter[strategy].slope for x, of_letter in scores.by_letter.items()}
        )
        if split:
            how = "at the fixed layer" if strategy == FIXED else f"with {strategy_label(strategy)}"
            judged.append(
                _verdict(
                    "predictors",
                    name,
                    strategy,
                    LETTER,
                    f"{DIRECTION_SETS[name]}: Warning: {how} the slope is {split} by the letter of "
                    "the positive completion: the vector moves the letter, not the behavior, and "
                    "gains are letter bias.",
                )
            )
    return judged


def shortcut_verdict(sets: Mapping[str, DirectionSetScores]) -> Verdict:
    """Judge what of learned vectors' steerability is left without the letter direction."""
    verdict = partial(_verdict, "predictors", L2S, FIXED)
    whole = sets[L2S].base.mean[FIXED].slope
    rest = sets[L2S_WITHOUT_LETTER].base.mean[FIXED].slope
    compared = (
        f"teerability at the fixed layer is {whole}, and {rest} with the "
        "letter direction projected out of the learned vectors"
    )
    if whole.low > 0 and rest.value < whole.value / 2:
        return verdict(
            MOSTLY_LETTER,
            f"{DIRECTION_SETS[L2S]}: Warning: most of it is the letter. S{compared}: the networks "
            "learned to name the letter.",
        )
    word = BEYOND_LETTER if whole.low > 0 else NOT_STEERABLE
    return verdict(word, f"{DIRECTION_SETS[L2S]}: s{compared}.")


def _letter_split(slopes: Mapping[str, Interval]) -> str:
    """The slopes of letters above 0 and of letters below it, if there are both; else empty."""
    up = [x for x, slope in slopes.items() if slope.low > 0]
    down = [x for x, slope in slopes.items() if slope.high < 0]
    return ", ".join(f"{x} {slopes[x]}" for x in [*up, *down]) if up and down else ""


def _verdict(
    stage: Literal["sweep", "predictors"], about: str, strategy: str, word: str, sentence: str
) -> Verdict:
    return Verdict(
        stage=stage,
        about=about,
        strategy=strategy,
        word=word,
        sentence=sentence,
        warning="Warning:" in sentence,
    )
