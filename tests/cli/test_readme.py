"""cli/README.md against the real parsers."""

import shlex
import sys

import pytest

from actcache.cli.main import COMMANDS, parse
from tests.cli.fill_readme import README, commands, reference

TEXT = README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", commands())
def test_shows_each_command_and_each_flag(name):
    command = commands()[name]
    assert command.description, f"{name} is missing its help"
    section = TEXT[TEXT.index(f"## actcache {name}\n") :].split("\n## ")[0]
    for action in command._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag != "--help":
                assert flag in section, f"{name} {flag}"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later argparse writes help another way")
def test_is_up_to_date():
    assert reference() == TEXT, "run: python -m tests.cli.fill_readme"


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_the_example_of_each_command_parses(module):
    program, *words = shlex.split(module.EXAMPLE)

    assert program == "actcache"
    assert parse(words).run is module.run
    assert f"example:\n  {module.EXAMPLE}\n" in TEXT
