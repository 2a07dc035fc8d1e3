"""Which layer to steer at, and whether choosing it per sample is worth anything.

The oracle's gain over the fixed layer is read plainly, cross-fitted, and beside random directions
under the same code; the verdict says in words what that leaves. Refuses to know how propensity was
measured, and how a layer could be predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from actcache.analysis.stats.bootstrap import Interval, mean_intervals
from actcache.analysis.sweep.strategies import (
    LayerChoice,
    SlopeTable,
    crossfit_scores,
    layer_choice,
    slope_table,
)
from actcache.errors import MismatchError

LETTER_SAMPLES = 8
"""Samples that a letter must have for a sentence about it: a bootstrap of one is sure of itself."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The cross-fitted gain beside that of random directions."""

    control_gain: Interval
    """Cross-fitted gain of the control, mean over its direction sets."""

    difference: Interval
    """Gain less control's gain, paired by sample."""


@dataclass(frozen=True, kw_only=True)
class Steerability:
    """Slopes of all samples, and what each way of choosing the layer is worth on test samples."""

    slope: Float64[np.ndarray, "n layer"]
    """Slope of every sample at every layer."""

    oracle_layer: Int64[np.ndarray, " n"]
    """Each sample's best layer, the first of equals."""

    crossfit_layer: Int64[np.ndarray, "n 2"] | None
    """Each sample's best layer by either half of the multipliers."""

    crossfit_reason: str
    """Why the grid has no halves to cross-fit with; empty where it has."""

    choice: LayerChoice
    """All test samples."""

    by_letter: dict[str, LayerChoice]
    """Test samples whose positive completion has that letter; same fixed layer."""

    control: tuple[LayerChoice, ...]
    """The same numbers for each set of random directions, with fixed layers of their own."""

    comparison: Comparison | None
    """None without a control, or without a cross-fit."""

    exceeds: bool
    """Whether the cross-fitted gain is above 0 and above the control's, with its whole interval."""

    verdict: str
    """The same in words; a warning where it does not hold."""

    letter_warning: str
    """In words, where the fixed layer's slope is above 0 for one letter and below for another: then
    the direction moves the letter, not the behavior. Else empty."""


