"""The rows of each concept: which hold it, which do not, and in which split they are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from actcache.analysis.directions.difference_of_means import label_codes
from actcache.conventions import SPLITS
from actcache.data.concepts import MIN_ROWS, POOLS
from actcache.data.spans import SPAN
from actcache.errors import MismatchError
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class ConceptRows:
    """The rows of one concept in a store, and what each is."""

    name: str

    numbers: Int64[np.ndarray, " n"]
    """Row numbers in the store, rising."""

    positive: Bool[np.ndarray, " n"]
    split: np.ndarray
    """`[n]` words of `SPLITS`."""

    @property
    def scanned(self) -> Bool[np.ndarray, " n"]:
        """Rows that the choice of the token reads: train rows with the concept."""
        return np.asarray(self.positive & (self.split == "train"))

    @property
    def held_out(self) -> Literal["test", "validation"]:
        """The split that scores are of."""
        return "test" if (self.split == "test").any() else "validation"

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Rows with the concept and without it, by split."""
        return {
            split: (
                int((self.positive & (self.split == split)).sum()),
                int((~self.positive & (self.split == split)).sum()),
            )
            for split in SPLITS
        }


def concept_names(store: Store) -> list[str]:
    """List the concepts of a store, in its order, without the control of the published design."""
    return [name for name in dict.fromkeys(store["behavior"].tolist()) if name != POOLS]


def rows_of_concept(store: Store, name: str, labels: tuple[str, str] | None) -> ConceptRows:
    """Find the rows of one concept.

    Labelled rows hold the concept where they have the first of `labels`, and not where they have
    the second. Of pairs, those hold it whose variant states it (`sys_pos`, `user_pos`); those of
    `sys_neg` and `user_neg`, or else the base rows, do not.

    Raises:
        MismatchError: too few rows of a class in a split; names the concept.
    """
    of_concept = store["behavior"] == name
    if labels is not None:
        code = label_codes(store, labels)
        code[store["variant"] != "base"] = -1
    else:
        stated = np.char.partition(store["variant"].astype(str), "_")[:, 2]
        negative = "neg" if (stated[of_concept] == "neg").any() else ""
        code = np.where(stated == "pos", 0, np.where(stated == negative, 1, -1))
    numbers = np.flatnonzero(of_concept & (code >= 0))
    rows = ConceptRows(
        name=name, numbers=numbers, positive=code[numbers] == 0, split=store["split"][numbers]
    )
    classes = class_names(labels)
    for split, counts in rows.counts.items():
        least = MIN_ROWS if split == "train" else 1 if split == rows.held_out else 0
        if min(counts) < least or (max(counts) > 0 and min(counts) == 0):
            raise MismatchError(
                f"'{name}' has {counts[0]} rows {classes[0]} and {counts[1]} rows {classes[1]} in "
                f"the split {split}, expected {max(least, 1)} or more of both. Build from more "
                "rows, or give them splits."
            )
    return rows


def class_names(labels: tuple[str, str] | None) -> tuple[str, str]:
    """What rows with the concept and rows without it are called."""
    return labels or ("with the persona", "without it")


def design_of(
    store: Store, labels: tuple[str, str] | None
) -> Literal["same", "published", "other"]:
    """Tell the design of the rows: the pools' control is there, or both sides have one text."""
    if POOLS in store["behavior"].tolist():
        return "published"
    if labels is None:
        return "same"
    code, prompts, spans = label_codes(store, labels), store["prompt"].tolist(), store[SPAN]
    for name in concept_names(store)[:1]:
        of_concept = store["behavior"] == name
        sides = [[prompts[i] for i in np.flatnonzero(of_concept & (code == k))] for k in (0, 1)]
        if len(sides[0]) != len(sides[1]) or not spans.any():
            return "other"
        if not all(a.endswith(b) for a, b in zip(*sides, strict=True)):
            return "other"
    return "same"
