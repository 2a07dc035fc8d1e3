"""What choices of layers are worth: the figures that tables show and verdicts are drawn from.

All are of test samples, but for cross-validation's. Refuses to know files and words.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from actcache.analysis.predict.embedding_space import silhouette_by_behavior
from actcache.analysis.predict.selections import SHUFFLED, Chosen, w2s
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.results import plain
from actcache.analysis.sweep.layer_ranks import best_layers
from actcache.analysis.sweep.steerability import LETTER_SAMPLES
from actcache.analysis.sweep.ways import FIXED, Way, worths
from actcache.encoders import Embeddings

BEYOND = "W2S beyond shuffled"
"""The primary predictor's slope, its gain read over the predictor of traded prompts."""


def figures(
    kinds: Mapping[str, Mapping[str, Chosen]], settings: W2SSettings, *, seed: int, draws: int
) -> dict[str, Any]:
    """Every way of choosing, by kind of directions, variant and behavior.

    Args:
        kinds: by kind and behavior.
        settings: of the predictors.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        `worth[kind][variant]` with `mean` and `behaviors`; `by_letter[kind][letter]`, means over
        behaviors; `beyond[kind]`, the gain over the predictor of traded prompts; `primary[kind]`,
        the K that did best in cross-validation; `variants` that there are, and `letters` with
        enough samples.
    """
    chosen = [each for found in kinds.values() for each in found.values()]
    variants = list(dict.fromkeys(v for c in chosen for v in c.rows.variant[c.rows.test].tolist()))
    variants = sorted(variants, key=lambda name: name != "base")
    first = next(iter(kinds.values())).values()
    counted = Counter(x for c in first for x in c.rows.letter[c.rows.test].tolist() if x)
    letters = sorted(x for x, n in counted.items() if n >= LETTER_SAMPLES)
    primary = {name: _primary(found, settings) for name, found in kinds.items()}
    worth: dict[str, Any] = {}
    by_letter: dict[str, Any] = {}
    beyond: dict[str, Any] = {}
    for name, found in kinds.items():
        rng = np.random.default_rng(seed)  # each kind's draws alone, whatever others there are
        worth[name] = {}
        for variant in variants:
            ways = _ways(found, variant=variant)
            each, mean = worths(ways, rng, draws=draws)
            worth[name][variant] = {"mean": plain(mean), "behaviors": plain(each)}
        by_letter[name] = {}
        for letter in letters:
            ways = _ways(found, letter=letter)
            if ways:
                by_letter[name][letter] = plain(worths(ways, rng, draws=draws)[1])
        top = primary[name]
        if top is not None:
            ways = {
                behavior: _against_shuffled(each, w2s(top))
                for behavior, each in _ways(found).items()
            }
            beyond[name] = plain(worths(ways, rng, draws=draws)[1][BEYOND].gain)
    return {
        "variants": variants,
        "letters": letters,
        "primary": primary,
        "worth": worth,
        "by_letter": by_letter,
        "beyond": beyond,
    }


def training_figures(found: Mapping[str, Chosen]) -> dict[str, Any]:
    """What cross-validation said of each behavior's predictors, by way."""
    return {
        behavior: {
            name: {
                "active_layers": each.active_layers.tolist(),
                "chosen": plain(each.chosen),
                "n_folds": each.n_folds,
                "cv_value": each.cv_value,
                "cv_crossfit": each.cv_crossfit,
                "cv_fixed": each.cv_fixed,
                "cv_gain": each.cv_gain,
                "cv_gain_error": each.cv_gain_error,
            }
            for name, each in chosen.predictors.items()
        }
        for behavior, chosen in found.items()
    }


def encoder_figures(
    embeddings: Embeddings, found: Mapping[str, Chosen], behaviors: Shaped[np.ndarray, " n"]
) -> dict[str, Any]:
    """How well an encoder serves: behaviors apart, best layers predicted, steerability reached.

    Args:
        embeddings: of all rows of the store.
        found: by behavior, the choices of the predictors that read these embeddings.
        behaviors: of all rows.
    """
    tested = np.zeros(len(behaviors), bool)
    accuracy, value, fixed = [], [], []
    for chosen in found.values():
        rows = chosen.rows.test & (chosen.rows.variant == "base")
        tested[chosen.rows.at[rows]] = True
        name = next(iter(chosen.places))
        best = best_layers(chosen.slopes.slope[rows])
        accuracy.append(float((chosen.places[name][:, rows] == best).mean()))
        ways = chosen.ways(rows)
        value.append(float(ways[name].slope.mean()))
        fixed.append(float(ways[FIXED].slope.mean()))
    silhouette = None
    if len(found) > 1:
        silhouette = silhouette_by_behavior(embeddings.values[tested], behaviors[tested]).mean
    return {
        "settings": plain(embeddings.settings),
        "n_dimensions": embeddings.values.shape[1],
        "n_truncated": embeddings.n_truncated,
        "silhouette": silhouette,
        "accuracy": float(np.mean(accuracy)),
        "value": float(np.mean(value)),
        "fixed": float(np.mean(fixed)),
    }


def _primary(found: Mapping[str, Chosen], settings: W2SSettings) -> int | None:
    """The K whose predictors gained most in cross-validation, mean over behaviors."""
    if not all(each.predictors for each in found.values()):
        return None
    gains = {
        top: np.mean([each.predictors[w2s(top)].cv_gain for each in found.values()])
        for top in settings.top
    }
    return max(gains, key=lambda top: gains[top])


def _ways(
    found: Mapping[str, Chosen], *, variant: str = "base", letter: str | None = None
) -> dict[str, dict[str, Way]]:
    """Ways of the behaviors that have such test samples."""
    tested = {}
    for behavior, each in found.items():
        rows = each.rows.test & (each.rows.variant == variant)
        tested[behavior] = rows if letter is None else rows & (each.rows.letter == letter)
    return {
        behavior: each.ways(tested[behavior])
        for behavior, each in found.items()
        if tested[behavior].any()
    }


def _against_shuffled(ways: Mapping[str, Way], name: str) -> dict[str, Way]:
    own = ways[name]
    against = ways[SHUFFLED].slope.mean(0)
    return {FIXED: ways[FIXED], BEYOND: Way(own.slope, own.steerable, against=against)}
