"""Train, validation and test splits: grouped so that nothing leaks, balanced by letter.

Equal prompts, and the variants of one row, always share a split.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from actcache.conventions import SPLITS
from actcache.data.samples import Sample
from actcache.errors import RowError

FRACTIONS = (0.4, 0.1, 0.5)
"""Train, validation and test in Tan et al. 2024."""


def assign_splits(
    samples: Sequence[Sample],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> list[str]:
    """Draw the split of every sample, for each behavior separately.

    Samples are grouped first: those with equal prompts (ignoring white space and case), and the
    variants of one row. Groups are then drawn at random, larger ones first, each to a split that
    still has room for it, with a probability proportional to the room left. Room is counted in rows
    (a row and its variants count once) per letter or label, so that letters are balanced in each
    split as far as groups allow: exactly, up to rounding, where no prompt occurs twice. More
    variants, or other behaviors, change nothing.

    A behavior whose rows have splits of their own keeps them, leaks included: `n_leaked` counts
    them.

    `fractions` are the shares of train, validation and test.

    Raises:
        RowError: a behavior has rows with a split and rows without one.

    Example:
        >>> def row(i, prompt):
        ...     return Sample(id=f"mood/{i}", behavior="mood", prompt=prompt, positive="(A)",
        ...                   negative="(B)", label=None, letter="A")
        >>> splits = assign_splits([row(0, "Well?"), row(1, "And you?"), row(2, " well? ")])
        >>> splits[0] == splits[2]
        True
    """
    _check(fractions, seed)
    splits = [""] * len(samples)
    for behavior, rows in _rows_by_behavior(samples).items():
        drawn = _behavior_splits([samples[i] for i in rows], behavior, fractions, seed)
        for i, split in zip(rows, drawn, strict=True):
            splits[i] = split
    return splits


def n_leaked(samples: Sequence[Sample], splits: Sequence[str], *, exact: bool = True) -> int:
    """Count test samples whose prompt is also in train, within each behavior.

    With `exact` prompts must be identical; without it white space and case are ignored.
    """
    prompts = [
        (
            sample.behavior,
            sample.conversation if exact else _normalized(sample.conversation),
        )
        for sample in samples
    ]
    assigned = list(zip(prompts, splits, strict=True))
    train = {prompt for prompt, split in assigned if split == "train"}
    return sum(split == "test" and prompt in train for prompt, split in assigned)


def plain_splits(
    samples: Sequence[Sample],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> list[str]:
    """Split as steering-bench does: shuffle each behavior by `random.Random(seed)`, then cut.

    For comparison, and to repeat published numbers: equal prompts may land in two splits. Slices
    end at whole percents of the rows, rounded down, as in that code. Samples are in the order of
    their file.
    """
    _check(fractions, seed)
    splits = [""] * len(samples)
    for rows in _rows_by_behavior(samples).values():
        random.Random(seed).shuffle(rows)
        percents = [round(100 * fractions[0]), round(100 * (fractions[0] + fractions[1]))]
        ends = [len(rows) * percent // 100 for percent in percents]
        for rank, i in enumerate(rows):
            splits[i] = SPLITS[sum(rank >= end for end in ends)]
    return splits


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """How many test prompts of a behavior are also in train, ignoring white space and case.

    Counts base samples only; the variants of a row share its split.
    """

    n_test: int
    """Test samples."""

    n_leaked: int
    """Leaked test samples under the actual splits: 0 unless rows have splits of their own."""

    n_leaked_plain: int
    """Those that a plain shuffle with the same seed would leak: what grouping prevents."""

    def recorded(self) -> dict[str, int]:
        """As JSON, for the store."""
        return {"n_test": self.n_test, "kept": self.n_leaked, "plain": self.n_leaked_plain}


def count_leaks(samples: Sequence[Sample], splits: Sequence[str], *, seed: int) -> dict[str, Leaks]:
    """Count leaks of each behavior that has any, under `splits` or under a plain shuffle."""
    leaks = {}
    for behavior, rows in _rows_by_behavior(samples).items():
        base_rows = [i for i in rows if samples[i].variant == "base"]
        base = [samples[i] for i in base_rows]
        base_splits = [splits[i] for i in base_rows]
        counts = Leaks(
            n_test=base_splits.count("test"),
            n_leaked=n_leaked(base, base_splits, exact=False),
            n_leaked_plain=n_leaked(base, plain_splits(base, seed=seed), exact=False),
        )
        if counts.n_leaked or counts.n_leaked_plain:
            leaks[behavior] = counts
    return leaks


def _rows_by_behavior(samples: Sequence[Sample]) -> dict[str, list[int]]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        rows[sample.behavior].append(i)
    return rows


def _behavior_splits(
    samples: list[Sample], behavior: str, fractions: tuple[float, float, float], seed: int
) -> list[str]:
    without = next((sample for sample in samples if not sample.split), None)
    with_split = next((sample for sample in samples if sample.split), None)
    if without is None:
        return [sample.split for sample in samples]
    if with_split is not None:
        raise RowError(
            f"behavior '{behavior}': row '{with_split.id}' ({with_split.source}) has a split, row "
            f"'{without.id}' ({without.source}) has none, expected all rows or none to have one. "
            'Give every row a "split", or no row.'
        )
    groups = _groups(samples)
    strata = {name: s for s, name in enumerate(sorted({_stratum(sample) for sample in samples}))}
    rows: dict[str, tuple[int, int]] = {}  # a row and its variants count once
    for sample, group in zip(samples, groups, strict=True):
        rows.setdefault(sample.base_id, (group, strata[_stratum(sample)]))
    sizes = np.zeros((max(groups) + 1, len(strata)), np.int64)  # [group, stratum]
    np.add.at(sizes, tuple(np.array(list(rows.values())).T), 1)
    # Seeded by the behavior's name, so that other behaviors in the build change nothing.
    name = np.frombuffer(hashlib.sha256(behavior.encode()).digest(), ">u4").tolist()
    drawn = _draw(sizes, _room(sizes.sum(0), fractions), np.random.default_rng([seed, *name]))
    return [SPLITS[drawn[group]] for group in groups]


def _groups(samples: list[Sample]) -> list[int]:
    """Number the groups by first appearance: union-find over equal prompts and equal rows."""
    parent = list(range(len(samples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, sample in enumerate(samples):
        for key in (("prompt", _normalized(sample.conversation)), ("row", sample.base_id)):
            left, right = sorted((root(i), root(first.setdefault(key, i))))
            parent[right] = left  # the earlier sample stays the root
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(samples))]


def _room(
    counts: Int64[np.ndarray, " stratum"], fractions: tuple[float, float, float]
) -> Int64[np.ndarray, "stratum split"]:
    """Rows per stratum and split, rounded so that the sums of strata and of splits both fit."""
    exact = counts[:, None] * np.array(fractions)  # [stratum, split]
    room: Int64[np.ndarray, "stratum split"] = np.floor(exact + 1e-9).astype(np.int64)
    owed = np.zeros(len(SPLITS))
    for s, count in enumerate(counts):  # what rounding owes a split carries to the next stratum
        owed += exact[s] - room[s]
        extra = np.argsort(-owed.round(9), kind="stable")[: count - room[s].sum()]
        room[s, extra] += 1
        owed[extra] -= 1
    return room


def _draw(
    sizes: Int64[np.ndarray, "group stratum"],
    room: Int64[np.ndarray, "stratum split"],
    rng: np.random.Generator,
) -> list[int]:
    """Draw the split of each group, larger groups first."""
    room = room.copy()
    splits = np.zeros(len(sizes), np.int64)
    n_rows = sizes.sum(1)
    order = rng.permutation(np.flatnonzero(n_rows > 1))
    for g in order[np.argsort(-n_rows[order], kind="stable")]:
        too_many = np.maximum(sizes[g][:, None] - room.clip(0), 0).sum(0)  # [split]
        weight = np.where(too_many == too_many.min(), room[sizes[g] > 0].clip(0).sum(0), 0)
        splits[g] = rng.choice(len(SPLITS), p=weight / weight.sum())
        room[:, splits[g]] -= sizes[g]
    # Groups of one row, one at a time, would be drawn alike; all of a letter at once is faster.
    for s in range(sizes.shape[1]):
        single = np.flatnonzero((n_rows == 1) & (sizes[:, s] == 1))
        seats = np.repeat(np.arange(len(SPLITS)), room[s].clip(0))
        splits[single] = rng.permutation(seats)[: len(single)]
    return splits.tolist()


def _stratum(sample: Sample) -> str:
    return sample.letter if sample.label is None else sample.label


def _normalized(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()


def _check(fractions: tuple[float, float, float], seed: int) -> None:
    if not all(f >= 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-9:
        shown = "/".join(f"{f:g}" for f in fractions)
        raise RowError(
            f"the fractions are {shown}, expected three shares of train, validation and test that "
            "sum to 1. Pass for example 0.4, 0.1, 0.5."
        )
    if seed < 0:
        raise RowError(f"--seed is {seed}, expected 0 or more. Pass another.")
