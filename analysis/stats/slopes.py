"""The line through propensity over the multipliers: its slope, its quality, its two halves.

The slope is steerability (Tan et al. 2024): propensity per unit multiplier. Cells may have any
axes; all are fitted alike.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from actcache.analysis.stats.bootstrap import average_ranks
from actcache.errors import MismatchError, NotFiniteError


def slopes(
    propensity: Float[np.ndarray, "*cell m"], multipliers: Float[np.ndarray, " m"]
) -> Float64[np.ndarray, "*cell"]:
    """Least-squares slope of propensity over the multipliers, for every cell, in float64.

    The same as `np.polyfit(multipliers, cell, 1)[0]`: one weighted sum a cell, with the weights
    `(λ - mean λ) / Σ (λ - mean λ)²`. On a grid symmetric about 0, multiplier 0 has no weight.

    Cells are `[n, layer]`, or have any other axes. A slope is propensity per unit multiplier:
    logits, where propensity is in logits.

    Raises:
        MismatchError: there are not two distinct multipliers.
        NotFiniteError: a propensity or multiplier is infinite or not a number.

    Example:
        >>> slopes(np.array([[[-2.0, 1.0, 4.0]]]), np.array([-1.0, 0.0, 1.0]))
        array([[3.]])
    """
    _check(propensity, multipliers)
    centred = _centred(multipliers)
    return np.asarray(np.asarray(propensity, np.float64) @ (centred / (centred @ centred)))


def swept_rows(propensity: Float[np.ndarray, " n *cell"]) -> Bool[np.ndarray, " n"]:
    """Find the samples that were swept: those with a propensity that is a number."""
    return np.asarray(~np.isnan(propensity).all(tuple(range(1, propensity.ndim))))


def among(
    rows: Bool[np.ndarray, " n"], values: Float[np.ndarray, " _ *cell"]
) -> Float64[np.ndarray, " n *cell"]:
    """Put the values of some rows in their places, NaN in the others."""
    placed = np.full((len(rows), *values.shape[1:]), np.nan)
    placed[rows] = values
    return placed


@dataclass(frozen=True, kw_only=True)
class FitQuality:
    """How well a line describes each cell."""

    residual_rms: Float64[np.ndarray, "*cell"]
    """Root mean square distance of propensity from the line, in units of propensity."""

    rank_correlation: Float64[np.ndarray, "*cell"]
    """Spearman's correlation of propensity and multiplier; 0 where propensity is constant."""


def fit_quality(
    propensity: Float[np.ndarray, "*cell m"], multipliers: Float[np.ndarray, " m"]
) -> FitQuality:
    """Residual and rank correlation of the fits that `slopes` makes; same arguments and errors."""
    slope = slopes(propensity, multipliers)
    values = np.asarray(propensity, np.float64)
    line = slope[..., None] * _centred(multipliers) + values.mean(-1, keepdims=True)
    ranks = np.moveaxis(average_ranks(np.moveaxis(values, -1, 0)), 0, -1)
    ranks -= ranks.mean(-1, keepdims=True)
    order = _centred(average_ranks(multipliers))
    size = np.sqrt((ranks**2).sum(-1) * (order @ order))
    return FitQuality(
        residual_rms=np.sqrt(((values - line) ** 2).mean(-1)),
        rank_correlation=ranks @ order / np.where(size > 0, size, 1),
    )


def split_grid(
    multipliers: Float[np.ndarray, " m"],
) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " m"]] | str:
    """Split a symmetric grid into two symmetric ones that share no multiplier.

    The distinct sizes |λ| > 0, from small to large, go to the two halves in turn: ±0.5, ±1, ±1.5
    becomes {±0.5, ±1.5} and {±1}. Multiplier 0 has no weight in either and is left out. What
    one half chose, the other can judge, since no measured number is in both.

    Returns:
        A mask over the multipliers for each half, or in words why there are none: the grid is not
        symmetric about 0, or has fewer than two distinct sizes.
    """
    ordered = np.sort(multipliers)
    scale = np.abs(ordered).max(initial=0)
    if not np.allclose(ordered, -ordered[::-1], rtol=0, atol=1e-9 * scale):  # steps of 0.1 round
        return "the multipliers are not symmetric about 0"
    size = np.round(np.abs(multipliers) / (scale or 1), 9)
    distinct = np.unique(size[size > 0])
    if len(distinct) < 2:
        return f"the multipliers have {len(distinct)} distinct size, and two halves need two"
    return np.isin(size, distinct[0::2]), np.isin(size, distinct[1::2])


def _centred(values: Float[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    wide = np.asarray(values, np.float64)
    return np.asarray(wide - wide.mean())


def _check(propensity: Float[np.ndarray, "*cell m"], multipliers: Float[np.ndarray, " m"]) -> None:
    if propensity.shape[-1:] != multipliers.shape:
        raise MismatchError(
            f"propensity has {propensity.shape[-1]} multipliers on its last axis, the grid "
            f"{len(multipliers)}. Pass the grid that it was measured on."
        )
    if not np.isfinite(multipliers).all():
        raise NotFiniteError(
            f"the multipliers are {multipliers}, expected finite ones. Mend the grid."
        )
    if len(np.unique(multipliers)) < 2:
        raise MismatchError(
            f"the grid has {len(np.unique(multipliers))} distinct multiplier, a slope needs two. "
            f"Sweep more: --multipliers=-1.5:1.5:0.5"
        )
    if not np.isfinite(propensity).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(propensity))[0])
        raise NotFiniteError(
            f"the propensity at {place} of [.., sample, layer, multiplier] is {propensity[place]}, "
            f"expected a finite one. Sweep with smaller multipliers, or in a wider dtype."
        )
