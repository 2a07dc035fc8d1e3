"""Settings: dataclass fields that carry their help, from which the flags are made.

A field's type says which words it takes (a `Literal`, or a sequence of one), its default is the
flag's default, and `setting` adds what `--help` shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from actcache.errors import ActcacheError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a dataclass of settings."""

    name: str
    default: Any
    """`MISSING` where the setting is required."""

    kind: type
    """Of one value: bool, int, float or str."""

    many: bool
    """Whether the field holds several values."""

    words: tuple[str, ...]
    """The words that it takes; empty where any value goes."""

    literal: Any
    """The `Literal` of those words, or None."""

    help: str
    group: str
    """Heading in `--help`; empty for the command's own options."""

    metavar: str | None
    closed: bool
    """Whether the command line refuses other words itself (exit code 2); else the dataclass does
    (exit code 1)."""

    @property
    def flag(self) -> str:
        """The option, such as `--store-dtype`."""
        return f"--{self.name.replace('_', '-')}"


def setting(
    default: Any = MISSING,
    *,
    help: str,
    group: str = "",
    metavar: str | None = None,
    closed: bool = True,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: of field and flag; required if left out.
        help: what the value means, for `--help` and for readers of the dataclass.
        group: heading in `--help`.
        metavar: what `--help` calls the value.
        closed: whether the command line refuses words that the field's `Literal` does not hold.
    """
    about = {"help": help, "group": group, "metavar": metavar, "closed": closed}
    return field(default=default, metadata=about)


def settings_of(config: type) -> Iterator[Setting]:
    """List the settings of a dataclass in the order of its fields."""
    for declared in fields(config):
        kind, many, literal = _taken_apart(declared.type)
        words = get_args(literal)
        yield Setting(
            name=declared.name,
            default=declared.default,
            kind=kind,
            many=many,
            words=words,
            literal=literal,
            **declared.metadata,
        )


def check_words(config: Any) -> None:
    """Refuse words that the fields of a settings dataclass do not take.

    Raises:
        ActcacheError: names the field, the value and the words.
    """
    for spec in settings_of(type(config)):
        value = getattr(config, spec.name)
        if not spec.words:
            continue
        known = ", ".join(spec.words)
        if spec.many and (not value or not set(value) <= set(spec.words)):
            raise ActcacheError(
                f"{spec.name} are {list(value)}, expected some of {known}. "
                "Pass them separated by commas."
            )
        if not spec.many and value not in spec.words:
            raise ActcacheError(f"{spec.name} is '{value}', expected {known}. Pass one of them.")


def check_once(config: Any, *names: str) -> None:
    """Refuse values that a field lists twice.

    Raises:
        ActcacheError: names the field and its values.
    """
    for name in names:
        values = list(getattr(config, name))
        if len(set(values)) != len(values):
            raise ActcacheError(
                f"{name} are {values}, expected each once. Pass them separated by commas."
            )


def _taken_apart(annotation: Any) -> tuple[type, bool, Any]:
    """The type of one value, whether there are several, and the `Literal`, of an annotation."""
    if get_origin(annotation) in (Union, UnionType):  # `X | None`
        [annotation] = [x for x in get_args(annotation) if x is not type(None)]
    many = get_origin(annotation) is Sequence
    if many:
        [annotation] = get_args(annotation)
    if get_origin(annotation) is Literal:
        return str, many, annotation
    return annotation, many, None
