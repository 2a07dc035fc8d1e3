"""What the stage `concepts` finds, typed: concepts.json in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from actcache.analysis.files import DocumentError, typed, write_json
from actcache.analysis.stats.bootstrap import Interval
from actcache.errors import FormatError, StoreNotFoundError

FILE = "concepts.json"

SERIES = "series.json"
"""The settings of a series of concepts, in the folder that it writes."""

ATTENDED = "attended"
"""The token of a direction set that is read, in each layer, where attention chose it."""

RANDOM_SPAN = "random_span"
"""The same, chosen by attention on a random span: a control."""


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """How well one direction set tells held-out rows apart, by layer."""

    auc: tuple[Interval, ...]
    """The interval resamples held-out rows within each class."""

    validation: tuple[float | None, ...]
    """Correlation of validation rows with their labels; None where it is not defined."""


@dataclass(frozen=True, kw_only=True)
class ControlScores:
    """What directions that know nothing of the concept reach, at the attended tokens, by layer."""

    draws: int

    shuffled: tuple[Interval, ...]
    """AUC of differences of means of shuffled labels: median, and the middle 95 % of the draws.
    Signed: half of them lie below 0.5."""

    random: tuple[Interval, ...]
    """The same of random directions."""


@dataclass(frozen=True, kw_only=True)
class PoolScores:
    """How far the two pools of the published design differ without any prefix, by layer."""

    auc: tuple[Interval, ...]
    """Of the pools' own difference of means, at the concept's attended tokens."""

    cosine: tuple[float, ...]
    """Of that direction with the concept's, both differences of means."""


@dataclass(frozen=True, kw_only=True)
class ConceptScores:
    """Tokens, masses and scores of one concept."""

    counts: dict[str, tuple[int, int]]
    """Rows with the concept and without it, by split."""

    held_out: Literal["test", "validation"]
    """Rows that AUC is of; validation, which also chose settings, where there is no test split."""

    tokens: tuple[str, ...]
    """Position that attention chose, by layer."""

    peak: tuple[float, ...]
    """Its largest mass among the scanned rows, mean over heads."""

    blind: tuple[int, ...]
    """Layers where no token sees the span; they take the last token, and have no soft labels."""

    mass: dict[str, tuple[float, ...]]
    """Mean mass of each position over the scanned rows, by layer."""

    random_span_tokens: tuple[str, ...] | None
    random_span_mass: dict[str, tuple[float, ...]] | None
    """The same of a random span of equal length; None where the store has none."""

    layers_by_mass: tuple[int, ...]
    """Layers by falling mean mass of the attended token."""

    layers_by_score: tuple[int, ...]
    """Layers by falling validation correlation of the first method, hard labels, attended token;
    without validation rows by AUC."""

    sets: dict[str, SetScores]
    """By `<method>-<labels>-<token>`."""

    controls: ControlScores

    pools: PoolScores | None = None
    """None but in the published design."""


@dataclass(frozen=True, kw_only=True)
class ConceptSummary:
    """All that the stage `concepts` found."""

    design: Literal["same", "published", "other"]
    """`same`: each text stands on both sides; `published`: two pools; or neither."""

    classes: tuple[str, str]
    """What rows with the concept and rows without it are called."""

    methods: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    """Fixed positions that were fitted, in the order of the text."""

    concepts: dict[str, ConceptScores]

    left_out: tuple[str, ...] = ()
    """Concepts without directions, each with the reason."""

    format: Literal[1] = 1

    def write(self, folder: Path) -> None:
        """Write concepts.json."""
        write_json(folder / FILE, self)

    @classmethod
    def read(cls, folder: Path) -> "ConceptSummary":
        """Read what `write` wrote.

        Raises:
            FormatError: there is none, or it is damaged.
        """
        try:
            return typed(cls, json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(
                f"'{folder / FILE}' is not what analyze writes ({error}), expected the scores of "
                "concepts. Run analyze with --stages concepts."
            ) from None


def is_series(folder: Path) -> bool:
    """Whether a folder was written by a series of concepts, finished or not."""
    return (folder / SERIES).is_file()


def read_series(folder: Path) -> tuple[dict[str, Any], ConceptSummary]:
    """Read the settings and the scores of a finished series.

    Raises:
        StoreNotFoundError: it was interrupted.
        FormatError: a file is damaged.
    """
    if not (folder / FILE).is_file():
        raise StoreNotFoundError(
            f"'{folder}' has no {FILE}: its series of concepts was interrupted. Run the same "
            "concepts command again: it goes on at the concept it was at."
        )
    path = folder / SERIES
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        parts = [settings[name] for name in ("rows", "build")]
        if not all(isinstance(part, dict) for part in parts):
            raise DocumentError("expected rows and build")
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"'{path}' is not what concepts writes ({reason}), expected its settings. Run the "
            "concepts command again with another -o."
        ) from None
    return settings, ConceptSummary.read(folder)
