"""The options of commands: made from the settings, and those that several commands share."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from typing import Any

from actcache.analysis.config import MAX_GRID
from actcache.cli.terminal.config_file import add_config
from actcache.cli.terminal.console import say
from actcache.cluster.session import Workers
from actcache.conventions import MEANINGS, PRESETS
from actcache.errors import ActcacheError
from actcache.settings import Setting, settings_of

Group = argparse.ArgumentParser | argparse._ArgumentGroup

MAX_NUMBERS = 10_000_000
"""Of a range: as many rows as no store has."""


def add_settings(
    command: argparse.ArgumentParser,
    config: type,
    headings: Mapping[str, str | None],
    *,
    no_default: Collection[str] = (),
) -> dict[str, Group]:
    """Add a flag for each field of a settings dataclass, and `--config`.

    Args:
        command: the command's parser.
        config: the dataclass.
        headings: of `--help`, in their order, and what stands under each.
        no_default: fields whose flag is None where it is not given, so that something else may set
            them.

    Returns:
        The headings, for flags that are no settings; the empty one is the command itself.
    """
    add_config(command)
    groups: dict[str, Group] = {"": command}
    groups |= {name: command.add_argument_group(name, about) for name, about in headings.items()}
    for spec in settings_of(config):
        add_setting(groups[spec.group], spec, no_default=spec.name in no_default)
    return groups


def add_settings_of(group: Group, config: type, *names: str) -> None:
    """Add the flags of some fields of a settings dataclass."""
    for spec in settings_of(config):
        if spec.name in names:
            add_setting(group, spec)


def add_setting(group: Group, spec: Setting, *, no_default: bool = False) -> None:
    """Add the flag of one setting."""
    if spec.type is bool:
        group.add_argument(spec.flag, action="store_true", help=_help(spec))
        return
    default = _shown(spec.default) if isinstance(spec.default, tuple) else spec.default
    group.add_argument(
        spec.flag,
        type=spec.type if spec.type in (int, float) and not spec.many else str,
        default=None if default is MISSING or no_default else default,
        choices=spec.words if spec.words and not (spec.many or spec.metavar) else None,
        required=default is MISSING,
        metavar=spec.metavar or ("LIST" if spec.many else None),
        help=_help(spec),
    )


def given_settings(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """Read the fields of a settings dataclass off a command line; None where none was given."""
    return {spec.name: _value(spec, getattr(args, spec.name)) for spec in settings_of(config)}


def preset_help(part: str) -> str:
    """List what each preset sets as flags, for the part `build` or `sweep`."""
    lines = []
    for name, preset in PRESETS.items():
        settings = getattr(preset, part)
        flags = [f"--{field.replace('_', '-')}={_shown(x)}" for field, x in settings.items()]
        lines.append("\n    ".join([f"  {name} ({preset.code}):", *flags]))
    return "\n".join(lines)


def add_output(
    command: argparse.ArgumentParser,
    metavar: str,
    help: str,
    *,
    required: bool = True,
    default: str | None = None,
    bucket: bool = False,
) -> None:
    """Add `-o`; `bucket` says whether it may be an address `s3://…`."""
    command.add_argument(
        "-o",
        "--output",
        required=required,
        default=default,
        metavar=metavar,
        help=help,
    )
    command.set_defaults(output_in_bucket=bucket)


def add_format(command: argparse.ArgumentParser) -> None:
    """Add `--format`."""
    command.add_argument(
        "--format",
        default="png",
        metavar="LIST",
        help="of the pictures: png, svg, pdf (default: png)",
    )


def add_new_store(command: argparse.ArgumentParser, metavar: str) -> None:
    """Add the options of a command that writes a store."""
    add_output(command, metavar, f"the store to write, {metavar}.zarr, also s3://…", bucket=True)
    command.add_argument("--resume", action="store_true", help="resume an interrupted run")
    add_overwrite(command, f"replace the store at {metavar}, if there is one")


def note_ignored(args: argparse.Namespace) -> None:
    """Say on stderr which of `--resume` and `--overwrite` changes nothing."""
    from actcache.store.writing.partial import destination_of  # imports numpy

    if args.resume and args.overwrite:
        say("actcache: --overwrite is ignored: --resume keeps what was begun")
    if args.resume and not destination_of(args.output).begun():
        say(f"actcache: --resume is ignored: nothing was begun at '{args.output}'")


def add_overwrite(command: argparse.ArgumentParser, help: str) -> None:
    """Add `--overwrite`."""
    command.add_argument("--overwrite", action="store_true", help=help)


def add_dry_run(command: argparse.ArgumentParser, prints: str) -> None:
    """Add `--dry-run`."""
    command.add_argument(
        "--dry-run",
        action="store_true",
        help=f"print {prints} and an estimate of the time, and write nothing; where the weights "
        "are on this machine and at most 16 GB, it loads the model and times a batch",
    )


def add_workers(group: Group) -> None:
    """Add the flags of a command that can run on a cluster."""
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that each hold the model and share the rows, on Ray; they compute with one "
        "thread each, or as many as OMP_NUM_THREADS says (default: none, without Ray)",
    )
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="of a running Ray cluster, HOST:PORT or auto (default: start Ray on this machine)",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=int,
        metavar="N",
        help="GPUs of a worker (default: 1 where there are GPUs)",
    )


def given_workers(args: argparse.Namespace) -> Workers | None:
    """Read the flags of `add_workers`; None without `--workers`."""
    if args.workers is not None:
        return Workers(n=args.workers, address=args.cluster, gpus=args.gpus_per_worker)
    for flag in ("cluster", "gpus_per_worker"):
        if getattr(args, flag) is not None:
            raise ActcacheError(
                f"--{flag.replace('_', '-')} is given without --workers, expected both. Pass the "
                "number of workers."
            )
    return None


def names(text: str | None) -> tuple[str, ...] | None:
    """Split at the commas; None for None."""
    return None if text is None else tuple(text.split(","))


def _given(what: str, text: str) -> str:
    return f"{what} {'are' if what.endswith('s') else 'is'} '{text}'"


def numbers(text: str | None, what: str) -> tuple[int, ...] | None:
    """Read whole numbers and ranges START:STOP, without STOP; None for None.

    Messages call the text `what`.
    """
    if text is None:
        return None
    values: list[int] = []
    try:
        for part in text.split(","):
            start, colon, stop = part.partition(":")
            numbers = range(int(start), int(stop) if colon else int(start) + 1)
            if len(numbers) > MAX_NUMBERS:  # before it takes memory
                raise ActcacheError(
                    f"{_given(what, text)}, expected at most {MAX_NUMBERS:,} numbers. Pass fewer."
                )
            values += numbers
    except (ValueError, OverflowError):
        raise ActcacheError(
            f"{_given(what, text)}, expected whole numbers and ranges START:STOP separated by "
            "commas. For example 0:100,205."
        ) from None
    return tuple(values)


def key_map(text: str | None) -> dict[str, str]:
    """Read `prompt=question,positive=chosen`: each key of a row, and its name in the data."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if not all(name.strip() and key.strip() for name, _, key in pairs) or text == "":
        raise ActcacheError(
            f"--map is '{text}', expected pairs NAME=KEY separated by commas. For example "
            "prompt=question,positive=chosen."
        )
    return {name.strip(): key.strip() for name, _, key in pairs}


