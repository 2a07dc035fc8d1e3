"""`--config FILE`: the settings of a run as TOML, read before the flags and written beside results.

The file has a table for each command, `[build]` or `[analyze]`, whose keys are the command's flags
without the dashes. A flag that is given wins over the file.
"""

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actcache.cli.terminal.console import say
from actcache.conventions import NO_PRESET, find_preset
from actcache.errors import ActcacheError
from actcache.names import suggestion
from actcache.settings import settings_of

CHANGE_NO_RESULT = ("reuse", "workers", "cluster", "gpus_per_worker", "sweep_store")
"""Flags that are not written: another run may do without what they name."""

NOT_SETTINGS = ("help", "config", "output", "json", "resume", "overwrite", "dry_run")
"""Flags that say what to do now, not what a run computes: no file holds them."""


_HEAD = "# Written by actcache"


class ReadConfig(Exception):  # noqa: N818 - it carries a path out of argparse
    """`--config` was met: the file is read, then the command line is parsed once more."""

    def __init__(self, path: str):
        super().__init__(path)
        self.path = path


class _ConfigAction(argparse.Action):
    """Stops the parser at the first `--config`; the second parse finds the file read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        path = str(values)
        if parser.get_default("config_read") is None:
            apply_config(parser, path)
            raise ReadConfig(path)
        if getattr(namespace, self.dest) is not None:
            raise ActcacheError("--config is given twice, expected one file. Pass it once.")
        setattr(namespace, self.dest, path)


def add_config(command: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    command.add_argument(
        "--config",
        action=_ConfigAction,
        metavar="FILE",
        help="settings from a TOML file, as a run writes them beside its results; a flag that is "
        "given wins",
    )


def apply_config(command: argparse.ArgumentParser, path: str) -> None:
    """Let the settings of a file be the defaults of a command's flags.

    Raises:
        ActcacheError: the file cannot be read, has no table for the command, or names no flag.
    """
    name = command.prog.rsplit(" ", 1)[-1]
    flags = {a.dest: a for a in command._actions if a.option_strings and a.dest not in NOT_SETTINGS}
    for key, value in _table(path, name).items():
        action = flags.get(key.replace("-", "_"))
        if action is None:
            near = suggestion(key, flags)
            raise ActcacheError(
                f"'{path}' sets '{key}' under [{name}], which is no setting of it. {near}"
                f"Pass one of {', '.join(flags)}."
            )
        action.default = _default(action, value, f"'{path}': {key}")
        action.required = False
    command.set_defaults(config_read=path)


def _table(path: str, command: str) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ActcacheError(
            f"cannot read --config '{path}' ({error.strerror}), expected a TOML file. Check the "
            "path."
        ) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8
        raise ActcacheError(f"--config '{path}' is not TOML ({error}). Correct it.") from error
    loose = [key for key, value in document.items() if not isinstance(value, dict)]
    if loose:
        raise ActcacheError(
            f"--config '{path}' sets '{loose[0]}' outside of a table, expected it under "
            f"[{command}]. Write [{command}] above it."
        )
    if command not in document:
        tables = ", ".join(f"[{name}]" for name in document) or "nothing"
        raise ActcacheError(
            f"--config '{path}' has {tables}, expected [{command}]. "
            f"{suggestion(command, document)}Write its settings under [{command}]."
        )
    table: Mapping[str, Any] = document[command]
    return table


def _default(action: argparse.Action, value: Any, place: str) -> Any:
    """A value of the file as what the flag would hold."""
    if isinstance(action, argparse._StoreTrueAction):
        return _checked(value, bool, "true or false", place)
    if isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*"):
        values = _checked(value, list, "a list of texts", place)
        return [_checked(item, str, "a list of texts", place) for item in values]
    if action.type is int:
        return _checked(value, int, "a whole number", place)
    if action.type is float:
        return float(_checked(value, int | float, "a number", place))
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(_word(item, place) for item in value)
    text = _word(value, place)
    if action.choices is not None and text not in action.choices:
        words = ", ".join(map(str, action.choices))
        raise ActcacheError(
            f"{place} is '{text}', expected one of {words}. "
            f"{suggestion(text, map(str, action.choices))}Write one of them."
        )
    return text


def _word(value: Any, place: str) -> str:
    if isinstance(value, float):
        return repr(value)
    _checked(value, str | int, "text, numbers or a list of these", place)
    return str(value)


def _checked(value: Any, kind: Any, expected: str, place: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ActcacheError(f"{place} is {json.dumps(value, default=str)}, expected {expected}.")
    return value


def write_config(path: Path, args: argparse.Namespace, config: Any) -> None:
    """Write the settings of a run beside what it left, so that `--config` repeats it.

    All settings stand in it, whatever their defaults will be. Of the other flags only those that
    were given, without `CHANGE_NO_RESULT`.
    """
    from importlib.metadata import version

    from actcache.analysis.files import write_text  # imports numpy

    settings = {spec.name: getattr(config, spec.name) for spec in settings_of(type(config))}
    preset = getattr(config, "preset", NO_PRESET)
    set_by_preset = {**find_preset(preset).build, **find_preset(preset).sweep}
    for name in (name for name in settings if settings[name] is None and set_by_preset.get(name)):
        settings[name] = ""  # none, whatever the preset sets
    given = {
        action.dest: getattr(args, action.dest)
        for action in args.parser._actions
        if action.option_strings
        if action.dest not in (*NOT_SETTINGS, *CHANGE_NO_RESULT, *settings)
        if getattr(args, action.dest) not in (action.default, None)
    }
    repeat = f"actcache {args.command} … --config {path.name} -o OTHER"
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_HEAD):
        say(f"actcache: the settings are not written: '{path}' is a file of yours")
        return
    head = f"{_HEAD} {version('actcache')}. To repeat the run: {repeat}\n"
    write_text(path, head + toml(args.command, settings | given))


def toml(command: str, settings: Mapping[str, Any]) -> str:
    """Write settings as the table of a command; those that are None are left out.

    Our own writer, since values are texts, numbers, and lists and tables of these.
    """
    lines = [f"[{command}]"]
    lines += [f"{key} = {_value(value)}" for key, value in settings.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | bool):
        # JSON escapes as TOML does, but for the one control character that it leaves alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
