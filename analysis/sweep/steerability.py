"""Steerability of a sweep: the slope of every sample and layer, and what strategies make of it.

Train samples choose the fixed layer, all numbers are of test samples. The gain of a layer chosen
per sample is read plainly, cross-fitted, and beside random directions under the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from actcache.analysis.names import CONTROL
from actcache.analysis.stats.bootstrap import Interval, bootstrap_means, estimates
from actcache.analysis.sweep.layer_ranks import best_layers
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.strategies import (
    SlopeTable,
    SplitScore,
    SteerabilityScores,
    cross_fitted,
    fixed_layer,
    score_samples,
    slope_table,
)
from actcache.errors import MismatchError

LETTER_SAMPLES = 8
"""Samples that a letter must have to be judged: the bootstrap of a single one has no width."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The cross-fitted gain beside that of random directions."""

    control_gain: Interval
    """Cross-fitted gain of the control, mean over its direction sets."""

    difference: Interval
    """Gain minus the control's gain, paired by sample."""


@dataclass(frozen=True, kw_only=True)
class BehaviorScores(SteerabilityScores):
    """The scores of one behavior's test samples, split by letter and beside random directions."""

    by_letter: dict[str, SteerabilityScores]
    """Test samples whose positive completion has that letter; same fixed layer."""

    control: tuple[SteerabilityScores, ...]
    """The same numbers for each set of random directions, with fixed layers of their own."""

    comparison: Comparison | None
    """None without a control, or without a cross-fit."""

    no_cross_fit: str
    """Why the grid has no halves to cross-fit with; empty where it has."""

    splits: tuple[SplitScore, ...] = ()
    """The fixed layer on the store's own split and on random ones; base prompts."""


@dataclass(frozen=True, kw_only=True)
class Steerability:
    """Slopes of all samples, their best layers, and the scores of the test samples."""

    slope: Float64[np.ndarray, "n layer"]
    """NaN of samples that were not swept."""

    oracle_layer: Int64[np.ndarray, " n"]
    """Place of each sample's best layer, the first of equals; -1 of samples that were not swept."""

    cross_fitted_layer: Int64[np.ndarray, "n 2"] | None
    """Place of each sample's best layer by either half of the multipliers; -1 likewise."""

    scores: BehaviorScores


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
) -> Steerability:
    """Score a sweep: train samples choose layers, numbers are of test samples.

    Args:
        propensity: of every sample, layer and multiplier. Samples that are NaN throughout were not
            swept: none of them may be in `train` or `test`.
        multipliers: the grid. Where it is not symmetric about 0, or has fewer than two distinct
            sizes, there is no cross-fit, and the result says why.
        train: samples that choose the fixed layer.
        test: samples that all numbers are means over; none of them may be in `train`.
        rng: source of the bootstrap draws.
        letters: letter of each sample's positive completion; an empty one is left out of the split.
        control: propensity of the same samples, or of the same part of them, under `r` sets of
            random directions.
        fixed: place of the fixed layer, where something else than these slopes chose it (L2S lets
            the oracle's vectors); the control chooses its own in any case.
        layers: numbers of the layers; by default their places.
        draws: bootstrap draws of the 95 % intervals.

    Raises:
        MismatchError: no train or test sample, samples in both, shapes that differ, or fewer than
            two distinct multipliers.
        NotFiniteError: a propensity is infinite or not a number.
    """
    _check(propensity, train=train, test=test, letters=letters, control=control)
    sets = [propensity, *([] if control is None else control)]
    tables = [slope_table(values, multipliers) for values in sets]
    table = tables[0]
    numbers = range(propensity.shape[1]) if layers is None else layers
    swept = _swept_control(table, tables[1:], train=train, test=test)
    places = [fixed_layer(table.slope, train)]
    places += [fixed_layer(table.slope, train & swept) for table in tables[1:]]
    if fixed is not None:
        places[0] = fixed

    def score(table: SlopeTable, rows: Bool[np.ndarray, " n"], place: int) -> SteerabilityScores:
        return score_samples(
            table.of(rows), fixed_layer=place, layers=numbers, rng=rng, draws=draws
        )

    # The order of these calls is the order of the bootstrap's draws.
    tested = score(table, test, places[0])
    letter = np.full(len(test), "") if letters is None else np.asarray(letters, dtype=str)
    by_letter = {
        str(x): score(table, test & (letter == x), places[0]) for x in np.unique(letter[test]) if x
    }
    controls = [
        score(table, test & swept, place)
        for table, place in zip(tables[1:], places[1:], strict=True)
    ]
    comparison = None
    gains = [
        cross_fitted(table.halves[:, test], fixed_layer=place).gain
        for table, place in zip(tables, places, strict=True)
        if table.halves is not None
    ]
    if len(gains) > 1:
        random = np.mean(gains[1:], axis=0)  # [test], NaN where the control was not swept
        comparison = _compare(gains[0], random, rng, draws)
    rows = table.rows
    halves = None if table.halves is None else table.halves[:, rows].argmax(2).T
    return Steerability(
        slope=table.slope,
        oracle_layer=_placed(rows, best_layers(table.slope[rows])),
        cross_fitted_layer=None if halves is None else _placed(rows, halves),
        scores=BehaviorScores(
            **vars(tested),
            by_letter=by_letter,
            control=tuple(controls),
            comparison=comparison,
            no_cross_fit=table.reason,
        ),
    )


