"""Verdicts of predictors: each thing that undoes a gain is warned of, and nothing else."""

import pytest

from actcache.analysis.predict.outcome import DirectionSetScores, VariantScores
from actcache.analysis.report.verdicts import (
    letter_verdicts,
    predicted_gain_verdict,
    shortcut_verdict,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.strategies import StrategyScore

NOTHING = Interval(0.0, 0.0, 0.0)


def score(gain, slope=None):
    slope = Interval(1.0, 0.9, 1.1) if slope is None else slope
    return StrategyScore(
        slope=slope, share=0.5, gain=gain, n_seeds=1, slope_error=0.0, share_error=0.0
    )


def scores(mean, *, over_shuffled=NOTHING, letters=(1.0, 1.0)):
    by_letter = {
        letter: dict.fromkeys(mean, score(NOTHING, Interval(slope, slope - 0.1, slope + 0.1)))
        for letter, slope in zip("AB", letters, strict=True)
    }
    return DirectionSetScores(
        fixed_layer={},
        primary="w2s_top1",
        variants={"base": VariantScores(mean=mean, behaviors={})},
        by_letter=by_letter,
        over_shuffled=over_shuffled,
        training={},
    )


def judged(gain, *, beyond=(0.3, 0.2, 0.4), random=(0.0, -0.1, 0.1), letters=(1.0, 1.0)):
    def of(gain):
        primary = score(Interval(*gain))
        return {"fixed": score(NOTHING), "w2s_top1": primary, "w2s_shuffled": score(NOTHING)}

    steered = scores(of(gain), over_shuffled=Interval(*beyond), letters=letters)
    gain_verdict = predicted_gain_verdict("caa", steered, scores(of(random)))
    return [gain_verdict, *letter_verdicts("caa", steered)]


GOOD = (0.5, 0.4, 0.6)


def test_a_gain_above_its_controls_is_shown():
    [verdict] = judged(GOOD)
    assert verdict.word == "gain shown"
    assert not verdict.warning
    assert verdict.sentence == (
        "CAA: W2S Top-1 gains 0.5 [0.4, 0.6] per unit multiplier over the fixed layer, mean over "
        "behaviors (shuffled prompts: 0 [0, 0]; random vectors: 0 [-0.1, 0.1])."
    )


@pytest.mark.parametrize(
    ("gain", "changes", "word", "warning"),
    [
        ((0.1, -0.1, 0.3), {}, "no gain", "its interval is not above 0"),
        (GOOD, {"beyond": (0.1, -0.1, 0.3)}, "no gain", "a predictor of shuffled prompts does as"),
        (GOOD, {"random": (0.5, 0.4, 0.6)}, "no gain", "random vectors of the same norm are not"),
        (GOOD, {"letters": (2.0, -1.0)}, "letter, not behavior", "the vector moves the letter"),
    ],
)
def test_each_thing_that_undoes_a_gain_is_warned_of(gain, changes, word, warning):
    verdicts = judged(gain, **changes)
    warned = [verdict for verdict in verdicts if verdict.warning]
    assert {verdict.word for verdict in warned} == {word}
    assert all("Warning" in verdict.sentence for verdict in warned)
    assert any(warning in verdict.sentence for verdict in warned)


@pytest.mark.parametrize(("low", "warned"), [(0.8, True), (-0.1, False)])
def test_what_is_not_shown_to_be_there_is_not_called_the_letter(low, warned):
    sets = {
        "l2s": scores({"fixed": score(NOTHING, Interval(1.0, low, 1.9))}),
        "l2s_without_letter": scores({"fixed": score(NOTHING, Interval(0.1, 0.0, 0.2))}),
    }
    verdict = shortcut_verdict(sets)
    assert verdict.warning == ("Warning" in verdict.sentence) == warned
    assert (verdict.word == "mostly letter") == warned
