"""The plan of a run: rows × configurations, checked before any weights are loaded."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.run.rows import PromptRow, digest_of_rows, require_fit
from actcache.analysis.generation.run.sources import ModelSource
from actcache.analysis.generation.summary import SiteScores
from actcache.analysis.generation.targets import ReadBack
from actcache.analysis.generation.texts import UNSTEERED, UNSTEERED_AGAIN, Configuration
from actcache.analysis.predict.reuse import digest_of
from actcache.errors import ActcacheError

if TYPE_CHECKING:
    from actcache.engine.model import LanguageModel
    from actcache.steering.steering import AnySteering


@runtime_checkable
class Steers(Protocol):
    """One way of steering, at any strength: a method's candidate, or a file's steering."""

    @property
    def method(self) -> str:
        """Such as `caa`."""

    @property
    def behavior(self) -> str:
        """Whose rows it steers."""

    @property
    def unit(self) -> str:
        """Of its strength."""

    @property
    def identity(self) -> float | None:
        """The strength that changes nothing; None if there is none."""

    @property
    def control(self) -> bool:
        """Whether it is there for comparison alone."""

    @property
    def selection(self) -> str:
        """Which layers or sites, for tables."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""

    def steering(self, row: int | None, strength: float) -> "AnySteering | None":
        """Make the steering of a row of the store (None: of any prompt) at a strength."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlannedConfiguration:
    """One configuration, and what steers its rows."""

    digest: str
    about: Configuration
    way: Steers | None
    """None: nothing is steered."""

    def steering(self, row: PromptRow) -> "AnySteering | None":
        """Make the steering of one row."""
        if self.way is None or self.about.strength is None:
            return None
        return self.way.steering(row.number, self.about.strength)


Text = tuple[PromptRow, PlannedConfiguration, int]
"""A text to write: row, configuration, sample."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """Everything that a run needs but the weights; nothing is written yet."""

    config: SteerConfig
    source: str
    """The results folder or steering file."""

    model: ModelSource
    load: "Callable[[], LanguageModel]" = field(repr=False)
    """Loads the weights, once."""

    rows: tuple[PromptRow, ...]
    ways: tuple[Steers, ...]
    configurations: tuple[PlannedConfiguration, ...]
    end_tokens: frozenset[int]

    read_back: Mapping[str, ReadBack] = field(default_factory=dict, repr=False)
    """By behavior: what the target read_back projects on; empty for other targets."""

    sites: Mapping[str, tuple[SiteScores, ...]] | None = None
    """By behavior: class means at the norm outputs; None where nothing turns there."""

    left_out: tuple[str, ...] = ()

    @property
    def behaviors(self) -> tuple[str, ...]:
        """Behaviors of the rows, each once."""
        return tuple(dict.fromkeys(row.behavior for row in self.rows))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the texts and their numbers, as GEN records it."""
        return {
            "config": self.config.recorded(),
            "model": dict(self.model.identity),
            "rows": digest_of_rows(self.rows),
            "configurations": digest_of({"digests": [run.digest for run in self.configurations]}),
        }

    def texts(self) -> Iterator[Text]:
        """List the texts of the run: row, configuration, sample; rows of one length together."""
        by_behavior: dict[str, list[PlannedConfiguration]] = {}
        for run in self.configurations:
            by_behavior.setdefault(run.about.behavior, []).append(run)
        for row in sorted(self.rows, key=lambda row: len(row.tokens)):
            for run in by_behavior[row.behavior]:
                for sample in range(self.config.samples):
                    yield row, run, sample

    @property
    def facts(self) -> dict[str, Any]:
        """What a dry run prints: rows, configurations, texts, tokens."""
        texts = [row for row, _, _ in self.texts()]
        return {
            "source": self.source,
            "model": self.model.name,
            "rows": len(self.rows),
            "configurations": len(self.configurations),
            "texts": len(texts),
            "prompt tokens": sum(len(row.tokens) for row in texts),
            "new tokens at most": self.config.max_new * len(texts),
        }


def plan_configurations(
    ways: Sequence[Steers], rows: Sequence[PromptRow], config: SteerConfig
) -> tuple[PlannedConfiguration, ...]:
    """Cross ways with strengths, and add the unsteered texts of each behavior twice.

    A strength that changes nothing is left out: the unsteered texts are those.

    Raises:
        ActcacheError: a grid is in another unit than a way's, or nothing is left.
    """
    planned = []
    for behavior in dict.fromkeys(row.behavior for row in rows):
        for method in (UNSTEERED, UNSTEERED_AGAIN):
            about = Configuration(
                method=method,
                behavior=behavior,
                selection="",
                strength=None,
                unit="",
                identity=None,
                control=False,
            )
            planned.append(_planned(about, None, []))
    for way in ways:
        config.require_unit(way.unit, way.method)
        of_behavior = [row for row in rows if row.behavior == way.behavior]
        for strength in grid_of(way, config):
            steerings = {row.digest: way.steering(row.number, strength) for row in of_behavior}
            distinct = {s.digest: s for s in steerings.values() if s is not None}
            shared = next(iter(distinct.values())) if len(distinct) == 1 else None
            about = Configuration(
                method=way.method,
                behavior=way.behavior,
                selection=way.selection,
                strength=strength,
                unit=way.unit,
                identity=way.identity,
                control=way.control,
                steering=None if shared is None else shared.spec,
            )
            digests = (
                sorted(distinct)
                if len(distinct) == 1
                else [
                    f"{row}:{'' if s is None else s.digest}" for row, s in sorted(steerings.items())
                ]
            )
            planned.append(_planned(about, way, digests))
    if len(planned) == 2 * len({row.behavior for row in rows}):
        raise ActcacheError(
            "no strength is left to try, expected one that changes something. Pass another "
            "--strength."
        )
    return tuple(planned)


def grid_of(way: Steers, config: SteerConfig) -> tuple[float, ...]:
    """Strengths to try of one way, ascending; what changes nothing is left out."""
    grid = config.grid(way.unit) if config.strength is not None else default_grid(way, config)
    turn = 360.0 if way.unit == "degrees" and way.identity is not None else None
    return tuple(
        sorted(
            strength
            for strength in grid
            if way.identity is None or (strength % turn if turn else strength) != way.identity
        )
    )


def default_grid(way: Steers, config: SteerConfig) -> tuple[float, ...]:
    """The grid of a way where none is given: around a file's own strength, else by unit."""
    around = getattr(way, "grid", None)
    return config.grid(way.unit) if around is None else tuple(around)


def require_usable(
    rows: Sequence[PromptRow], ways: Sequence[Steers], model: ModelSource, config: SteerConfig
) -> None:
    """Refuse rows that do not fit into the context, or are shorter than what is steered of them."""
    front = 0
    for way in ways:
        row = next(row for row in rows if row.behavior == way.behavior)
        steering = way.steering(row.number, 1.0)
        for part in steering.parts if steering is not None else ():
            if part.tokens == "front":
                front = max(front, len(part.vectors))
    require_fit(rows, max_new=config.max_new, context=model.context, front=front)


def noise_stream(row: PromptRow, sample: int) -> int:
    """Number a random stream: of a row and sample, whatever steers it."""
    digest = hashlib.sha256(f"{row.digest} {row.id} {sample}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _planned(
    about: Configuration, way: Steers | None, digests: Sequence[str]
) -> PlannedConfiguration:
    digest = digest_of({"about": about, "steerings": list(digests)})
    return PlannedConfiguration(digest=digest[:16], about=about, way=way)
