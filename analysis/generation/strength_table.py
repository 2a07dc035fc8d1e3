"""Metrics of generated texts by strength and row, and what a split of the rows shows of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from actcache.analysis.generation.summary import StrengthScores
from actcache.analysis.generation.texts import GeneratedText
from actcache.analysis.stats.bootstrap import Interval, mean_intervals

METRICS = (
    *("target", "nll_unsteered", "nll_steered", "form", "ended", "empty", "refusal"),
    *("tokens", "n_bytes", "repetition", "compression", "script"),
)
"""Metrics of a table, by the names of `StrengthScores`' fields."""


_LARGEST_EXPONENT = 700.0  # exp of more is infinite, which JSON cannot hold


@dataclass(frozen=True, kw_only=True, eq=False)
class StrengthTable:
    """The metrics of one method's texts on some rows; samples of a row are averaged."""

    strengths: tuple[float, ...]
    """Ascending. The unsteered table has one, whose value means nothing."""

    values: Mapping[str, Float64[np.ndarray, "strength n"]]
    """By name of `METRICS`; NaN where a row's texts have none."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are drawn: each afresh from the seed, so that no order matters."""

    seed: int = 0
    draws: int = 1000

    def interval(self, values: Float64[np.ndarray, " n"]) -> Interval | None:
        """Estimate the mean over rows that are not NaN; None if there are none."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        rng = np.random.default_rng(self.seed)
        return mean_intervals(finite[:, None], rng, draws=self.draws)[0]


def strength_table(
    texts: Mapping[float, Sequence[GeneratedText]], rows: Sequence[str]
) -> StrengthTable:
    """Average the texts of each strength and row.

    Args:
        texts: by strength.
        rows: ids of the rows, in the order of the table.
    """
    strengths = tuple(sorted(texts))
    place = {row: i for i, row in enumerate(rows)}
    totals = {name: np.zeros((len(strengths), len(rows))) for name in METRICS}
    counts = {name: np.zeros((len(strengths), len(rows))) for name in METRICS}
    for k, strength in enumerate(strengths):
        for text in texts[strength]:
            for name, value in _values(text).items():
                if value is not None:
                    totals[name][k, place[text.id]] += value
                    counts[name][k, place[text.id]] += 1
    with np.errstate(invalid="ignore"):
        values = {name: totals[name] / counts[name] for name in METRICS}  # 0 / 0 is NaN
    return StrengthTable(strengths=strengths, values=values)


def _values(text: GeneratedText) -> dict[str, float | None]:
    return {
        "target": text.target,
        "nll_unsteered": text.nll_unsteered,
        "nll_steered": text.nll_steered,
        "form": float(not text.empty and text.well_formed is not False),
        "ended": float(text.ended),
        "empty": float(text.empty),
        "refusal": float(text.refusal),
        "tokens": float(text.n),
        "n_bytes": float(text.n_bytes),
        "repetition": text.repetition,
        "compression": text.compression,
        "script": text.script,
    }


def effects(
    table: StrengthTable, unsteered: StrengthTable, place: int
) -> Float64[np.ndarray, " n"]:
    """Subtract the unsteered text's target from that at one strength, row by row."""
    difference: Float64[np.ndarray, " n"] = (
        table.values["target"][place] - unsteered.values["target"][0]
    )
    return difference


def score_strength(
    table: StrengthTable,
    unsteered: StrengthTable,
    place: int,
    *,
    rows: Bool[np.ndarray, " n"],
    bootstrap: Bootstrap,
) -> StrengthScores:
    """Score the texts of one strength on some rows; reads no other row."""
    means = {name: _mean(values[place, rows]) for name, values in table.values.items()}
    nll = table.values["nll_unsteered"][place, rows] - unsteered.values["nll_unsteered"][0, rows]
    more = _mean(nll)
    return StrengthScores(
        strength=table.strengths[place],
        n=int(rows.sum()),
        target=means["target"],
        effect=bootstrap.interval(effects(table, unsteered, place)[rows]),
        nll_unsteered=means["nll_unsteered"],
        nll_steered=means["nll_steered"],
        perplexity_ratio=None if more is None else math.exp(min(more, _LARGEST_EXPONENT)),
        form=means["form"] or 0.0,
        ended=means["ended"] or 0.0,
        empty=means["empty"] or 0.0,
        refusal=means["refusal"] or 0.0,
        tokens=means["tokens"] or 0.0,
        n_bytes=means["n_bytes"] or 0.0,
        repetition=means["repetition"],
        compression=means["compression"],
        script=means["script"],
    )


def _mean(values: Float64[np.ndarray, " n"]) -> float | None:
    """The mean of what is not NaN; None if nothing is left."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
