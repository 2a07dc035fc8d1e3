"""Named sets of conventions: what three published codes do, setting by setting.

A table and two functions that lay it under what a user gave. Refuses to know how a setting acts
(`render`, `steering`) and how a condition is checked (`conditions`). Source: methods of Tan et al.
2024 as in dtch1997/steering-bench and dtch1997/repepo, and of Rimsky et al. 2024 in nrimsky/CAA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actcache.errors import ActcacheError

NONE = "none"
"""The name of no preset: every setting has its own default."""

SYSTEM = "You are a helpful, honest and concise assistant."
"""System message of steering-bench and repepo."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One code's conventions, and what rows must be for them to mean what they say."""

    code: str
    """Whose they are."""

    build: Mapping[str, Any]
    """Fields of `BuildConfig` and what the code does."""

    sweep: Mapping[str, Any]
    """Fields of `AnalyzeConfig` and what the code does."""

    needs: tuple[str, ...]
    """Names in `conditions.CONDITIONS` that every row must hold."""


_INDEX = ("letter", "one_after", "equal")  # all three read the token at index -2
_GRID = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)

PRESETS: Mapping[str, Preset] = {
    "steering-bench": Preset(
        code="dtch1997/steering-bench",
        # The chat template's text is tokenized with special tokens on: two BOS where both add one.
        build={
            "system": SYSTEM,
            "space": "add",
            "bos": "tokenizer",
            "answer": "first",
            "separator": "",
        },
        sweep={"first_steered": "completion", "score": "logprob", "multipliers": _GRID},
        needs=(*_INDEX, "special"),  # its score skips special tokens
    ),
    "repepo": Preset(
        code="dtch1997/repepo",
        build={
            "system": SYSTEM,
            "space": "strip",
            "bos": "auto",
            "answer": "first",
            "separator": "\n\n",
        },
        sweep={"first_steered": "prompt", "score": "logit", "multipliers": _GRID},
        needs=(*_INDEX, "bos", "one_space"),
    ),
    "caa": Preset(
        code="nrimsky/CAA",
        # Has no user variants; the separator is the default's.
        build={
            "system": None,
            "space": "strip",
            "bos": "auto",
            "answer": "first",
            "separator": "\n\n",
        },
        sweep={
            "first_steered": "prompt",
            "score": "probability",
            "multipliers": (-1.0, 0.0, 1.0),
        },
        needs=(*_INDEX, "bos", "one_space"),
    ),
}
"""Every preset by its name."""

NAMES = (NONE, *PRESETS)
"""What `--preset` takes."""


def build_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `BuildConfig`: the preset's, and over them what was given.

    Args:
        name: of `NAMES`.
        given: field to value; None is a field that was not given, an empty `system` none at all.

    Returns:
        The fields that either sets, and `preset`. What neither sets is left to the config.

    Raises:
        ActcacheError: there is no such preset.

    Example:
        >>> build_settings("caa", {"space": "one", "bos": None})["space"]
        'one'
    """
    settings = _settings(name, find(name).build if name != NONE else {}, given)
    return {**settings, "system": settings.get("system") or None}


def sweep_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `AnalyzeConfig`, as `build_settings` gives those of a build.

    Args:
        name: of `NAMES`.
        given: field to value; None is a field that was not given.

    Raises:
        ActcacheError: there is no such preset.

    Example:
        >>> sweep_settings("repepo", {"score": None})["score"]
        'logit'
    """
    return _settings(name, find(name).sweep if name != NONE else {}, given)


def needs(name: str) -> tuple[str, ...]:
    """The conditions that every row must hold under a preset; none without one.

    Raises:
        ActcacheError: there is no such preset.
    """
    return find(name).needs if name != NONE else ()


def find(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ActcacheError: there is none.
    """
    if name not in PRESETS:
        raise ActcacheError(
            f"preset is '{name}', expected {', '.join(NAMES)}. Pass one of them with --preset."
        )
    return PRESETS[name]


def described(part: str) -> str:
    """What each preset sets, as flags, for `--help`.

    Args:
        part: `build` or `sweep`.
    """
    lines = []
    for name, preset in PRESETS.items():
        settings = preset.build if part == "build" else preset.sweep
        flags = [f"--{field.replace('_', '-')}={_shown(x)}" for field, x in settings.items()]
        lines.append("\n    ".join([f"  {name} ({preset.code}):", *flags]))
    return "\n".join(lines)


def _settings(name: str, preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {field: value for field, value in given.items() if value is not None}
    return {**preset, **chosen, "preset": name}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{x:g}" for x in value)
    text = str(value or "")
    return text if text and not set(" \n") & set(text) else repr(text)
