"""Which samples are train, validation and test: grouped so that nothing leaks, balanced by letter.

Equal prompts, and the variants of one row, are always on one side. Refuses to know layers, models
and what the sides are used for.
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
    """The split of every sample, drawn for each behavior on its own.

    Samples are grouped first: those with equal prompts (but for white space and case), and those
    that are variants of one row. Groups are then drawn at random, larger ones first, each to a side
    that still has room for it, with a chance that is proportional to the room left. Room is counted
    in rows (a row and its variants count once) for each letter or label apart, so that letters are
    balanced on each side as far as groups allow: exactly, within rounding, where no prompt occurs
    twice. Asking for more variants, or adding other behaviors, changes nothing.

    A behavior whose rows bring their split keeps it, leaks and all: `n_leaked` counts them.

    Args:
        samples: of any number of behaviors, in any order.
        fractions: shares of train, validation and test; they sum to 1.
        seed: of the draw.

    Returns:
        One of `SPLITS` for each sample, in order.

    Raises:
        RowError: a behavior has rows with a split and rows without one, or `fractions` or `seed`
            cannot be used.

    Example:
        >>> def row(i, prompt):
        ...     return Sample(id=f"mood/{i}", behavior="mood", prompt=prompt, positive="(A)",
        ...                   negative="(B)", label=None, letter="A")
        >>> splits = assign_splits([row(0, "Well?"), row(1, "And you?"), row(2, " well? ")])
        >>> splits[0] == splits[2]
        True
    """
    _check(fractions, seed)
    result = [""] * len(samples)
    for behavior, where in _members(samples).items():
        chosen = [samples[i] for i in where]
        for i, split in zip(
            where, _behavior_splits(chosen, behavior, fractions, seed), strict=True
        ):
            result[i] = split
    return result


def n_leaked(samples: Sequence[Sample], splits: Sequence[str], *, exact: bool = True) -> int:
    """How many test samples have a prompt that some train sample of their behavior has too.

    Args:
        samples: the samples.
        splits: their splits, as `assign_splits` or `plain_splits` gives them.
        exact: whether prompts must be equal to the letter; else but for white space and case.

    Returns:
        A count of samples of `test`.
    """
    prompts = [
        (sample.behavior, sample.prompt if exact else _key(sample.prompt)) for sample in samples
    ]
    sides = list(zip(prompts, splits, strict=True))
    trained = {prompt for prompt, split in sides if split == "train"}
    return sum(split == "test" and prompt in trained for prompt, split in sides)


def plain_splits(
    samples: Sequence[Sample],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> list[str]:
    """The splits of steering-bench: a behavior's rows shuffled by `random.Random(seed)`, then cut.

    For comparison, and to repeat published numbers: equal prompts may fall on two sides. Slices end
    at whole percents of the rows, rounded down, as in that code.

    Args:
        samples: in the order of their file; behaviors are shuffled apart.
        fractions: shares of train, validation and test; they sum to 1.
        seed: of the shuffle.

    Returns:
        One of `SPLITS` for each sample, in order.

    Raises:
        RowError: `fractions` or `seed` cannot be used.
    """
    _check(fractions, seed)
    result = [""] * len(samples)
    for where in _members(samples).values():
        random.Random(seed).shuffle(where)
        percents = [round(100 * fractions[0]), round(100 * (fractions[0] + fractions[1]))]
        ends = [len(where) * percent // 100 for percent in percents]
        for rank, i in enumerate(where):
            result[i] = SPLITS[sum(rank >= end for end in ends)]
    return result


def leaks(
    samples: Sequence[Sample],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    exact: bool = True,
) -> int:
    """How many test prompts a plain shuffle would have had in train: what grouping prevents.

    Args:
        samples: base samples in the order of their file.
        fractions: shares of train, validation and test.
        seed: of the shuffle.
        exact: whether prompts must be equal to the letter; else but for white space and case.

    Returns:
        `n_leaked` of `plain_splits`.
    """
    return n_leaked(samples, plain_splits(samples, fractions=fractions, seed=seed), exact=exact)


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Test prompts of one behavior that are in its train split too, but for white space and case.

    Of base samples alone; the variants of a row go where it goes.
    """

    n_test: int
    """Test samples."""

    kept: int
    """Leaked test samples of the splits as they are: 0, but where rows brought their own."""

    plain: int
    """What a plain shuffle with the same seed would have leaked."""


