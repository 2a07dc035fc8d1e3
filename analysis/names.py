"""Names of direction sets and layer strategies: keys in files, labels where text is shown.

A key never changes its spelling: it is part of summary.json, of array names and of file names.
"""

import hashlib
import re
from collections.abc import Iterable

METHOD = "difference_of_means"
"""The behaviors' own directions, in directions.safetensors and sweep.zarr."""

CAA = "caa"
L2S = "l2s"
L2S_WITHOUT_LETTER = "l2s_without_letter"
OWN_DIFFERENCE = "oracle_vectors"
CONTROL = "random"

DIRECTION_SETS = {
    CAA: "CAA",
    L2S: "L2S",
    L2S_WITHOUT_LETTER: "L2S minus letter",
    OWN_DIFFERENCE: "own difference",
    CONTROL: "random vector",
}
"""Labels of the direction sets that layers are chosen for, in the order of the tables."""

FIXED = "fixed"
MOST_FREQUENT = "most_frequent"
RANDOM = "random"
RANDOM_ACTIVE = "random_active"
RANKS = ("oracle", "second", "third", "fourth")
ORACLE = RANKS[0]
CROSS_FITTED = "cross_fitted"
W2S_SHUFFLED = "w2s_shuffled"

_STRATEGIES = {
    FIXED: "fixed layer",
    MOST_FREQUENT: "most frequent",
    RANDOM: "random layer",
    RANDOM_ACTIVE: "random active layer",
    CROSS_FITTED: "cross-fitted",
    W2S_SHUFFLED: "W2S shuffled",
}

STEERING_METHODS = {
    "caa": "CAA",
    "l2s": "L2S",
    "w2s": "W2S",
    "ss": "Selective Steering",
    "sas": "Angular Steering",
    "aas": "Adaptive Angular Steering",
    "ablation": "directional ablation",
    "actadd": "ActAdd",
    "cast": "CAST",
    "random": "random vector",
    "random_plane": "random plane",
}
"""Labels of the methods of steered generation."""


def control_set(number: int) -> str:
    """Name a set of random directions in sweep.zarr: `random`, then `random_1` and so on."""
    return CONTROL if number == 0 else f"{CONTROL}_{number}"


def split_set(number: int) -> str:
    """Name the directions of a random split in sweep.zarr; the store's own split is 0."""
    return f"split_{number}"


def w2s(top: int) -> str:
    """Key of the predictor with label smoothing over the best `top` layers."""
    return f"w2s_top{top}"


def strategy_label(strategy: str) -> str:
    """What a table calls a strategy."""
    if strategy.startswith("w2s_top"):
        return f"W2S Top-{strategy.removeprefix('w2s_top')}"
    return _STRATEGIES.get(strategy, strategy)


def slugs(names: Iterable[str]) -> dict[str, str]:
    """File names that are plain on every system, no two of them the same.

    Example:
        >>> slugs(["power seeking", "cache:mean:3"])
        {'power seeking': 'power-seeking', 'cache:mean:3': 'cache-mean-3'}
    """
    plain = {name: re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60] for name in names}
    shared = [slug for slug in plain.values() if list(plain.values()).count(slug) > 1]
    return {
        name: f"{slug}-{_digest(name)}".strip("-") if slug in shared or not slug else slug
        for name, slug in plain.items()
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
