"""Beginnings that rows share: a system message, examples in front of every question.

Attention is causal, so a beginning has the same keys and values in every row that starts with it:
a batch runs it once. All rows of a batch are cut at one length, so that what follows stays a plain
padded batch; the length is the one that leaves the fewest tokens to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64

LEAST_SHARE = 1 / 8
"""Sharing must save this part of the tokens: beginnings are one more, small pass."""


@dataclass(frozen=True)
class Beginnings:
    """The first `shared` tokens of a batch's rows, each distinct sequence of them once."""

    ids: Int64[np.ndarray, "distinct shared"]
    """Token ids."""

    of_row: Int64[np.ndarray, " b"]
    """Which of them each row begins with."""

    @property
    def length(self) -> int:
        """Tokens of a beginning; 0 if rows are run whole."""
        return int(self.ids.shape[1])

    @property
    def n_saved(self) -> int:
        """Tokens that need not be run."""
        return (len(self.of_row) - len(self.ids)) * self.length


NOT_SHARED = Beginnings(np.zeros((0, 0), np.int64), np.zeros(0, np.int64))
"""No beginnings: every row is run whole."""


def find_beginnings(heads: Sequence[Sequence[int]]) -> Beginnings:
    """Find the length at which cutting the rows saves most tokens; `NOT_SHARED` if it saves few.

    `heads` are the tokens of each row that may be shared: those before the first one that is read.
    """
    shortest = min(map(len, heads), default=0)
    if not shortest:
        return NOT_SHARED
    order, shared = _neighbors(heads)
    lengths = np.sort(np.minimum(shared, shortest))[::-1]
    # Cut at the k-th largest length, k rows begin like their neighbor.
    saved = lengths * np.arange(1, len(heads))
    best = int(saved.argmax()) if len(saved) else 0
    if not len(saved) or saved[best] < LEAST_SHARE * sum(map(len, heads)):
        return NOT_SHARED
    length = int(lengths[best])
    starts = np.concatenate([[True], shared < length])
    of_row = np.empty(len(heads), np.int64)
    of_row[order] = np.cumsum(starts) - 1
    ids = np.array([heads[row][:length] for row in order[starts]], np.int64)
    return Beginnings(ids, of_row)


def group_by_beginning(heads: Sequence[Sequence[int]]) -> list[list[Int64[np.ndarray, " _"]]]:
    """Group the rows that should run together for what they share; leave out the others.

    Returns:
        Groups of beginnings of one length, each with the numbers of the rows that begin so: two or
        more. The group that saves most tokens comes first.
    """
    if len(heads) < 2:
        return []
    order, shared = _neighbors(heads)
    sizes = np.array([len(heads[row]) for row in order])
    groups = []
    while len(order) > 1:
        most, length = 0, 0
        for candidate in np.unique(shared[shared > 0]):
            same = shared >= candidate
            saved = int(same.sum() * candidate)
            if saved > most and saved >= LEAST_SHARE * sizes[_either(same)].sum():
                most, length = saved, candidate
        if not length:
            break
        same = shared >= length
        members = _either(same)
        beginnings = np.split(order, np.flatnonzero(~same) + 1)
        groups.append([np.sort(rows) for rows in beginnings if len(rows) > 1])
        left = np.flatnonzero(~members)
        # Two rows share what all neighbors between them share.
        shared = np.minimum.reduceat(shared[: left[-1]], left[:-1]) if len(left) > 1 else shared[:0]
        order, sizes = order[left], sizes[left]
    return groups


def _either(same: Bool[np.ndarray, " n_1"]) -> Bool[np.ndarray, " n"]:
    """Mark the rows that begin like the one before, or after."""
    members = np.append(same, False)
    members[1:] |= same
    return members


def _neighbors(
    heads: Sequence[Sequence[int]],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n_1"]]:
    """Order rows by their tokens; count the tokens that each shares with the next one."""
    order = np.array(sorted(range(len(heads)), key=lambda row: tuple(heads[row])), np.int64)
    shared = [_n_equal(heads[left], heads[right]) for left, right in pairwise(order)]
    return order, np.array(shared, np.int64)


def _n_equal(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens that two rows have in common at their start."""
    n = min(len(left), len(right))
    different = np.not_equal(left[:n], right[:n])
    return int(different.argmax()) if different.any() else n
