"""The strength (or angle) of a method: chosen on validation rows, tested once on test rows.

Chosen is the strength with the largest mean effect among those whose texts

- are no less likely than the budget allows: exp of the mean difference of `nll_unsteered` to the
  unsteered text of the same row, in nats per token, is at most `budget` (1.5);
- keep form and ending: the share of well-formed texts, and of texts that end by themselves, is at
  most `loss` (0.05) below that of the unsteered texts.

The identity is never chosen. Of equal effects the strength nearest to it is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actcache.analysis.generation.strength_table import (
    Bootstrap,
    StrengthTable,
    score_strength,
)
from actcache.analysis.generation.summary import Choice, StrengthScores
from actcache.analysis.stats.bootstrap import Interval

DEGREES = "degrees"
"""The unit of angles."""

FEWEST_ROWS = 8
"""Test rows without which no effect is shown: the bootstrap of one row has no width."""

_ROUNDING = 1e-9  # shares are sums of floats


@dataclass(frozen=True, kw_only=True)
class ChoiceRules:
    """Which strengths may be chosen."""

    budget: float = 1.5
    """Largest ratio of perplexities under the unsteered model."""

    loss: float = 0.05
    """Largest share of texts that may lose form or ending."""


def choose(
    table: StrengthTable,
    unsteered: StrengthTable,
    *,
    identity: float | None,
    unit: str,
    validation: Bool[np.ndarray, " n"],
    controls: Mapping[str, StrengthTable],
    rules: ChoiceRules,
    bootstrap: Bootstrap,
) -> Choice:
    """Choose a strength on validation rows and test it on the others.

    Args:
        table: of the method.
        unsteered: of the same rows' unsteered texts.
        identity: the strength that changes nothing; None if there is none.
        unit: of the strength; that of `degrees` is periodic.
        validation: rows to choose on; the others are test rows.
        controls: by name, of random vectors or planes of equal norm at the same strengths.
        rules: what may be chosen.
        bootstrap: how intervals are drawn.
    """
    on_validation = _scores(table, unsteered, validation, bootstrap)
    unsteered_there = score_strength(unsteered, unsteered, 0, rows=validation, bootstrap=bootstrap)
    window = keeping_window(
        on_validation, unsteered_there, identity=identity, unit=unit, rules=rules
    )
    steered = [i for i, s in enumerate(table.strengths) if not is_identity(s, identity, unit)]
    place, reason = choose_place(
        on_validation, unsteered_there, places=steered, identity=identity, rules=rules
    )
    test = ~validation
    on_test = _scores(table, unsteered, test, bootstrap) if test.any() else []
    best = None
    if on_test:
        unsteered_test = score_strength(unsteered, unsteered, 0, rows=test, bootstrap=bootstrap)
        best, _ = choose_place(
            on_test, unsteered_test, places=steered, identity=identity, rules=rules
        )
    over_control: dict[str, Interval] = {}
    if place is not None and on_test:
        over_control = _over_controls(table, controls, place, test, bootstrap)
    return Choice(
        strength=None if place is None else table.strengths[place],
        reason=reason,
        validation=None if place is None else on_validation[place],
        test=on_test[place] if place is not None and on_test else None,
        over_control=over_control,
        shown=place is not None
        and bool(on_test)
        and over_control.keys() == controls.keys()
        and is_shown(on_test[place].effect, over_control, n=int(test.sum())),
        best_on_test=None if best is None else on_test[best],
        window=window,
    )


def choose_place(
    scores: Sequence[StrengthScores],
    unsteered: StrengthScores,
    *,
    places: Sequence[int],
    identity: float | None,
    rules: ChoiceRules,
) -> tuple[int | None, str]:
    """Find which of some places has the largest effect that the rules allow.

    Returns:
        The place, or None; and why none is allowed.
    """
    in_budget = [i for i in places if (scores[i].perplexity_ratio or np.inf) <= rules.budget]
    allowed = [i for i in in_budget if keeps_form(scores[i], unsteered, rules)]
    with_effect = [i for i in allowed if scores[i].effect is not None]
    if with_effect:

        def preference(i: int) -> tuple[float, float]:
            effect = scores[i].effect
            assert effect is not None
            return -effect.value, abs(scores[i].strength - (identity or 0.0))

        return min(with_effect, key=preference), ""
    over = f"no strength keeps perplexity within {rules.budget:g} × the unsteered one"
    for remaining, reason in (
        (places, "no strength but the identity"),
        (in_budget, over),
        (allowed, "no strength within the budget keeps form and ending"),
    ):
        if not remaining:
            return None, reason
    return None, "no text has a target"


def keeps_form(scores: StrengthScores, unsteered: StrengthScores, rules: ChoiceRules) -> bool:
    """Whether texts keep the form and the ending of the unsteered ones, up to `rules.loss`."""
    lost = max(unsteered.form - scores.form, unsteered.ended - scores.ended)
    return lost <= rules.loss + _ROUNDING


def keeping_window(
    scores: Sequence[StrengthScores],
    unsteered: StrengthScores,
    *,
    identity: float | None,
    unit: str,
    rules: ChoiceRules,
) -> tuple[float, float] | None:
    """Find the strengths around the identity that keep form; without one, the longest range.

    Angles around an identity are given from -180 to 180 degrees.
    """
    keeps = {s.strength: keeps_form(s, unsteered, rules) for s in scores}
    if identity is not None:
        if unit == DEGREES:
            keeps = {(s - identity + 180) % 360 - 180 + identity: k for s, k in keeps.items()}
        keeps[identity] = True
    ranges: list[list[float]] = [[]]
    for strength in sorted(keeps):
        if keeps[strength]:
            ranges[-1].append(strength)
        else:
            ranges.append([])
    window = max(ranges, key=lambda r: (identity in r, len(r)))
    return (window[0], window[-1]) if window else None


def is_identity(strength: float, identity: float | None, unit: str) -> bool:
    """Whether a strength changes nothing."""
    if identity is None:
        return False
    difference = strength - identity
    return (difference % 360 if unit == DEGREES else difference) == 0


def is_shown(effect: Interval | None, over_control: Mapping[str, Interval], *, n: int) -> bool:
    """Whether an effect and its difference to every control have intervals above 0."""
    if effect is None or n < FEWEST_ROWS:
        return False
    return effect.low > 0 and all(difference.low > 0 for difference in over_control.values())


def _scores(
    table: StrengthTable,
    unsteered: StrengthTable,
    rows: Bool[np.ndarray, " n"],
    bootstrap: Bootstrap,
) -> list[StrengthScores]:
    return [
        score_strength(table, unsteered, place, rows=rows, bootstrap=bootstrap)
        for place in range(len(table.strengths))
    ]


def _over_controls(
    table: StrengthTable,
    controls: Mapping[str, StrengthTable],
    place: int,
    rows: Bool[np.ndarray, " n"],
    bootstrap: Bootstrap,
) -> dict[str, Interval]:
    """The target minus each control's at the same strength; without those that have none there."""
    differences = {}
    for name, control in controls.items():
        if table.strengths[place] not in control.strengths:
            continue
        of_control = control.strengths.index(table.strengths[place])
        pairs = (table.values["target"][place] - control.values["target"][of_control])[rows]
        difference = bootstrap.interval(pairs)
        if difference is not None:
            differences[name] = difference
    return differences
