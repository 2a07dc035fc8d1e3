"""Rows for concept directions: statements with a prefix that names a concept, and without it.

As in attention-guided steering (Davarmanesh et al. 2026, arXiv 2602.00333), with one correction:
their positives and negatives come from two pools of statements, which are told apart without any
prefix. Here both sides have the same statements, unless the published design is asked for.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

from actcache.conventions import SPLITS, Design, PrefixPlace
from actcache.errors import RowError
from actcache.names import name_problem
from actcache.settings import MAX_SEED, check_numbers, check_words, setting

WITH, WITHOUT = "with", "without"
"""Labels of prompts with the prefix and without it."""

POOLS = "pools-alone"
"""Behavior of the control of the published design: its two pools, both without a prefix."""

MIN_ROWS = 8
"""Rows of each label that a direction is fitted to, at least."""

FRACTIONS = (0.5, 0.2, 0.3)
"""Train, validation and test, of statements; both sides of a statement share a split."""

PUBLISHED_FRACTIONS = (0.8, 0.2, 0.0)
"""The same in the published design, in the order of the file: it has no test rows."""

_CONCEPT = "{concept}"


@no_type_check  # users' words: `check_words` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """How a concept becomes rows; `actcache concepts` has a flag for each field.

    Raises:
        RowError: the prefix does not name the concept once.
        ActcacheError: a word is not one that a field takes.
    """

    prefix: str = setting(
        metavar="TEXT", help="text with {concept} in it, put before each statement of one side"
    )

    question: str = setting(
        "", metavar="TEXT", help="text between prefix and statement, on both sides"
    )

    design: Design = setting("same", help="which statements the two sides have")

    place: PrefixPlace = setting("user", help="where the prefix stands")

    seed: int = setting(0, least=0, most=MAX_SEED, help="seed of the splits")

    def __post_init__(self) -> None:
        check_words(self)
        check_numbers(self)
        count = self.prefix.count(_CONCEPT)
        if count != 1:
            raise RowError(
                f"the prefix is {self.prefix!r}, with {{concept}} in it {count} times, expected "
                "once. Write for example --prefix 'You fear {concept}.'"
            )


@dataclass(frozen=True, kw_only=True)
class ConceptRows:
    """The rows of concepts, made one concept at a time.

    Raises:
        RowError: concepts or statements repeat, or too few statements are left for a split.
    """

    concepts: Sequence[str]
    """Each is the behavior of its rows."""

    pools: Sequence[Sequence[str]]
    """Statements, one pool a file."""

    settings: ConceptSettings

    def __post_init__(self) -> None:
        _refuse_repeats(self.concepts)
        _refuse_equal_lines(self.pools)
        if self._is_published and len(self.pools) != 2:
            raise RowError(
                f"the published design takes two pools of statements, found {len(self.pools)}. "
                "Pass two files to --statements: of the prompts with the prefix, and without."
            )
        for pool in self._by_side():
            for split, count in zip(SPLITS, _sizes(len(pool), self._fractions), strict=True):
                if count < MIN_ROWS and not (split == "test" and self._is_published):
                    raise RowError(
                        f"{len(pool)} statements leave {count} rows of a label for {split}, "
                        f"expected {MIN_ROWS} or more. Pass more statements."
                    )

    @property
    def _is_published(self) -> bool:
        return self.settings.design == "published"

    @property
    def _fractions(self) -> tuple[float, float, float]:
        return PUBLISHED_FRACTIONS if self._is_published else FRACTIONS

    def _by_side(self) -> tuple[Sequence[str], Sequence[str]]:
        """The statements with the prefix, and those without."""
        if self._is_published:
            return self.pools[0], self.pools[1]
        joined = [statement for pool in self.pools for statement in pool]
        return joined, joined

    def of_concept(self, concept: str) -> Iterator[dict[str, Any]]:
        """Make the rows of one concept, those with the prefix first; `span` is the prefix."""
        prefix = self.settings.prefix.replace(_CONCEPT, concept)
        for label, statements in zip((WITH, WITHOUT), self._by_side(), strict=True):
            before = prefix if label == WITH else ""
            yield from self._side(concept, label, statements, before=before)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Make the rows of all concepts, and of the pools alone in the published design."""
        for concept in self.concepts:
            yield from self.of_concept(concept)
        yield from self.pools_alone()

    def pools_alone(self) -> Iterator[dict[str, Any]]:
        """Make the control of the published design: both pools without a prefix, else nothing."""
        if self._is_published:
            for label, statements in zip((WITH, WITHOUT), self._by_side(), strict=True):
                yield from self._side(POOLS, label, statements, before="")

    def _side(
        self, behavior: str, label: str, statements: Sequence[str], *, before: str
    ) -> Iterator[dict[str, Any]]:
        splits = self._splits(len(statements))
        for number, (statement, split) in enumerate(zip(statements, splits, strict=True)):
            text = self.settings.question + statement
            in_user = before and self.settings.place == "user"
            row: dict[str, Any] = {
                "id": f"{behavior}/{label}/{number}",
                "behavior": behavior,
                "label": label,
                "split": split,
                "prompt": f"{before} {text}" if in_user else text,
                "span": [0, len(before)] if in_user or not before else before,
            }
            if before and not in_user:
                row["system"] = before
            yield row

    def _splits(self, n: int) -> list[str]:
        """The split of each statement: drawn, or the file's order in the published design."""
        sizes = _sizes(n, self._fractions)
        splits: list[str] = []
        for split, size in zip(SPLITS, sizes, strict=True):
            splits += [split] * size
        if not self._is_published:
            random.Random(self.settings.seed).shuffle(splits)
        return splits


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text file in UTF-8, without white space around them.

    Raises:
        RowError: it cannot be read, or has a blank line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RowError(
            f"cannot read '{path}' ({error.strerror}), expected a text file with one line each. "
            "Pass another."
        ) from error
    except UnicodeDecodeError as error:
        raise RowError(f"'{path}' is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise RowError(f"'{path}' line {number} is blank, expected text. Remove the line.")
    if not lines:
        raise RowError(f"'{path}' is empty, expected one or more lines. Write some.")
    return [line.strip() for line in lines]


def _sizes(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """Statements of each split; what rounding leaves goes to train."""
    validation, test = (int(n * share + 1e-9) for share in fractions[1:])
    return n - validation - test, validation, test


def _refuse_repeats(concepts: Sequence[str]) -> None:
    if not concepts:
        raise RowError("no concept is given, expected one or more. Write one a line.")
    known: dict[str, str] = {}
    for concept in concepts:
        if problem := name_problem(concept):
            raise RowError(f"a concept {problem}. Rename it.")
        if concept == POOLS:
            raise RowError(f"a concept is '{POOLS}', the name of a control. Rename it.")
        twin = known.setdefault(concept.lower(), concept)
        if list(concepts).count(concept) > 1 or twin != concept:
            raise RowError(
                f"the concepts hold '{twin}' and '{concept}', which are the same in lower case, "
                "expected each once. Remove one."
            )


def _refuse_equal_lines(pools: Sequence[Sequence[str]]) -> None:
    places: dict[str, str] = {}
    for pool, statements in enumerate(pools, start=1):
        for number, statement in enumerate(statements, start=1):
            place = f"line {number} of statement file {pool}"
            twin = places.setdefault(" ".join(statement.split()).casefold(), place)
            if twin != place:
                raise RowError(
                    f"{twin} and {place} are equal ({statement[:60]!r}), expected each statement "
                    "once. Remove one."
                )
