"""Slopes, layer choices and layer orders of a sweep, cell by cell."""

import numpy as np

from tests.reference.stats import cosine, ranks


def slope(values, multipliers):
    """Least-squares slope of one cell."""
    at = sum(multipliers) / len(multipliers)
    height = sum(values) / len(values)
    rise = sum((x - at) * (y - height) for x, y in zip(multipliers, values, strict=True))
    return rise / sum((x - at) ** 2 for x in multipliers)


def residual_rms(values, multipliers):
    """Root mean square distance of one cell from its line."""
    at = sum(multipliers) / len(multipliers)
    height = sum(values) / len(values)
    b = slope(values, multipliers)
    squares = [(y - height - b * (x - at)) ** 2 for x, y in zip(multipliers, values, strict=True)]
    return (sum(squares) / len(squares)) ** 0.5


def spearman(values, multipliers):
    """Correlation of the ranks of one cell; 0 if it is constant."""
    a, b = ranks(values), ranks(multipliers)
    middle = (len(a) + 1) / 2
    return cosine([x - middle for x in a], [y - middle for y in b])


def slope_table(propensity, multipliers):
    """Slope of every sample and layer."""
    n, n_layers, _ = propensity.shape
    out = np.zeros((n, n_layers))
    for i in range(n):
        for layer in range(n_layers):
            out[i, layer] = slope([float(v) for v in propensity[i, layer]], list(multipliers))
    return out


def halves(multipliers):
    """Positions of the multipliers whose size is, in order of size, 1st, 3rd, … and 2nd, 4th, …"""
    sizes = sorted({abs(float(m)) for m in multipliers} - {0.0})
    split: tuple[list[int], list[int]] = [], []
    for at, m in enumerate(multipliers):
        if m != 0:
            split[sizes.index(abs(float(m))) % 2].append(at)
    return split


def first_largest(values):
    """Position of the largest value, the first of equals."""
    best = 0
    for at, value in enumerate(values):
        if value > values[best]:
            best = at
    return best


def layer_choice(propensity, multipliers, train, test):
    """Every number of a `LayerChoice` but the intervals, sample by sample."""
    s = slope_table(propensity, multipliers)
    n_layers = s.shape[1]
    rows = [i for i in range(len(s)) if test[i]]
    fixed = first_largest(
        [sum(s[i, layer] for i in range(len(s)) if train[i]) for layer in range(n_layers)]
    )
    mean = [sum(s[i, layer] for i in rows) / len(rows) for layer in range(n_layers)]
    best = {i: first_largest(s[i]) for i in rows}
    strategies = {
        "n": len(rows),
        "mean": mean,
        "share_steerable": [
            sum(s[i, layer] > 0 for i in rows) / len(rows) for layer in range(n_layers)
        ],
        "fixed_layer": fixed,
        "fixed": mean[fixed],
        "fixed_share": sum(s[i, fixed] > 0 for i in rows) / len(rows),
        "best_on_test_layer": first_largest(mean),
        "best_on_test": max(mean),
        "random_layer": sum(mean) / n_layers,
        "oracle": sum(s[i, best[i]] for i in rows) / len(rows),
        "oracle_share": sum(s[i, best[i]] > 0 for i in rows) / len(rows),
        "oracle_gain": sum(s[i, best[i]] - s[i, fixed] for i in rows) / len(rows),
        "oracle_deviation": sum(abs(best[i] - fixed) for i in rows) / len(rows),
    }
    one, other = (
        slope_table(propensity[:, :, at], [multipliers[a] for a in at])
        for at in halves(multipliers)
    )
    oracle = at_fixed = moved = 0.0
    for i in rows:
        for chooses, scores in ((one, other), (other, one)):
            chosen = first_largest(chooses[i])
            oracle += scores[i, chosen] / (2 * len(rows))
            at_fixed += scores[i, fixed] / (2 * len(rows))
            moved += abs(chosen - fixed) / (2 * len(rows))
    crossfit = {"oracle": oracle, "fixed": at_fixed, "gain": oracle - at_fixed, "deviation": moved}
    return strategies, crossfit


def layers_by_slope(slope):
    """The layers of one sample, larger slopes first, equal ones in their order."""
    left = list(range(len(slope)))
    ordered = []
    while left:
        best = left[0]
        for layer in left[1:]:
            if slope[layer] > slope[best]:
                best = layer
        ordered.append(best)
        left.remove(best)
    return ordered


def frequencies(slope):
    """Share of the samples whose best layer each layer is."""
    count = [0] * len(slope[0])
    for row in slope:
        count[layers_by_slope(row)[0]] += 1
    return [n_best / len(slope) for n_best in count]


def smoothed_label(slope, top, frequency):
    """Of one sample's `top` best layers the commonest; ties go to the larger slope, then the first."""
    candidates = layers_by_slope(slope)[:top]
    best = candidates[0]
    for layer in candidates[1:]:
        if frequency[layer] > frequency[best]:
            best = layer
    return best
