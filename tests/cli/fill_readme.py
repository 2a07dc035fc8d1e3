"""Writes cli/README.md from the help of the real parsers: `python -m tests.cli.fill_readme`.

test_readme fails where the file is out of date.
"""

import argparse
import os
from pathlib import Path
from unittest import mock

from actcache.cli.main import parser

README = Path(__file__).parents[2] / "cli" / "README.md"

INTRODUCTION = """\
# The commands

Written by `python -m tests.cli.fill_readme` from the commands' own `--help`; do not edit it by hand.

Results go to stdout, progress and messages to stderr; `--json` prints one JSON document. Every long
loop shows a progress bar where stderr is a terminal. Exit codes: 0 done; 1 an error that you can
fix, in one line that says what was found, what was expected and what to do; 2 wrong usage; 130
Ctrl-C. A flag that is given wins over a preset, a preset wins over the defaults.
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, at a fixed width."""
    [choices] = [a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return choices


def reference() -> str:
    """The whole file."""
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        sections = {"actcache": parser().format_help()}
        sections |= {f"actcache {k}": command.format_help() for k, command in commands().items()}
    parts = [f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in sections.items()]
    return "\n".join([INTRODUCTION, *parts])


if __name__ == "__main__":
    README.write_text(reference(), encoding="utf-8")
