"""Single prompts as the page holds them: texts, slopes at every layer, curves over multipliers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from actcache.analysis.report.html.columns import coded, packed, rounded, scaled

SLOPE_BYTES, CURVE_BYTES, TEXT_BYTES = 600_000, 450_000, 500_000
"""How much of the page slopes, curves and texts of samples may take."""

SHORTEST, LONGEST = 80, 240
"""Characters of a prompt that are shown, depending on how many there are."""

_BASE64 = 4 / 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Test samples of a sweep, in any order."""

    id: Sequence[str]
    behavior: Sequence[str]
    variant: Sequence[str]

    letter: Sequence[str]
    """Of the positive completion; empty where completions are no letters."""

    prompt: Sequence[str]

    layers: Sequence[int]
    multipliers: Sequence[float]

    slope: Float[np.ndarray, "n layer"]
    propensity: Float[np.ndarray, "n layer m"]

    predicted: Int64[np.ndarray, " n"] | None
    """Layer that the predictor of CAA vectors chooses; None without predictors."""

    plane: Float[np.ndarray, "n 2"] | None
    """Where the prompt lies in the plane; NaN of framed prompts."""

    n_tested: int
    """Test samples of the sweep, of which these are some."""


def shortened(text: str, limit: int) -> str:
    """Cut a text where it is longer than `limit`; what no encoding has becomes a question mark."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def spread(groups: Sequence[Any], most: int) -> Int64[np.ndarray, " _"]:
    """Choose at most `most` places, as many of each group as fits, evenly over its members."""
    members: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    if len(groups) <= most:
        return np.arange(len(groups))
    share = max(1, most // len(members))
    chosen = [
        places[k * len(places) // min(share, len(places))]
        for places in members.values()
        for k in range(min(share, len(places)))
    ]
    return np.array(sorted(chosen), np.int64)


def sample_columns(samples: Samples, fixed_layers: Mapping[str, int]) -> dict[str, Any]:
    """Write samples as columns of numbers and words: as many as the page has room for."""
    n_layers, n_multipliers = samples.propensity.shape[1:]
    groups = list(zip(samples.behavior, samples.variant, strict=True))
    rows = spread(groups, int(SLOPE_BYTES / (2 * n_layers * _BASE64)))
    groups = [groups[row] for row in rows]
    with_curve = spread(groups, int(CURVE_BYTES / (n_layers * n_multipliers * _BASE64)))
    slope, step = scaled(samples.slope[rows], np.int16)
    curves, sizes = _curves(samples.propensity[rows[with_curve]])

    def taken(values: Sequence[str]) -> list[str]:
        return [values[row] for row in rows]

    texts = taken(samples.prompt)
    limit = min(LONGEST, max(SHORTEST, TEXT_BYTES // max(1, len(set(texts)))))
    return {
        "n_tested": samples.n_tested,
        "layers": list(samples.layers),
        "multipliers": [rounded(m) for m in samples.multipliers],
        "fixed": dict(fixed_layers),
        "id": taken(samples.id),
        "behavior": coded(taken(samples.behavior)),
        "framing": coded(taken(samples.variant)),
        "letter": coded(taken(samples.letter)),
        "prompt": coded([shortened(text, limit) for text in texts]),
        "slope": {"step": step, "values": packed(slope)},
        "curves": {"of": with_curve.tolist(), "steps": sizes, "values": packed(curves)},
        "predicted": None if samples.predicted is None else samples.predicted[rows].tolist(),
        "plane": None
        if samples.plane is None
        else [[rounded(x) for x in column] for column in samples.plane[rows].T.tolist()],
    }


def _curves(propensity: Float[np.ndarray, "n layer m"]) -> tuple[Any, list[float]]:
    """Scale each sample's curves to a byte: the bytes, and the size of one for each sample."""
    pairs = [scaled(curves, np.int8) for curves in propensity]
    empty = np.empty((0, *propensity.shape[1:]), np.int8)
    sizes = [float(f"{step:.6g}") for _, step in pairs]
    return (np.stack([bytes_ for bytes_, _ in pairs]) if pairs else empty), sizes
