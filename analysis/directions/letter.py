"""The letter direction: what "(A)" and "(B)" differ by, whatever they stand for in a row.

A pair's completions differ in one letter, so the difference of their residuals holds the letter
beside the behavior, with a sign for which letter is the positive one. It cancels in a mean over
balanced rows, and not in a direction of one row: a network that learns such directions can learn to
name the letter.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from actcache.analysis.directions.difference_of_means import unit
from actcache.analysis.directions.shard_groups import store_moments
from actcache.analysis.stats.units import MapUnits
from actcache.store.store import Store


def letter_directions(
    store: Store, *, rows: Bool[np.ndarray, " n"], map_units: MapUnits = map
) -> Float32[np.ndarray, "layer d_model"] | str:
    """Half the difference between positive minus negative of rows of either letter.

    With z = h(positive) - h(negative), rows whose positive letter is the first hold
    z = behavior + letter, the others z = behavior - letter. So the behavior cancels, also where
    the letters are not balanced.

    The store has the positions positive and negative; `rows` count, for example a behavior's train
    split. Gives the direction at each layer, or why there is none. `map_units` runs the groups of
    `store_moments`.
    """
    reason = why_no_letter(store, rows=rows)
    if reason:
        return reason
    first = store["letter"] == np.unique(store["letter"][rows])[0]
    letter = np.where(first, 0, 2)
    classes = {
        position: np.where(rows, letter + side, -1)
        for side, position in enumerate(("positive", "negative"))
    }
    mean = store_moments(store, classes, 4, map_units=map_units).mean
    return np.asarray(((mean[0] - mean[1]) - (mean[2] - mean[3])) / 2, np.float32)


def why_no_letter(store: Store, *, rows: Bool[np.ndarray, " n"]) -> str:
    """Say why some rows have no letter direction; empty where they have one."""
    chosen = [str(x) for x in np.unique(store["letter"][rows])]
    if len(chosen) == 2 and "" not in chosen:
        return ""
    shown = ", ".join(x or "none" for x in chosen)
    return f"the positive completions begin with {len(chosen)} kinds of letter ({shown}), not 2"


def letter_share(
    directions: Float[np.ndarray, "b layer d_model"], letter: Float[np.ndarray, "layer d_model"]
) -> Float64[np.ndarray, "b layer"]:
    """Share of each direction's squared norm that lies along the letter direction, 0 to 1."""
    along = np.einsum("bld,ld->bl", directions, unit(letter), dtype=np.float64)
    whole = np.einsum("bld,bld->bl", directions, directions, dtype=np.float64)
    return np.asarray(along**2 / np.where(whole > 0, whole, 1))


def without_letter(
    directions: Float32[np.ndarray, "b layer d_model"],
    letter: Float32[np.ndarray, "layer d_model"],
) -> Float32[np.ndarray, "b layer d_model"]:
    """Subtract the directions' part along the letter direction."""
    along = unit(letter).astype(np.float32)
    part = np.einsum("bld,ld->bl", directions, along)
    return np.asarray(directions - part[..., None] * along)
