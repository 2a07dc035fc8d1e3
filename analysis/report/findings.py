"""Findings: what an analysis shows, a sentence a behavior, in plain words."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from actcache.analysis.names import CONTROL, CROSS_FITTED, DIRECTION_SETS, FIXED
from actcache.analysis.report.verdicts import (
    AS_RANDOM,
    GAIN,
    LETTER,
    MOSTLY_LETTER,
    NO_GAIN,
    NOT_STEERABLE,
    STEERABLE,
    random_slope,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.summary import (
    LETTER_SAMPLES,
    BehaviorScores,
    DirectionSetScores,
    LayerScores,
    Summary,
)

FEW = 20
"""Test samples below which a finding says how few they are."""

FAR = 3
"""How many times the best random direction's slope is far above it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence on one behavior or set of directions."""

    about: str
    text: str

    mood: Literal["good", "bad", "mixed"]
    """Whether it works, does not, or works in part; a color where there are colors."""

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


def findings(summary: Summary) -> list[Finding]:
    """Say what an analysis shows: of labels, of each behavior, and of predicted layers.

    Other framings of a behavior's prompts are one part of its sentence.
    """
    return [
        *(_labels(name, scores) for name, scores in (summary.layers or {}).items()),
        *(
            _behavior(name, scores, summary)
            for name, scores in summary.behaviors.items()
            if "@" not in name
        ),
        *_predictors(summary),
    ]


def _labels(name: str, scores: LayerScores) -> Finding:
    auc, layers = max(scores.auc), np.flatnonzero(scores.discriminative).tolist()
    best = scores.auc.tolist().index(auc)
    apart = f"told apart best at layer {best} (AUC {auc:.2f})"
    if not layers:
        return Finding(about=name, text=f"{apart}; no layer is discriminative", mood="mixed")
    listed = ("layers " if len(layers) > 1 else "layer ") + ", ".join(map(str, layers))
    text = f"{apart}; class means lie on both sides of 0 at {listed}"
    return Finding(about=name, text=text, mood="good")


def _behavior(name: str, scores: BehaviorScores, summary: Summary) -> Finding:
    word = summary.verdict_words("sweep", name, FIXED)
    layer, slope = scores.fixed_layer, scores.fixed.slope
    few = f" (only {scores.n} test samples: small effects cannot be told)" if scores.n < FEW else ""
    if word == LETTER:
        text = f"not steerable at layer {layer}; the vector moves the letter, not the behavior"
        return Finding(about=name, text=text + few, mood="bad")
    if word == NOT_STEERABLE:
        text = f"not steerable; at its best layer, {layer}, the slope is {slope}, not above 0"
        return Finding(about=name, text=text + few, mood="bad")
    random = random_slope(scores, summary.sweep.layers if summary.sweep else ())
    if word == AS_RANDOM:
        text = f"not shown to be steerable; at its best layer, {layer}, the slope is {slope}, "
        text += f"but random directions of the same norm reach {random:.2g}"
        return Finding(about=name, text=text + few, mood="mixed")
    parts = [f"steerable at layer {layer}", *_letters(scores), _beside_random(slope, random)]
    mood: Literal["good", "mixed"] = "mixed" if random is None or few else "good"
    sentences = [", ".join(parts), _gain(name, scores, summary), _framings(name, summary)]
    return Finding(about=name, text="; ".join(filter(None, sentences)) + few, mood=mood)


def _letters(scores: BehaviorScores) -> list[str]:
    tested = {x: part for x, part in scores.by_letter.items() if part.n >= LETTER_SAMPLES}
    if len(tested) < 2:
        return []
    moved = [letter for letter, part in tested.items() if part.fixed.slope.low > 0]
    if len(moved) == len(tested):
        return ["both letters" if len(moved) == 2 else "all letters"]
    if not moved:
        return ["for no letter by itself"]
    return [f"shown for letter {' and '.join(moved)} alone"]


def _beside_random(slope: Interval, random: float | None) -> str:
    if random is None:
        return "no random direction was tried"
    return "far above random" if slope.low > FAR * random else "above random"


def _gain(name: str, scores: BehaviorScores, summary: Summary) -> str:
    word = summary.verdict_words("sweep", name, CROSS_FITTED)
    if word == NO_GAIN:
        return "choosing the layer for each prompt adds nothing"
    if word == GAIN and scores.cross_fitted is not None:
        return f"the best layer of each prompt would add {scores.cross_fitted.gain.value:.2g}"
    return "whether another layer for each prompt helps is not tested"


def _framings(name: str, summary: Summary) -> str:
    """In how many other framings of the prompts the fixed layer still steers."""
    words = {
        variant.partition("@")[2]: summary.verdict_words("sweep", variant, FIXED)
        for variant in summary.behaviors
        if variant.startswith(f"{name}@")
    }
    gone = [variant for variant, word in words.items() if word != STEERABLE]
    if not words:
        return ""
    if not gone:
        return "also in other framings"
    return f"not in the framing{'s' if len(gone) > 1 else ''} {', '.join(gone)}"


def _predictors(summary: Summary) -> list[Finding]:
    """What a layer predicted from the prompt adds, for each set of directions."""
    sets = summary.predictors.sets if summary.predictors else {}
    return [
        _predicted(name, scores, summary)
        for name, scores in sets.items()
        if name != CONTROL and scores.primary is not None
    ]


def _predicted(name: str, scores: DirectionSetScores, summary: Summary) -> Finding:
    about = f"{DIRECTION_SETS[name]} vectors"
    words = {x.word for x in summary.verdicts if (x.stage, x.about) == ("predictors", name)}
    if words & {LETTER, MOSTLY_LETTER}:
        text = "they move the letter more than the behavior, so gains may be bias"
        return Finding(about=about, text=text, mood="bad")
    text = "a layer predicted from the prompt "
    mean = scores.base.mean
    if GAIN in words and scores.primary is not None:
        text += (
            f"adds {mean[scores.primary].gain} to the fixed layer's {mean[FIXED].slope.value:.3g}"
        )
        return Finding(about=about, text=text, mood="good")
    return Finding(about=about, text=f"{text}adds nothing to the fixed layer", mood="mixed")