def multipliers(text: str, what: str = "multipliers") -> tuple[float, ...]:
    """Read `-1.5:1.5:0.5`, both ends included, or a list such as `-1,0,1`."""
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        start, stop, step = (float(part) for part in text.split(":"))
        n_steps = round((stop - start) / step)
    except (ValueError, ZeroDivisionError, OverflowError):
        n_steps, start, stop, step = -1, 0.0, 0.0, 0.0
    if n_steps < 1 or abs(start + n_steps * step - stop) > 1e-9:
        raise ActcacheError(
            f"{_given(what, text)}, expected START:STOP:STEP with whole steps or a list of "
            "numbers. For example -1.5:1.5:0.5."
        )
    if n_steps > MAX_GRID:  # before they take memory
        raise ActcacheError(
            f"{_given(what, text)}, which is {n_steps + 1:,} numbers, expected at most {MAX_GRID}. "
            "Pass a larger STEP."
        )
    return tuple(round(start + i * step, 12) for i in range(n_steps + 1))


def _value(spec: Setting, given: Any) -> Any:
    if given is None or not spec.many:
        return given
    if not given and not spec.default and spec.type is str:  # `--labels ''`
        return spec.default
    if spec.type not in (int, float):
        return names(given)
    read = numbers if spec.type is int else multipliers
    return read(given, spec.name.replace("_", " "))


def _help(spec: Setting) -> str:
    text = spec.help.replace("{words}", ", ".join(spec.words))
    if spec.type in MEANINGS:
        meanings = MEANINGS[spec.type].items()
        text += ": " + "; ".join(f"{word} = {meaning}" for word, meaning in meanings)
    has_default = spec.default != () and not any(spec.default is x for x in (MISSING, None, False))
    if has_default and "(default" not in text:  # 0 is one, though it equals False
        text += f" (default: {_shown(spec.default)})"
    return text.replace("%", "%%")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in value)
    text = str("" if value is None else value)
    return text if text and not set(" \n") & set(text) else repr(text)
