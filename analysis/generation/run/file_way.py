"""A steering that was read from a file, as a way of steering, beside its random control."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actcache.analysis.directions.difference_of_means import unit
from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.methods.behavior import list_selection, summed
from actcache.analysis.generation.targets import ReadBack
from actcache.steering.checks import OPERATOR_UNITS, PLANE_OPERATORS
from actcache.steering.steering import AnySteering, Steering

FILE = "file"
"""Method of a steering that was read from a file."""

AROUND = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""A file's multiplier is tried at these times its own."""


@dataclass(frozen=True, kw_only=True)
class FileWay:
    """A steering of a file, or its random control, as a way of steering."""

    base: AnySteering
    method: str
    behavior: str
    unit: str
    identity: float | None
    control: bool
    selection: str
    grid: tuple[float, ...] | None
    """Strengths to try by default; None for those of the unit."""

    notes: tuple[str, ...] = ()

    def steering(self, row: int | None, strength: float) -> AnySteering:
        """Set the strength; of a sum of several strengths, multiply each of them."""
        return self.base.at(strength) if _alike(self.base) else self.base * strength


def with_settings(steering: AnySteering, config: SteerConfig) -> AnySteering:
    """Steer other tokens or steps than the file says, where that was asked for."""
    changes: dict[str, Any] = {}
    if config.tokens is not None:
        changes["tokens"] = config.tokens
    if config.window is not None:
        changes["window"] = config.window_steps
    parts = [replace(part, **changes) for part in steering.parts]
    return steering if not changes else summed(parts)


def file_way(steering: AnySteering, behavior: str) -> FileWay:
    """Make a file's steering a way, tried around its own strength."""
    if not _alike(steering):
        return FileWay(
            base=steering,
            method=FILE,
            behavior=behavior,
            unit="multiplier",
            identity=0.0,
            control=False,
            selection="",
            grid=AROUND,
        )
    part = steering.parts[0]
    unit = OPERATOR_UNITS[part.operator]
    around = None
    if unit == "multiplier" and part.strength:
        around = tuple(part.strength * factor for factor in AROUND)
    return FileWay(
        base=steering,
        method=FILE,
        behavior=behavior,
        unit=unit,
        identity=part.identity[part.operator],
        control=False,
        selection=list_selection(sorted({i for part in steering.parts for i in part.layers})),
        grid=around,
    )


def _alike(steering: AnySteering) -> bool:
    """Whether all parts have one operator and one strength."""
    return len({(part.operator, part.strength) for part in steering.parts}) == 1


def random_like(steering: AnySteering, seed: int) -> AnySteering:
    """Replace each vector by a random one of equal norm, each plane by a random plane."""
    rng = np.random.default_rng(seed)
    return summed([_random_part(part, rng) for part in steering.parts])


def _random_part(part: Steering, rng: np.random.Generator) -> Steering:
    shape = part.vectors.shape
    drawn = rng.standard_normal(shape)
    if part.operator in PLANE_OPERATORS:
        basis = np.linalg.qr(drawn.transpose(0, 2, 1))[0]
        vectors = basis.transpose(0, 2, 1)
    else:
        norms = np.linalg.norm(part.vectors.astype(np.float64), axis=-1, keepdims=True)
        vectors = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True) * norms
    return replace(part, vectors=vectors.astype(np.float32), source=None)


def read_back_of(steering: AnySteering) -> ReadBack:
    """Read at the deepest layer that is steered, along its (first) vector."""
    part = max(steering.parts, key=lambda part: part.layers[-1])
    vector = part.vectors[-1, 0] if part.operator in PLANE_OPERATORS else part.vectors[-1]
    return ReadBack(layer=part.layers[-1], direction=unit(vector))
