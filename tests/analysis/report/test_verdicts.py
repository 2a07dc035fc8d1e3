"""Verdicts of predictors: each thing that undoes a gain is warned of, and nothing else."""

import numpy as np
import pytest

from actcache.analysis.predict.outcome import DirectionSetScores, VariantScores
from actcache.analysis.predict.scores import gain_over_shuffled
from actcache.analysis.report.verdicts import (
    letter_verdicts,
    predicted_gain_verdict,
    shortcut_verdict,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.strategies import StrategyScore, chosen_layers, score_behaviors

NOTHING = Interval(0.0, 0.0, 0.0)


def score(gain, slope=None):
    slope = Interval(1.0, 0.9, 1.1) if slope is None else slope
    return StrategyScore(
        slope=slope, share=0.5, gain=gain, n_seeds=1, slope_error=0.0, share_error=0.0
    )


ABOVE, BELOW = Interval(0.5, 0.3, 0.7), Interval(-0.1, -0.3, 0.1)


def scores(mean, *, over_shuffled=NOTHING, letters=(1.0, 1.0), gains=(ABOVE, ABOVE)):
    by_letter = {
        letter: dict.fromkeys(mean, score(gain, Interval(slope, slope - 0.1, slope + 0.1)))
        for letter, slope, gain in zip("AB", letters, gains, strict=True)
    }
    return DirectionSetScores(
        fixed_layer={},
        primary="w2s_top1",
        variants={"base": VariantScores(mean=mean, behaviors={})},
        by_letter=by_letter,
        over_shuffled=over_shuffled,
        training={},
        accuracy={},
        oracle_distance={},
    )


def judged(gain, *, beyond=(0.3, 0.2, 0.4), random=(0.5, 0.4, 0.6), **by_letter):
    def of(gain):
        primary = score(Interval(*gain))
        return {"fixed": score(NOTHING), "w2s_top1": primary, "w2s_shuffled": score(NOTHING)}

    steered = scores(of(gain), over_shuffled=Interval(*beyond), **by_letter)
    gain_verdict = predicted_gain_verdict("caa", steered, scores(of(random)))
    return [gain_verdict, *letter_verdicts("caa", steered)]


GOOD = (0.5, 0.4, 0.6)


def test_a_gain_above_its_controls_is_shown():
    [verdict] = judged(GOOD)
    assert verdict.word == "gain shown"
    assert not verdict.warning
    assert verdict.sentence == (
        "CAA: W2S Top-1 gains 0.50 [0.40, 0.60] per unit multiplier over the fixed layer, mean over "
        "behaviors (shuffled prompts: 0 [0, 0]; it reaches 1, random vectors 1)."
    )


@pytest.mark.parametrize(
    ("gain", "changes", "word", "warning"),
    [
        ((0.1, -0.1, 0.3), {}, "no gain", "its interval is not above 0"),
        (GOOD, {"beyond": (0.1, -0.1, 0.3)}, "no gain", "another fixed layer would do"),
        (GOOD, {"gains": (ABOVE, BELOW)}, "no gain", "not positive for every letter (A 0.5"),
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


def planted_verdict(draw, *, gain, n=40):
    """The verdict on a planted table of `n` test samples.

    One of two layers is better for each sample, by `2 · gain`; the fixed layer is the better one
    for half of them, and the predictor never errs. Noise of .15 gives the samples' gains a spread
    of .18, which is that of learned vectors in the demo.
    """
    rng = np.random.default_rng(draw)
    better = rng.permutation(np.arange(n) % 2)
    slope = rng.normal(1.0, 0.15, (n, 2))
    slope[np.arange(n), better] += 2 * gain
    layers = {"fixed": 0 * better, "w2s_top1": better, "w2s_shuffled": rng.permutation(better)}
    letter = rng.permutation(np.array(["A", "B"] * (n // 2)))

    def strategies(rows):
        return {
            "planted": {
                name: chosen_layers(slope[rows], chosen[None, rows], fixed_layer=0)
                for name, chosen in layers.items()
            }
        }

    everyone = strategies(np.ones(n, bool))
    behaviors, mean = score_behaviors(everyone, rng, draws=400)
    scores = DirectionSetScores(
        fixed_layer={"planted": 0},
        primary="w2s_top1",
        variants={"base": VariantScores(mean=mean, behaviors=behaviors)},
        by_letter={x: score_behaviors(strategies(letter == x), rng, draws=400)[1] for x in "AB"},
        over_shuffled=gain_over_shuffled(everyone, "w2s_top1", rng, 400),
        training={},
        accuracy={},
        oracle_distance={},
    )
    return predicted_gain_verdict("caa", scores, None).word


@pytest.mark.parametrize(("gain", "least", "most"), [(0.1, 0.8, 1.0), (0.0, 0.0, 0.05)])
def test_a_planted_gain_is_told_and_a_missing_one_is_not(gain, least, most):
    words = [planted_verdict(draw, gain=gain) for draw in range(200)]
    assert least <= words.count("gain shown") / len(words) <= most
