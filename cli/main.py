"""Cache a language model's residuals once; answer steering research's questions from the cache."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence

from actcache.cli import (
    analyze,
    build,
    chat,
    demo,
    export,
    import_,
    info,
    merge,
    steer,
    subset,
    verify,
)
from actcache.errors import ActcacheError

COMMANDS = (demo, build, analyze, steer, chat, info, verify, subset, merge, export, import_)

INTERRUPTED = {
    **dict.fromkeys(
        ("build", "subset", "merge", "import"), "what was committed is kept, see --resume"
    ),
    "analyze": "what was committed is kept, run the same command to resume",
    "steer": "texts that were written are kept, see --resume",
    "demo": "the same command starts over",
}
"""What is left of a command after Ctrl-C; of all others nothing."""


def parser() -> argparse.ArgumentParser:
    """Make the command line; each command's help is its module's docstring."""
    top = argparse.ArgumentParser(prog="actcache", description=__doc__)
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
        command.set_defaults(run=module.run)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exits where help was asked for, or the usage is wrong."""
    return parser().parse_args(_with_joined_multipliers(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 an error that the user can fix, 2 usage, 130 Ctrl-C."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.version:
        from importlib.metadata import version

        print(f"actcache {version('actcache')}")
        return 0
    if args.command is None:
        parser().print_help(sys.stderr)
        return 2
    try:
        args.run(args)
    except ActcacheError as error:
        print(f"actcache: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our stdout has closed it, such as `head`
        return 0
    except OSError as error:
        # Disk full, no permission, a mount gone: the user can fix it, and a store can be resumed.
        print(f"actcache: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        left = INTERRUPTED.get(args.command, "nothing was written")
        print(f"actcache: stopped; {left}", file=sys.stderr)
        return 130
    return 0


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
