"""Cross-validation folds: equal prompts in one fold, letters balanced."""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64

from actcache.errors import MismatchError

SAME = 1e-5
"""Distance on an axis up to which two unit embeddings are equal: rounding of float32."""


def grouped_folds(
    groups: Sequence[str], letters: Sequence[str], *, n_folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Draw the fold of each sample with scikit-learn's `StratifiedGroupKFold`.

    Small data get fewer folds: never more than there are groups, and none is empty. Letters are
    balanced as far as groups and their counts allow.

    Groups are the samples' prompts; those that are equal but for white space and case stay
    together. Empty letters are a letter like others. Folds are numbers from 0, none skipped.
    """
    if len(letters) != len(groups):
        raise MismatchError(
            f"{len(letters)} letters came with {len(groups)} prompts. Pass one a sample."
        )
    _, group = np.unique(
        [" ".join(text.split()).casefold() for text in groups], return_inverse=True
    )
    n_groups = len(np.unique(group))
    if n_groups < 2 or n_folds < 2:
        raise MismatchError(
            f"{n_folds} folds of {n_groups} distinct train prompts were asked for, expected two or "
            f"more of both. Pass more rows, or folds of at least 2."
        )
    _, letter = np.unique(np.asarray(letters, dtype=str), return_inverse=True)
    n_folds = min(n_folds, n_groups)
    groups, letters = tuple(group.tolist()), tuple(letter.tolist())
    fold = _draw(groups, letters, n_folds, seed)
    if len(set(fold)) < n_folds:  # rare or grouped letters can leave one empty
        fold = _draw(groups, (0,) * len(letters), n_folds, seed)
    return np.array(fold, np.int64)


def equal_rows(vectors: Float32[np.ndarray, "n e"]) -> Int64[np.ndarray, " n"]:
    """Number the distinct rows, equal up to `SAME`, in time n·log n.

    On a random axis equal rows lie side by side; a gap beside them separates them from all others.
    Rows are one where no gap on any of four axes is between them.
    """
    axes = np.random.default_rng(0).standard_normal((vectors.shape[1], 4))
    projected = np.nan_to_num(vectors.astype(np.float64)) @ axes  # [n, axis]
    order = projected.argsort(axis=0, kind="stable")
    ordered = np.take_along_axis(projected, order, axis=0)
    gaps = np.diff(ordered, axis=0, prepend=ordered[:1]) > SAME
    run = np.empty_like(order)
    np.put_along_axis(run, order, gaps.cumsum(axis=0), axis=0)
    return np.unique(run, axis=0, return_inverse=True)[1].reshape(-1)


@lru_cache(maxsize=64)  # the predictors of all sets of a behavior draw the same folds
def _draw(
    groups: tuple[int, ...], letters: tuple[int, ...], n_folds: int, seed: int
) -> tuple[int, ...]:
    from sklearn.model_selection import StratifiedGroupKFold

    group, letter = np.array(groups), np.array(letters)
    if np.bincount(letter).max() < n_folds:  # scikit-learn refuses: no letter can be balanced
        letter = np.zeros_like(letter)
    fold = np.zeros(len(group), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on a letter rarer than folds
        for number, (_, held_out) in enumerate(splitter.split(group, letter, group)):
            fold[held_out] = number
    return tuple(fold.tolist())
