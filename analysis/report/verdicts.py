"""What the figures of predictors show, and what they do not, in sentences.

A gain counts only with its whole interval above 0, above that of a predictor that was trained on
traded prompts, and above that of random vectors. Refuses to compute; reads `predictor_figures`.
"""

from collections.abc import Mapping
from typing import Any

from actcache.analysis.predict.selections import SHUFFLED, w2s
from actcache.analysis.report.files import CONTROL
from actcache.analysis.report.predictor_tables import KINDS
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.ways import FIXED

LEARNED, WITHOUT = "l2s", "l2s_without_letter"


def words(figures: Mapping[str, Any]) -> list[str]:
    """A sentence or two for each kind of directions: its gain, and the letter in it."""
    found = []
    for kind in figures["worth"]:
        if kind == CONTROL:
            continue
        if figures["primary"][kind] is not None:
            found.append(gain_in_words(figures, kind))
        found += letter_in_words(figures, kind)
    if WITHOUT in figures["worth"]:
        found.append(shortcut_in_words(figures))
    return found


def gain_in_words(figures: Mapping[str, Any], kind: str) -> str:
    """Whether predicting the layer is shown to gain anything with these directions."""
    name = w2s(figures["primary"][kind])
    worth = figures["worth"][kind]["base"]["mean"]
    gain, beyond = worth[name]["gain"], figures["beyond"][kind]
    beside = f"traded prompts: {_estimate(worth[SHUFFLED]['gain'])}"
    random = _gain_of_random(figures)
    if random is not None:
        beside += f"; random vectors: {_estimate(random)}"
    said = (
        f"{name} gains {_estimate(gain)} per unit multiplier over the fixed layer, "
        f"mean over behaviors ({beside})"
    )
    why = []
    if gain["low"] <= 0:
        why.append("its interval is not above 0")
    elif beyond["low"] <= 0:
        why.append(f"a predictor of traded prompts does as well (difference {_estimate(beyond)})")
    if random is not None and gain["low"] > 0 and random["high"] >= gain["low"]:
        why.append("random vectors of the same norm are not shown to gain less")
    if not why:
        return f"{KINDS[kind]}: {said}."
    because = ", and ".join(why)
    return f"{KINDS[kind]}: Warning: no gain of predicted layers is shown. {said}: {because}."


def letter_in_words(figures: Mapping[str, Any], kind: str) -> list[str]:
    """A warning where the slopes of the letters have opposite signs, else nothing."""
    by_letter = figures["by_letter"][kind]
    primary = figures["primary"][kind]
    found = []
    for name in (FIXED, *([] if primary is None else [w2s(primary)])):
        slopes = {x: each[name]["slope"] for x, each in by_letter.items()}
        up = [x for x, slope in slopes.items() if slope["low"] > 0]
        down = [x for x, slope in slopes.items() if slope["high"] < 0]
        if up and down:
            shown = ", ".join(f"{x} {_estimate(slopes[x])}" for x in [*up, *down])
            how = "at the fixed layer" if name == FIXED else f"with {name}"
            found.append(
                f"{KINDS[kind]}: Warning: {how} the slope is {shown} by the letter of the positive "
                "completion: the vector moves the letter, not the behavior, and gains are letter "
                "bias."
            )
    return found


def shortcut_in_words(figures: Mapping[str, Any]) -> str:
    """What of learned vectors' steerability is left without the letter direction."""
    whole = figures["worth"][LEARNED]["base"]["mean"][FIXED]["slope"]
    rest = figures["worth"][WITHOUT]["base"]["mean"][FIXED]["slope"]
    said = (
        f"steerability at the fixed layer is {_estimate(whole)}, and {_estimate(rest)} with the "
        "letter direction projected out of the learned vectors"
    )
    if whole["low"] > 0 and rest["value"] < whole["value"] / 2:
        return (
            f"{KINDS[LEARNED]}: Warning: most of it is the letter. S{said[1:]}: the networks "
            "learned to name the letter."
        )
    return f"{KINDS[LEARNED]}: {said}."


def _gain_of_random(figures: Mapping[str, Any]) -> Mapping[str, float] | None:
    if figures["primary"].get(CONTROL) is None:
        return None
    name = w2s(figures["primary"][CONTROL])
    gain: Mapping[str, float] = figures["worth"][CONTROL]["base"]["mean"][name]["gain"]
    return gain


def _estimate(found: Mapping[str, float]) -> str:
    return str(Interval(**found))
