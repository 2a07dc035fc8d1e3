"""Cross-validation folds: equal prompts on one side, letters balanced.

Refuses to know what is trained on them.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from actcache.errors import MismatchError


def grouped_folds(
    groups: Sequence[str], letters: Sequence[str], *, n_folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """The fold of each sample, drawn by scikit-learn's `StratifiedGroupKFold`.

    Small data get fewer folds: never more than there are groups, and none is empty. Letters are
    balanced as far as groups and their counts allow.

    Args:
        groups: prompt of each sample; those that are equal but for white space and case stay
            together.
        letters: letter of each sample's positive completion; empty ones are a letter like others.
        n_folds: folds wanted, two or more.
        seed: of the draw.

    Returns:
        Numbers from 0, each of them in use.

    Raises:
        MismatchError: fewer than two groups, fewer than two folds wanted, or not one letter each.
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
    fold = _draw(group, letter, n_folds, seed)
    if len(np.unique(fold)) < n_folds:  # letters that are rare or bound to groups can leave a gap
        fold = _draw(group, np.zeros_like(letter), n_folds, seed)
    return fold


def _draw(
    group: Int64[np.ndarray, " n"], letter: Int64[np.ndarray, " n"], n_folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    from sklearn.model_selection import StratifiedGroupKFold

    if np.bincount(letter).max() < n_folds:  # scikit-learn refuses; no letter could be balanced
        letter = np.zeros_like(letter)
    fold = np.zeros(len(group), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a letter that is rarer than folds
        for number, (_, held_out) in enumerate(splitter.split(group, letter, group)):
            fold[held_out] = number
    return fold
