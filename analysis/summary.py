"""The summary of an analysis: every number of its tables, typed; summary.json in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.discriminative import LayerScores
from actcache.analysis.directions.planes import SiteScores
from actcache.analysis.files import plain, typed, write_json
from actcache.analysis.predict.outcome import DirectionSetScores, PredictorScores
from actcache.analysis.sweep.comparison import ComparedSets, SetSlopes
from actcache.analysis.sweep.steerability import LETTER_SAMPLES, BehaviorScores
from actcache.analysis.sweep.strategies import SteerabilityScores, StrategyScore
from actcache.errors import ActcacheError, FormatError, MismatchError

__all__ = [  # the types that the report reads
    "LETTER_SAMPLES",
    "BehaviorScores",
    "ComparedSets",
    "DirectionSetScores",
    "LayerScores",
    "PredictorScores",
    "SelfCheck",
    "SetSlopes",
    "SiteScores",
    "SteerabilityScores",
    "StoreSummary",
    "StrategyScore",
    "Summary",
    "SweepSummary",
    "VectorSummary",
    "Verdict",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """The store that was analyzed."""

    path: str
    n: int
    n_layers: int
    d_model: int
    provenance: dict[str, Any]
    certificate: dict[str, Any] | None

    build: dict[str, Any] = field(default_factory=dict)
    """The settings that it was built with; empty in summaries of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class VectorSummary:
    """The direction of one behavior, or of two labels."""

    n_positive: int
    n_negative: int

    norm: tuple[float, ...]
    """By layer."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """How exact the cells of a sweep are, in units of the score."""

    naive_error: float
    """Largest difference between a few cells and two full passes each."""

    noise_floor: float
    """Largest difference between cells that add nothing and the unsteered pass."""


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """The stage `sweep`."""

    layers: tuple[int, ...]
    multipliers: tuple[float, ...]

    unit: str
    """Of propensity."""

    self_check: SelfCheck

    behaviors: dict[str, BehaviorScores]
    """By behavior; other variants of its prompts as `behavior@variant`."""

    mean_propensity: dict[str, tuple[tuple[float, ...], ...]]
    """`[layer, multiplier]` of each behavior, mean over test samples of all variants."""

    compared: ComparedSets | None = None
    """Other direction sets beside the difference of means; None where none was swept."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What numbers show, in a word or two and in a sentence."""

    stage: Literal["sweep", "predictors"]

    about: str
    """The behavior, or the direction set."""

    strategy: str
    """The strategy that is judged: `fixed`, `cross_fitted`, `w2s_top2`, …"""

    word: str
    """For a column of a table: `steerable`, `no gain`, …"""

    sentence: str

    warning: bool
    """Whether the table's numbers mislead without the sentence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """All that `analyze` found; a stage that did not run is None."""

    store: StoreSummary
    config: AnalyzeConfig

    left_out: tuple[str, ...] = ()
    """Stages that were asked for and could not run, and settings that are ignored, each with the
    reason."""

    labels: tuple[str, str] | None = None
    """The positive and the negative label; None for pairs."""

    vectors: dict[str, VectorSummary] | None = None
    layers: dict[str, LayerScores] | None = None

    planes: dict[str, SiteScores] | None = None
    """Norm outputs, by behavior (or `<positive label>-<negative label>`); None where the store has
    none."""

    sweep: SweepSummary | None = None
    sweep_store: str | None = None
    """Where the store of the sweep lies, a folder or `s3://…`; None if it is OUT/sweep.zarr."""

    predictors: PredictorScores | None = None
    verdicts: tuple[Verdict, ...] = ()

    format: Literal[3] = 3
    """Of summary.json."""

    @property
    def behaviors(self) -> dict[str, BehaviorScores]:
        """The sweep's scores by behavior; empty where the stage did not run."""
        return {} if self.sweep is None else self.sweep.behaviors

    def verdict_words(self, stage: str, about: str, strategy: str | None = None) -> str:
        """Join the words on a behavior or direction set, on one strategy or on all."""
        words = [
            verdict.word
            for verdict in self.verdicts
            if (verdict.stage, verdict.about) == (stage, about)
            and strategy in (None, verdict.strategy)
        ]
        return "; ".join(dict.fromkeys(words))

    def write(self, path: Path) -> None:
        """Write summary.json."""
        document = plain(self)
        for name in ("planes", "sweep_store"):  # what few analyses have leaves the others as ever
            if getattr(self, name) is None:
                del document[name]
        write_json(path, document)

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read what `write` wrote.

        Raises:
            FormatError: it is damaged, or something else.
        """

        def read(document: Any) -> "Summary":
            earlier = isinstance(document, dict) and document.get("format") in (None, 2)
            if earlier and "store" in document:
                raise MismatchError(
                    f"'{path}' is of an earlier version, expected format 3. Run analyze in this "
                    "folder again: what it swept is reused."
                )
            return typed(cls, document)

        return _read(path, read)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Summary) and plain(self) == plain(other)

    __hash__ = None  # type: ignore[assignment]  # holds arrays, as unhashable classes are declared


def read_store(path: Path) -> StoreSummary:
    """Read which store a summary.json is of; formats of earlier versions say it too.

    Raises:
        FormatError: the file is damaged, or something else.
    """
    return _read(path, lambda document: typed(StoreSummary, document["store"]))


def read_sweep_store(path: Path) -> str | None:
    """Read where a summary.json says that the store of the sweep lies; None if it does not say.

    Raises:
        FormatError: the file is damaged, or something else.
    """

    def read(document: Any) -> str | None:
        place = dict(document).get("sweep_store")
        return None if place is None else typed(str, place)

    return _read(path, read)


def _read(path: Path, read: Callable[[Any], T]) -> T:
    try:
        text = path.read_text(encoding="utf-8")
        return read(json.loads(text, parse_constant=_refuse_constant))
    except MismatchError:
        raise
    # JSON's errors, UTF-8's and DocumentError are ValueErrors; AnalyzeConfig raises ActcacheErrors.
    except (ValueError, RecursionError, ActcacheError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FormatError(
            f"'{path}' is not what analyze writes ({type(error).__name__}: {reason}), expected its "
            "summary. Choose another folder with -o, or run analyze with --overwrite."
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
