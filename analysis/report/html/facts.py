"""Facts of a report: settings and provenance as names and short texts, and command lines."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from actcache.analysis.files import plain
from actcache.settings import settings_of

LONGEST = 300
"""Characters of a value that are shown."""


def flat_facts(document: Any) -> dict[str, str]:
    """Name every value of a nested document by its path: `model.dtype`."""
    return dict(_facts(plain(document), ""))


def _facts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _facts(entry, f"{path}.{name}" if path else str(name))
        return
    if isinstance(value, list):
        text = ", ".join(map(_text, value)) or "none"
    elif isinstance(value, Mapping):
        text = "none"
    else:
        text = _text(value)
    yield path, text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _text(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def command_line(
    words: list[str], config: type, settings: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> str:
    """Write the command that has these settings: flags of those that are not the default.

    Args:
        words: the command and its positional arguments.
        config: the dataclass that the flags are made from.
        settings: value of each field.
        keep: fields whose flag is written in any case.
    """
    return " ".join(["actcache", *words, *setting_words(config, settings, keep=keep)])


def setting_words(
    config: type, settings: Mapping[str, Any], *, keep: tuple[str, ...] = ()
) -> list[str]:
    """Write the flags of settings that are not the default; arguments as `command_line`."""
    words = []
    for spec in settings_of(config):
        value = plain(settings.get(spec.name, spec.default))
        if value is None or (value == plain(spec.default) and spec.name not in keep):
            continue
        if spec.type is bool:
            words.append(spec.flag)
        else:
            text = ",".join(map(_number, value)) if spec.many else _number(value)
            joint = "=" if text.startswith("-") else " "  # else argparse takes it for a flag
            words.append(f"{spec.flag}{joint}{shlex.quote(text)}")
    return words


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