def count_leaks(samples: Sequence[Sample], splits: Sequence[str], *, seed: int) -> dict[str, Leaks]:
    """Leaks of each behavior that has any, in these splits or in a plain shuffle.

    Args:
        samples: in the order of their files.
        splits: theirs.
        seed: of the plain shuffle.
    """
    found = {}
    for behavior, where in _members(samples).items():
        base = [i for i in where if samples[i].variant == "base"]
        chosen = [samples[i] for i in base]
        mine = [splits[i] for i in base]
        leaks_of = Leaks(
            n_test=mine.count("test"),
            kept=n_leaked(chosen, mine, exact=False),
            plain=leaks(chosen, seed=seed, exact=False),
        )
        if leaks_of.kept or leaks_of.plain:
            found[behavior] = leaks_of
    return found


def _members(samples: Sequence[Sample]) -> dict[str, list[int]]:
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        members[sample.behavior].append(i)
    return members


def _behavior_splits(
    samples: list[Sample], behavior: str, fractions: tuple[float, float, float], seed: int
) -> list[str]:
    bare = next((sample for sample in samples if not sample.split), None)
    given = next((sample for sample in samples if sample.split), None)
    if bare is None:
        return [sample.split for sample in samples]
    if given is not None:
        raise RowError(
            f"behavior '{behavior}': row '{given.id}' ({given.source}) has a split, row "
            f"'{bare.id}' ({bare.source}) none, expected all or none. "
            'Give every row a "split", or no row.'
        )
    group = _groups(samples)
    strata = {name: s for s, name in enumerate(sorted({_stratum(sample) for sample in samples}))}
    rows: dict[str, tuple[int, int]] = {}  # a row and its variants count once
    for sample, g in zip(samples, group, strict=True):
        rows.setdefault(sample.base_id, (g, strata[_stratum(sample)]))
    sizes = np.zeros((max(group) + 1, len(strata)), np.int64)  # [group, stratum]
    np.add.at(sizes, tuple(np.array(list(rows.values())).T), 1)
    # A behavior's draw depends on its name, not on what else is built.
    name = np.frombuffer(hashlib.sha256(behavior.encode()).digest(), ">u4").tolist()
    sides = _draw(sizes, _room(sizes.sum(0), fractions), np.random.default_rng([seed, *name]))
    return [SPLITS[sides[g]] for g in group]


def _groups(samples: list[Sample]) -> list[int]:
    """The group of each sample, numbered by first appearance: union of equal prompt, equal row."""
    parent = list(range(len(samples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, sample in enumerate(samples):
        for key in (("prompt", _key(sample.prompt)), ("row", sample.base_id)):
            left, right = sorted((root(i), root(first.setdefault(key, i))))
            parent[right] = left  # the earlier sample stays the root
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(samples))]


def _room(
    counts: Int64[np.ndarray, " stratum"], fractions: tuple[float, float, float]
) -> Int64[np.ndarray, "stratum split"]:
    """Rows of each stratum on each side: rounded up or down so that both kinds of sums fit."""
    wanted = counts[:, None] * np.array(fractions)  # [stratum, split]
    room: Int64[np.ndarray, "stratum split"] = np.floor(wanted + 1e-9).astype(np.int64)
    owed = np.zeros(len(SPLITS))
    for s, count in enumerate(counts):  # what rounding owes a side is carried to the next stratum
        owed += wanted[s] - room[s]
        extra = np.argsort(-owed.round(9), kind="stable")[: count - room[s].sum()]
        room[s, extra] += 1
        owed[extra] -= 1
    return room


def _draw(
    sizes: Int64[np.ndarray, "group stratum"],
    room: Int64[np.ndarray, "stratum split"],
    rng: np.random.Generator,
) -> list[int]:
    room = room.copy()
    sides = np.zeros(len(sizes), np.int64)
    n_rows = sizes.sum(1)
    order = rng.permutation(np.flatnonzero(n_rows > 1))
    for g in order[np.argsort(-n_rows[order], kind="stable")]:
        too_many = np.maximum(sizes[g][:, None] - room.clip(0), 0).sum(0)  # [split]
        weight = np.where(too_many == too_many.min(), room[sizes[g] > 0].clip(0).sum(0), 0)
        sides[g] = rng.choice(len(SPLITS), p=weight / weight.sum())
        room[:, sides[g]] -= sizes[g]
    # A group of one row at a time would be drawn in the same way; all of a letter at once is quick.
    for s in range(sizes.shape[1]):
        single = np.flatnonzero((n_rows == 1) & (sizes[:, s] == 1))
        seats = np.repeat(np.arange(len(SPLITS)), room[s].clip(0))
        sides[single] = rng.permutation(seats)[: len(single)]
    return sides.tolist()


def _stratum(sample: Sample) -> str:
    return sample.letter if sample.label is None else sample.label


def _key(prompt: str) -> str:
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
