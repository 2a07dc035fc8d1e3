"""Settings: dataclass fields that carry their help, from which the flags are made.

A field's type says which words it takes (a `Literal`, or a sequence of one), its default is the
flag's default, and `setting` adds what `--help` shows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from actcache.errors import ActcacheError
from actcache.names import suggestion

MAX_SEED = 2**32 - 1
"""The largest seed that every library takes."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a dataclass of settings."""

    name: str
    default: Any
    """`MISSING` where the setting is required."""

    type: Any
    """Of one value: bool, int, float, str, or the `Literal` of its words."""

    many: bool
    """Whether the field holds several values."""

    help: str = ""
    group: str = ""
    """Heading in `--help`; empty for the command's own options."""

    metavar: str | None = None
    """What `--help` calls the value. Words that have one are not listed there, and are refused by
    the dataclass (exit code 1) instead of the command line (exit code 2)."""

    least: float | int | None = None
    most: float | int | None = None
    """The smallest and the largest number that it takes."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it takes; empty where any value goes."""
        return get_args(self.type)

    @property
    def flag(self) -> str:
        """The option, such as `--store-dtype`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def verb(self) -> str:
        """What a sentence on it says: `layers are`, `method is`."""
        return "are" if self.many and self.name.endswith("s") else "is"


def setting(
    default: Any = MISSING,
    *,
    help: str,
    group: str = "",
    metavar: str | None = None,
    least: float | int | None = None,
    most: float | int | None = None,
) -> Any:
    """Declare a field of a settings dataclass; see `Setting`. Required without a default."""
    about = {"help": help, "group": group, "metavar": metavar, "least": least, "most": most}
    return field(default=default, metadata=about)


def settings_of(config: type) -> Iterator[Setting]:
    """List the settings of a dataclass in the order of its fields."""
    for declared in fields(config):
        kind: Any = declared.type
        if get_origin(kind) in (Union, UnionType):  # `X | None`
            [kind] = set(get_args(kind)) - {NoneType}
        many = get_origin(kind) is Sequence
        if many:
            [kind] = get_args(kind)
        yield Setting(
            name=declared.name, default=declared.default, type=kind, many=many, **declared.metadata
        )


def check_names(config: type, given: Iterable[str]) -> None:
    """Refuse names that are no setting of a dataclass, with the nearest that is."""
    names = [declared.name for declared in fields(config)]
    for name in given:
        if name not in names:
            raise ActcacheError(
                f"there is no setting '{name}'. {suggestion(name, names)}Expected some of "
                f"{', '.join(names)}."
            )


def check_words(config: Any, *, once: Sequence[str] = ()) -> None:
    """Refuse words that fields of a dataclass do not take, and repeats in the fields `once`."""
    for spec in settings_of(type(config)):
        value = getattr(config, spec.name)
        if value is None and spec.default is None:
            continue
        if spec.words and not spec.many:
            check_word(spec.name, value, spec.words)
        elif spec.words and (not value or not set(value) <= set(spec.words)):
            unknown = next((word for word in value if word not in spec.words), "")
            raise ActcacheError(
                f"{spec.name} {spec.verb} {list(value)}, expected some of {', '.join(spec.words)}. "
                f"{suggestion(unknown, spec.words)}Pass them to {spec.flag}, separated by commas."
            )
        if spec.name in once and len(set(value)) < len(value):
            raise ActcacheError(
                f"{spec.name} {spec.verb} {list(value)}, expected each once. "
                f"Pass them to {spec.flag}, separated by commas."
            )


def check_numbers(config: Any) -> None:
    """Refuse numbers of a dataclass's fields that are not finite, or out of bounds."""
    for spec in settings_of(type(config)):
        value = getattr(config, spec.name)
        if value is None or spec.type not in (int, float):
            continue
        shown = list(value) if spec.many else value
        numbers = value if spec.many else (value,)
        remedy = (
            f"Pass such numbers with {spec.flag}."
            if spec.many
            else f"Try {spec.flag} {spec.default}."
        )
        for number in numbers:
            if not math.isfinite(number):
                expected = "finite numbers"
            elif spec.least is not None and number < spec.least:
                expected = f"{spec.least:.0f} or more"
            elif spec.most is not None and number > spec.most:
                expected = f"{spec.most:.0f} or less"
            else:
                continue
            raise ActcacheError(f"{spec.name} {spec.verb} {shown}, expected {expected}. {remedy}")


def check_word(
    name: str, value: str, words: Sequence[str], *, error: type[ActcacheError] = ActcacheError
) -> None:
    """Refuse a value that is none of the words of a setting."""
    if value not in words:
        near = suggestion(value, words)
        raise error(f"{name} is '{value}', expected {', '.join(words)}. {near}Pass one of them.")
