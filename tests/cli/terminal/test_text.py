"""Foreign names and messages on the terminal are text, never markup or control codes."""

import doctest
from types import SimpleNamespace
from typing import Any

import pytest

from actcache.analysis.report.tables import Table
from actcache.cli import info
from actcache.cli.terminal import console, show
from actcache.cli.terminal import text as module

HOSTILE = "[red]a[/bold] \x1b]0;owned\x07 \x9b31m b"


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def assert_safe(shown):
    assert "[red]a[/bold] \\x1b]0;owned\\x07 \\x9b31m b" in " ".join(shown.split())
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_facts_tables_titles_and_lines_show_names_as_they_are(capsys):
    console.print_facts({"behavior": HOSTILE})
    assert_safe(capsys.readouterr().out)
    console.say(HOSTILE)
    assert_safe(capsys.readouterr().err)
    console.out().print(show._rich(Table(HOSTILE, [{"behavior": "x", "n": "1"}])))
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "[/bold]" in shown
    console.out().print(show._rich(Table("t", [{"behavior": HOSTILE, "verdict": HOSTILE}])))
    assert_safe(capsys.readouterr().out)


def test_a_title_of_a_bar_is_text():
    with console.Bars().steps(HOSTILE, 3) as advance:
        advance(3)


@pytest.mark.parametrize("certificate", [None, "x", {"largest_relative_error": "x"}, {"rows": 3}])
def test_a_strangers_certificate_is_shown_as_it_is(certificate):
    store: Any = SimpleNamespace(certificate=certificate, kind="residuals")

    assert info._certified(store) == certificate
