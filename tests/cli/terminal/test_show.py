"""Screens: at each width the first lines say what was found, and no name is dropped or folded.

`python -m tests.cli.terminal.test_show` writes the golden screens anew.
"""

import io
import re
import sys
from pathlib import Path

import pytest

from actcache.cli.terminal.show import show
from tests.support.summaries import mwe_summary

SCREENS = Path(__file__).parent / "screens"
WIDTHS = {"80": 80, "100": 100, "130": 130, "piped": None}


class Screen(io.StringIO):
    """A stdout that is a terminal, or not."""

    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(width, patch):
    """Print the planted summary, and return what a terminal of this width shows."""
    screen = Screen(terminal=width is not None)
    patch.setattr(sys, "stdout", screen)
    patch.setenv("TERM", "xterm")
    patch.setenv("COLUMNS", str(width or 40))  # of a pipe, COLUMNS says nothing
    show(mwe_summary())
    return re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())


@pytest.mark.parametrize("name", WIDTHS)
def test_screens_equal_the_golden_files(name, monkeypatch):
    text = shown(WIDTHS[name], monkeypatch)
    assert text == (SCREENS / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 130])
def test_names_are_whole_and_nothing_is_wider_than_the_terminal(width, monkeypatch):
    lines = shown(width, monkeypatch).splitlines()
    assert max(map(len, lines)) <= width
    for behavior in mwe_summary().behaviors:
        assert any(behavior in line for line in lines)


def test_colors_are_for_terminals(monkeypatch):
    for terminal in (True, False):
        screen = Screen(terminal=terminal)
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("TERM", "xterm")
        show(mwe_summary())
        assert ("\x1b[" in screen.getvalue()) == terminal


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    for name, width in WIDTHS.items():
        with pytest.MonkeyPatch.context() as patch:
            text = shown(width, patch)
        (SCREENS / f"{name}.txt").write_text(text, encoding="utf-8")
