"""Directions of a store: what each behavior's positive and negative residuals differ by.

Streams residuals through `class_moments` once and gives every behavior's direction at all layers.
Knows a store's columns; refuses to know how directions are used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from actcache.analysis.directions.difference_of_means import difference_of_means
from actcache.analysis.stats.moments import Moments, class_moments
from actcache.errors import MismatchError
from actcache.store.store import Store

BATCH_ROWS = 256
"""Rows that are in memory at a time while moments are accumulated."""


@dataclass(frozen=True)
class Directions:
    """Difference-of-means directions of a store, and the moments that they come from."""

    names: Sequence[str]
    """What each is called: the behavior, or `<positive label>-<negative label>`."""

    values: Float32[np.ndarray, "k layer d_model"]
    """Mean of the positive residuals less mean of the negative ones; not scaled."""

    moments: Moments
    """Classes 2·i (positive) and 2·i + 1 (negative) of direction i; train samples alone."""


def pair_directions(store: Store, *, rows: Bool[np.ndarray, " n"]) -> Directions:
    """Directions of a store of pairs: answer token of positive less negative completions (CAA).

    Args:
        store: with the positions positive and negative.
        rows: samples that count, for example the train split.

    Raises:
        MismatchError: a position was not kept, or a behavior has none of `rows`.
    """
    behaviors, code = np.unique(store["behavior"], return_inverse=True)

    def batches() -> Iterator[tuple[Float[np.ndarray, "b layer d"], Int64[np.ndarray, " b"]]]:
        for side, position in enumerate(("positive", "negative")):
            for at, resid in store.resid(position).batches(rows=BATCH_ROWS, select=rows):
                yield resid, 2 * code[at] + side

    return _directions([str(b) for b in behaviors], class_moments(batches(), 2 * len(behaviors)))


def label_directions(
    store: Store, *, rows: Bool[np.ndarray, " n"], labels: tuple[str, str]
) -> Directions:
    """Direction of a store of labelled prompts: last prompt token of one label less the other.

    Args:
        store: with the position prompt.
        rows: samples that count.
        labels: the positive and the negative one.

    Raises:
        MismatchError: a label has none of `rows`.
    """
    code = label_codes(store, labels)

    def batches() -> Iterator[tuple[Float[np.ndarray, "b layer d"], Int64[np.ndarray, " b"]]]:
        for at, resid in store.resid("prompt").batches(rows=BATCH_ROWS, select=rows & (code >= 0)):
            yield resid, code[at]

    return _directions(["-".join(labels)], class_moments(batches(), 2))


def label_codes(store: Store, labels: tuple[str, str]) -> Int64[np.ndarray, " n"]:
    """0 for the positive label, 1 for the negative one, -1 for any other."""
    kept = store["label"]
    return np.where(kept == labels[0], 0, np.where(kept == labels[1], 1, -1)).astype(np.int64)


def two_labels(store: Store, wanted: Sequence[str] | None = None) -> tuple[str, str]:
    """The positive and the negative label: as asked for, or in the order of the data if it has two.

    Raises:
        MismatchError: the data has not two labels and none were asked for, or not those.
    """
    found = list(dict.fromkeys(store["label"].tolist()))
    chosen = list(wanted) if wanted is not None else found
    if len(chosen) != 2 or len(set(chosen)) != 2 or not set(chosen) <= set(found):
        raise MismatchError(
            f"two labels are needed, positive and negative; asked for {chosen}, found "
            f"{', '.join(found)}. Pass --labels POSITIVE,NEGATIVE."
        )
    return chosen[0], chosen[1]


def _directions(names: list[str], moments: Moments) -> Directions:
    values = np.stack(
        [
            difference_of_means(moments, positive=2 * i, negative=2 * i + 1)
            for i in range(len(names))
        ]
    )
    return Directions(names, values, moments)