def summarize(
    propensity: Float[np.ndarray, "n layer m"],
    multipliers: Float[np.ndarray, " m"],
    *,
    train: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    letters: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
    control: Float[np.ndarray, "r n layer m"] | None = None,
    fixed: int | None = None,
    layers: Sequence[int] | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Steerability:
    """Read steerability off a sweep: train samples choose layers, numbers are of test samples.

    Args:
        propensity: of every sample, layer and multiplier.
        multipliers: the grid. Where it is not symmetric about 0, or has fewer than two distinct
            sizes, there is no cross-fit, and the result says why.
        train: samples that choose the fixed layer.
        test: samples that all numbers are means over; none of them may be in `train`.
        rng: source of the bootstrap draws.
        letters: letter of each sample's positive completion; an empty one is left out of the split.
        control: propensity of the same samples under `r` sets of random directions.
        fixed: place of the fixed layer, where something else than these slopes chose it (L2S lets
            the oracle's vectors); the control chooses its own in any case.
        layers: numbers of the layers, for the words; by default their places.
        draws: bootstrap draws.
        level: share of the draws inside an interval.

    Returns:
        The numbers. Ties between layers go to the first.

    Raises:
        MismatchError: no train or test sample, samples in both, shapes that differ, or fewer than
            two distinct multipliers.
        NotFiniteError: a propensity is infinite or not a number.
    """
    _check(propensity, train=train, test=test, letters=letters, control=control)
    table = slope_table(propensity, multipliers)
    control_tables = [slope_table(c, multipliers) for c in ([] if control is None else control)]

    own = fixed_layer(table.slope, train) if fixed is None else fixed

    def read(
        table: SlopeTable, rows: Bool[np.ndarray, " n"], layer: int | None = None
    ) -> LayerChoice:
        layer = fixed_layer(table.slope, train) if layer is None else layer
        return layer_choice(table, rows, fixed_layer=layer, rng=rng, draws=draws, level=level)

    choice = read(table, test, own)
    letter = np.full(len(test), "") if letters is None else np.asarray(letters, dtype=str)
    by_letter = {
        str(x): read(table, test & (letter == x), own) for x in np.unique(letter[test]) if x
    }
    controls = tuple(read(c, test) for c in control_tables)
    comparison = None
    gains = [
        crossfit_scores(t.halves, fixed_layer=c.fixed_layer)[test, 2]
        for t, c in zip([table, *control_tables], [choice, *controls], strict=True)
        if t.halves is not None
    ]
    if len(gains) > 1:
        random = np.mean(gains[1:], axis=0)  # [test]
        columns = np.column_stack([random, gains[0] - random])
        control_gain, difference = mean_intervals(columns, rng, draws=draws, level=level)
        comparison = Comparison(control_gain=control_gain, difference=difference)
    number = choice.fixed_layer if layers is None else layers[choice.fixed_layer]
    exceeds, verdict = _verdict(choice, controls, comparison, layer=number, reason=table.reason)
    return Steerability(
        slope=table.slope,
        oracle_layer=table.slope.argmax(1),
        crossfit_layer=None if table.halves is None else table.halves.argmax(2).T,
        crossfit_reason=table.reason,
        choice=choice,
        by_letter=by_letter,
        control=controls,
        comparison=comparison,
        exceeds=exceeds,
        verdict=verdict,
        letter_warning=_letter_warning(by_letter),
    )


def fixed_layer(slope: Float64[np.ndarray, "n layer"], train: Bool[np.ndarray, " n"]) -> int:
    """Layer with the largest mean slope over the train samples; the first of equals."""
    return int(slope[train].mean(0).argmax())


def _verdict(
    choice: LayerChoice,
    controls: tuple[LayerChoice, ...],
    comparison: Comparison | None,
    *,
    layer: int,
    reason: str,
) -> tuple[bool, str]:
    """Whether a gain per sample is shown, and the sentence that says so or warns."""
    if choice.crossfit is None:
        return False, (
            f"Warning: the oracle's gain over the fixed layer, {choice.oracle_gain} per unit "
            f"multiplier, is not tested, since {reason}; it is biased upwards."
        )
    gain = choice.crossfit.gain
    beside = f" (random directions: {comparison.control_gain})" if comparison else ""
    if gain.low > 0 and (comparison is None or comparison.difference.low > 0):
        return True, (
            f"A layer chosen per sample gains {gain} per unit multiplier over fixed layer "
            f"{layer}, cross-fitted{beside}."
            + ("" if comparison else " No control was run: random directions may gain as much.")
        )
    plain = f"{choice.oracle_gain.value:.3g}"
    if controls:
        plain += f" (random directions: {np.mean([c.oracle_gain.value for c in controls]):.3g})"
    why = "its interval is not above 0"
    if gain.low > 0 and comparison:
        why = f"it is not shown to exceed theirs: difference {comparison.difference}"
    return False, (
        f"Warning: no gain from choosing the layer per sample is shown. The oracle's {plain} over "
        f"fixed layer {layer} shrinks to {gain}{beside} when one half of the "
        f"multipliers chooses and the other scores, and {why}."
    )


def _letter_warning(by_letter: dict[str, LayerChoice]) -> str:
    """The sentence that says that a direction moves the letter; empty where it is not shown to."""
    enough = {x: choice for x, choice in by_letter.items() if choice.n >= LETTER_SAMPLES}
    up = [x for x, choice in enough.items() if choice.fixed.low > 0]
    down = [x for x, choice in enough.items() if choice.fixed.high < 0]
    if not up or not down:
        return ""
    slopes = ", ".join(f"{x} {by_letter[x].fixed}" for x in [*up, *down])
    return (
        f"Warning: the direction moves the letter, not the behavior: slope by letter {slopes}. "
        "A layer chosen per sample then gains by the letter too."
    )


def _check(
    propensity: Float[np.ndarray, "n layer m"],
    *,
    train: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
    letters: Sequence[str] | Shaped[np.ndarray, " n"] | None,
    control: Float[np.ndarray, "r n layer m"] | None,
) -> None:
    for name, rows in (("train", train), ("test", test)):
        if rows.shape != propensity.shape[:1]:
            raise MismatchError(
                f"the {name} mask has shape {rows.shape}, the sweep {len(propensity)} samples. "
                f"Pass one boolean a sample."
            )
        if not rows.any():
            raise MismatchError(
                f"the {name} split has no sample, expected one or more. "
                f"Give rows a split, or pass more rows."
            )
    if (train & test).any():
        raise MismatchError(
            f"{(train & test).sum()} samples are in both train and test, expected none. "
            f"Choose the layer on samples that the numbers are not read on."
        )
    if letters is not None and len(letters) != len(propensity):
        raise MismatchError(
            f"{len(letters)} letters came with {len(propensity)} samples. Pass one a sample."
        )
    if control is not None and (not len(control) or control.shape[1:] != propensity.shape):
        raise MismatchError(
            f"the control has shape {control.shape}, expected {('r', *propensity.shape)} with "
            f"r of at least 1. Sweep the same samples, layers and multipliers."
        )
