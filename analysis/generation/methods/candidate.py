"""One way of steering a behavior's rows, at any strength."""

from collections.abc import Callable
from dataclasses import dataclass, field

from actcache.steering.checks import OPERATOR_UNITS, Operator
from actcache.steering.steering import AnySteering, Steering

Make = Callable[[int | None], AnySteering | None]
"""Makes the steering of a row of the store, at any strength; of None that of any prompt."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method for one behavior."""

    method: str
    """Such as `caa`; of controls `random`, `random_plane` or the method that is varied."""

    behavior: str
    """The behavior, or `<positive label>-<negative label>`."""

    operator: Operator
    control: bool = False
    """Whether it is there for comparison alone."""

    selection: str
    """Which layers or sites, for tables: `fixed`, `discriminative`, `all sites`, …"""

    seed: int | None = None
    """Of what is drawn at random."""

    notes: tuple[str, ...] = ()
    """What a reader should know."""

    make: Make = field(repr=False, compare=False)

    @property
    def unit(self) -> str:
        """Of its strength: `multiplier`, `degrees`, `share` or `projection`."""
        return OPERATOR_UNITS[self.operator]

    @property
    def identity(self) -> float | None:
        """The strength that changes nothing; None if there is none."""
        return Steering.identity[self.operator]

    def steering(self, row: int | None, strength: float) -> AnySteering | None:
        """Make the steering of a row at a strength.

        Args:
            row: number of the row in the store; None for a prompt that is not in it.
            strength: in `unit`.

        Returns:
            None where the row is not steered; and for a prompt that is not in the store, where the
            method steers each row in its own way.
        """
        steering = self.make(row)
        return None if steering is None else steering.at(strength)


def same_for_all(steering: AnySteering) -> Make:
    """Steer every row alike."""
    return lambda _row: steering