def _compare(
    gain: Float64[np.ndarray, " n"],
    random: Float64[np.ndarray, " n"],
    rng: np.random.Generator,
    draws: int,
) -> Comparison:
    """Compare mean gains; samples are drawn together, also where some have no control."""
    known = ~np.isnan(random)
    columns = np.column_stack([gain, np.where(known, random, 0), known])

    def gains(means: Float64[np.ndarray, "_ 3"]) -> Float64[np.ndarray, "_ 2"]:
        of_all, of_random = means[:, 0], means[:, 1] / np.maximum(means[:, 2], 1 / len(gain))
        return np.column_stack([of_random, of_all - of_random])

    drawn = gains(bootstrap_means(columns, rng, draws=draws))
    control_gain, difference = estimates(gains(columns.mean(0)[None])[0], drawn)
    return Comparison(control_gain=control_gain, difference=difference)


def _placed(
    rows: Bool[np.ndarray, " n"], layers: Int64[np.ndarray, " _ *half"]
) -> Int64[np.ndarray, " n *half"]:
    placed = np.full((len(rows), *layers.shape[1:]), -1)
    placed[rows] = layers
    return placed


def steerability(
    sweep: Sweep,
    name: str | None = None,
    *,
    train: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
    seed: int = 0,
    draws: int = 1000,
) -> Steerability:
    """Score one direction set of a sweep, beside the sweep's random directions.

    Args:
        sweep: what `run_sweep` returned, or `open_sweep` opened.
        name: the direction set; by default the main one.
        train: samples that choose the fixed layer.
        test: samples that all numbers are means over; none of them may be in `train`.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        MismatchError: there is no such set, or as `summarize`.
    """
    controls = [
        sweep.propensity_of(other) for other in sweep.names if other.partition("_")[0] == CONTROL
    ]
    return summarize(
        sweep.propensity_of(name or sweep.main_set),
        sweep.multipliers,
        train=train,
        test=test,
        rng=np.random.default_rng(seed),
        letters=sweep.store["letter"],
        control=np.stack(controls) if controls else None,
        layers=sweep.layers.tolist(),
        draws=draws,
    )


def _swept_control(
    table: SlopeTable,
    controls: Sequence[SlopeTable],
    *,
    train: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """The samples that all controls have; refuses sides that were not swept."""
    swept = np.logical_and.reduce([np.ones(len(train), bool), *(table.rows for table in controls)])
    for name, side in (("train", train), ("test", test)):
        absent = int((side & ~table.rows).sum())
        if absent or not (side & swept).any():
            raise MismatchError(
                f"{absent} of {side.sum()} {name} samples were not swept, and "
                f"{(side & swept).sum()} were with the control; expected all, and some. Sweep "
                "them, or leave them out."
            )
    return np.asarray(swept)


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
