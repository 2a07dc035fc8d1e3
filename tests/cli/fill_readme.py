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
loop shows a progress bar where stderr is a terminal, and a line every 30 seconds where it is none.
Colors are left out in files and pipes, with NO_COLOR, and where TERM is dumb. Exit codes: 0 done; 1
an error that you can fix, in one line that says what was found, what was expected and what to do; 2
wrong usage; 130 Ctrl-C.

A flag that is given wins over `--config`, that over a preset, a preset over the defaults. FILE of
`--config` is TOML with a table for each command, `[build]` or `[analyze]`; its keys are the flags
without the dashes. Each run writes one beside its results, with all settings as they were:
`actcache analyze STORE --config OUT/config.toml -o OTHER` repeats it. A flag without a value that
the file sets cannot be unset by another flag: edit the file.
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
