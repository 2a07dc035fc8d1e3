"""Cache a language model's residuals once; answer steering research's questions from the cache."""

import argparse
import sys
from collections.abc import Sequence

from actcache.cli import analyze, build, demo, export, import_, info, merge, subset, verify
from actcache.errors import ActcacheError

COMMANDS = (demo, build, analyze, info, verify, subset, merge, export, import_)

KEPT = {
    **dict.fromkeys(
        ("build", "subset", "merge", "import"), "what was committed is kept, see --resume"
    ),
    "analyze": "what was committed is kept, the same command goes on",
    "demo": "the same command begins anew",
}
"""What Ctrl-C leaves of a command; of others nothing."""


def parser() -> argparse.ArgumentParser:
    """The command line; each command's text is its module's docstring."""
    top = argparse.ArgumentParser(prog="actcache", description=__doc__)
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1].rstrip("_")  # `import` is a word of Python
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.split(".")[0][:1].lower() + text.split(".")[0][1:],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 an error that the user can mend (one line on stderr); 2 usage; 130 Ctrl-C.
    """
    top = parser()
    try:
        args = top.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.version:
        from importlib.metadata import version

        print(f"actcache {version('actcache')}")
        return 0
    if args.command is None:
        top.print_help(sys.stderr)
        return 2
    try:
        args.run(args)
    except ActcacheError as error:
        print(f"actcache: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our stdout has seen enough
        return 0
    except OSError as error:
        # Disk full, no permission, a mount gone: theirs to mend, and a store is left resumable.
        print(f"actcache: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = KEPT.get(args.command, "nothing was written")
        print(f"actcache: stopped; {how}", file=sys.stderr)
        return 130
    return 0


def _joined(argv: Sequence[str]) -> list[str]:
    """`--multipliers -1.5:1.5:0.5` as one word: argparse takes the minus for another flag."""
    words = list(argv)
    for i, word in enumerate(words[:-1]):
        if word == "--multipliers":
            words[i : i + 2] = [f"{word}={words[i + 1]}"]
            break
    return words


if __name__ == "__main__":
    sys.exit(main())
