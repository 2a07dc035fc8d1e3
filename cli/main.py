"""Cache a language model's residuals once; answer steering research's questions from the cache."""

import argparse
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from actcache.cli import (
    analyze,
    build,
    chat,
    concepts,
    demo,
    export,
    import_,
    info,
    merge,
    report,
    steer,
    subset,
    verify,
)
from actcache.cli.terminal import completion
from actcache.cli.terminal.config_file import ReadConfig
from actcache.cli.terminal.last_resort import keep_trace
from actcache.cli.terminal.process import is_file_limit, prepare_streams, raise_file_limit
from actcache.cli.terminal.text import printable
from actcache.errors import ActcacheError
from actcache.names import suggestion

COMMANDS = (
    *(demo, concepts, build, analyze, steer, report, chat),
    *(info, verify, subset, merge, export, import_, completion),
)

INTERRUPTED = {
    **dict.fromkeys(
        ("build", "subset", "merge", "import"), "what was committed is kept, see --resume"
    ),
    "analyze": "what was committed is kept, run the same command to resume",
    "concepts": "concepts that are done are kept, run the same command to go on",
    "steer": "texts that were written are kept, see --resume",
    "demo": "the same command starts over",
}
"""What is left of a command after Ctrl-C; of all others nothing."""


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest of the words that it takes."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2; of a wrong choice, ask whether the nearest one was meant."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = suggestion(wrong[1], re.findall(r"'(.*?)'", wrong[2])) if wrong else ""
        super().error(f"{message}. {hint}".rstrip() if hint else message.rstrip(". "))


def parser() -> argparse.ArgumentParser:
    """Make the command line; each command's help is its module's docstring."""
    top = Parser(prog="actcache", description=__doc__)
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1].rstrip("_")  # `import` is a keyword of Python
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.split(".")[0][:1].lower() + text.split(".")[0][1:],
            description=_filled(text),
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=module.run, parser=command, top=top)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exits where help was asked for, or the usage is wrong."""
    top, words = parser(), _with_joined_multipliers(argv)
    try:
        args, unknown = top.parse_known_args(words)
    except ReadConfig:  # its settings are the defaults now
        args, unknown = top.parse_known_args(words)
    if unknown:
        flags = getattr(args, "parser", top)._option_string_actions
        top.error(f"unrecognized arguments: {' '.join(unknown)}. {suggestion(unknown[0], flags)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 an error that the user can fix, 2 usage, 130 Ctrl-C."""
    prepare_streams()
    raise_file_limit()
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ActcacheError as error:  # of --config
        return _fail(str(error))
    if args.version:
        from importlib.metadata import version

        print(f"actcache {version('actcache')}")
        return 0
    if args.command is None:
        parser().print_help(sys.stderr)
        return 2
    try:
        _check_paths(args)
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our stdout has closed it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except (ActcacheError, OSError) as error:
        # OSError: disk full, no permission, a mount gone: the user can fix it, and resume a store.
        remedy = ". Raise the limit, with: ulimit -n 65536" if is_file_limit(error) else ""
        return _fail(f"{error}{remedy}")
    except MemoryError as error:
        return _fail(
            f"out of memory ({str(error) or args.command}), expected room for what was asked for. "
            "Pass smaller settings, or use a machine with more memory."
        )
    except KeyboardInterrupt:
        left = INTERRUPTED.get(args.command, "nothing was written")
        print(f"actcache: stopped; {left}", file=sys.stderr)
        return 130
    except Exception as error:  # a mistake of ours: one line, and the rest in a file
        return _fail(keep_trace(error))
    return 0


def _fail(message: str) -> int:
    print(f"actcache: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 1


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse paths that are empty, and a bucket where a folder is written."""
    flags = {"model": "--model", "output": "--output", "sweep_store": "--sweep-store"}
    for name in ("store", "stores", "path", "source", *flags):
        given = getattr(args, name, None)
        flag = flags.get(name, name.upper())
        if given == "" or (isinstance(given, list) and "" in given):
            raise ActcacheError(f"{flag} is empty, expected a path. Pass one.")
        for path in given if isinstance(given, list) else [given or ""]:
            scheme, separator, _ = path.partition("://")
            if separator and scheme.lower() != "s3":
                raise ActcacheError(
                    f"{flag} is '{path}', expected a path on this machine, or s3://BUCKET/NAME "
                    "where a bucket will do. Pass one."
                )
    output = getattr(args, "output", None)
    if output and output.lower().startswith("s3:/") and not args.output_in_bucket:
        from actcache.store.storage.address import require_folder  # imports numpy

        remedy = "Pass another path with -o."
        if hasattr(args, "sweep_store"):
            remedy = "Pass a folder with -o, and s3://… for the sweep's store with --sweep-store."
        require_folder(output, f"what {args.command} writes", remedy=remedy)


def _filled(text: str) -> str:
    """Wrap each paragraph at the width of the terminal."""
    width = shutil.get_terminal_size().columns - 2  # as argparse does
    return "\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in text.split("\n\n"))


def _with_joined_multipliers(argv: Sequence[str]) -> list[str]:
    """Join `--multipliers -1.5:1.5:0.5` by `=`: argparse takes the minus for another flag."""
    words = list(argv)
    for i, word in enumerate(words[:-1]):
        if word in ("--multipliers", "--strength"):
            words[i : i + 2] = [f"{word}={words[i + 1]}"]
            break
    return words


if __name__ == "__main__":
    sys.exit(main())
