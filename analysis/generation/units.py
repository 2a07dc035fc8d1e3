"""Methods by name, what their strengths are in, and the strengths that are tried by default."""

from collections.abc import Sequence
from typing import Literal, get_args

from actcache.errors import ActcacheError

Method = Literal[
    "caa", "l2s", "w2s", "ss", "sas", "aas", "ablation", "actadd", "cast", "random", "random_plane"
]
METHODS: tuple[Method, ...] = get_args(Method)

CONTROLS: tuple[Method, ...] = ("random", "random_plane")

Tokens = Literal["prompt", "completion", "all", "front"]
"""Those of a steering, spelled here so that flags are made without NumPy."""

Unit = Literal["multiplier", "degrees", "share"]

UNITS: dict[Method, Unit] = {
    **dict.fromkeys(METHODS, "multiplier"),
    **dict.fromkeys(("ss", "sas", "aas", "random_plane"), "degrees"),
    "ablation": "share",
}
"""What a method's strength is in."""

GRIDS: dict[str, tuple[float, ...]] = {
    "multiplier": (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    "degrees": tuple(float(angle) for angle in range(0, 360, 30)),
    "share": (0.5, 1.0),
    "projection": (-1.0, -0.5, 0.0, 0.5, 1.0),
}
"""Strengths that are tried by default, by unit; the unsteered texts come on top."""

_PLURALS = {
    "multiplier": "multipliers",
    "degrees": "degrees",
    "share": "shares from 0 to 1",
    "projection": "projections",
}

LARGEST_MULTIPLIER = 30.0
"""From here on a multiplier without `--unit` is taken for an angle by mistake."""

SMALLEST_ANGLE = 5.0
"""A grid of angles that stays below, without `--unit`, is taken for multipliers by mistake."""


def require_unit(
    strengths: Sequence[float], unit: str, *, method: str, given: str | None = None
) -> None:
    """Refuse strengths in another unit than the method's.

    Args:
        strengths: one or more.
        unit: of the method.
        method: its name, for the message.
        given: the unit that the user names; None guesses by size.
    """
    if given is not None:
        mistaken = given != unit
    elif unit == "degrees":
        mistaken = max(map(abs, strengths)) < SMALLEST_ANGLE
    else:
        mistaken = max(map(abs, strengths)) >= LARGEST_MULTIPLIER
    if mistaken:
        example = "0:330:30" if unit == "degrees" else "-1:1:0.5"
        grid = ",".join(f"{value:g}" for value in strengths)
        raise ActcacheError(
            f"strength is {grid}{f' {given}' if given else ''}, but '{method}' takes "
            f"{_PLURALS[unit]}, expected for example {example}. Pass such a grid, or none for the "
            f"default; --unit {unit} says that {_PLURALS[unit]} are meant."
        )


def require_one_unit(
    strengths: Sequence[float], methods: Sequence[Method], *, given: str | None = None
) -> None:
    """Refuse strengths for methods of several units, or in another unit than theirs."""
    units: dict[Unit, Method] = {}
    # Controls take the unit of what they are compared with.
    for method in [name for name in methods if name not in CONTROLS] or methods:
        units.setdefault(UNITS[method], method)
    if len(units) > 1:
        shown = ", ".join(f"{_PLURALS[unit]} of {method}" for unit, method in units.items())
        raise ActcacheError(
            f"one grid of strengths is given for methods of several units ({shown}), expected one "
            "unit. Drop --strength for each method's default grid, or run them apart."
        )
    for unit, method in units.items():
        require_unit(strengths, unit, method=method, given=given)
