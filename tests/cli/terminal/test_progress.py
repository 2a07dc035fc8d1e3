"""Progress without a terminal, bars in notebooks, and colors on terminals alone."""

import json
import os
import pty
import re
import sys
import textwrap
import time
from subprocess import Popen

import pytest

from actcache import notebook
from actcache.cli.terminal import console
from actcache.progress import AUTOMATIC, Progress
from tests.support.processes import ROOT

ESCAPE = re.compile(rb"\x1b")


def test_a_line_is_printed_at_intervals_and_at_the_end(capsys):
    with console.Bars(seconds=0.05).steps("sweep", 400) as advance:
        advance(100)
        printed = wait_for_lines(capsys, 2)
        advance(300)
    lines = printed.splitlines() + capsys.readouterr().err.splitlines()

    assert len(lines) >= 3
    assert re.fullmatch(
        r"actcache: sweep: 100 of 400 \(25%\) after \d+ s, [\d,.e+]+ a second, about \d+ s left",
        lines[0],
    )
    assert re.match(r"actcache: sweep: 400 of 400 \(100%\) after \d+ s", lines[-1])


def wait_for_lines(capsys, n):
    """Return the lines once there are so many."""
    printed, deadline = "", time.monotonic() + 60
    while printed.count("\n") < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        printed += capsys.readouterr().err
    return printed


@pytest.mark.parametrize("total", [None, 0])
def test_a_loop_of_unknown_length_says_how_far_it_is(capsys, total):
    with console.Bars(seconds=0.03).steps("merge", total) as advance:
        printed = wait_for_lines(capsys, 1)
        advance(7)
    lines = printed.splitlines() + capsys.readouterr().err.splitlines()

    assert re.fullmatch(r"actcache: merge: 0 after \d+ s", lines[0])
    assert re.match(r"actcache: merge: 7 after \d+ s, ", lines[-1])


def test_nothing_is_printed_for_a_short_loop_or_when_quiet(capsys):
    with console.Bars().steps("sweep", 4) as advance:
        advance(4)
    with console.Bars(quiet=True, seconds=0.01).steps("sweep", 4) as advance:
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (7500.0, "2 h 5 min")]
)
def test_times_read_well(seconds, text):
    assert console.duration(seconds) == text


SHOW = textwrap.dedent(
    """
    import time
    from actcache.cli.terminal import console
    with console.Bars(seconds=0.05).steps("sweep", 4) as advance:
        advance(3)
        time.sleep(0.3)
    console.print_facts({"rows": 4})
    """
)


def shown(in_terminal, **environment):
    """Return what a loop and a table write to a terminal or a pipe."""
    usual = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    usual |= {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    reader, writer = pty.openpty() if in_terminal else os.pipe()
    with Popen(
        [sys.executable, "-c", SHOW], stdout=writer, stderr=writer, env=usual, cwd=ROOT
    ) as run:
        os.close(writer)
        parts = []
        try:
            while part := os.read(reader, 4096):
                parts.append(part)
        except OSError:  # a terminal that nobody writes to any more
            pass
    os.close(reader)
    assert run.returncode == 0
    return b"".join(parts)


@pytest.mark.parametrize(
    ("in_terminal", "environment", "bar", "colored"),
    [
        (True, {}, True, True),
        (True, {"NO_COLOR": "1"}, True, False),
        (True, {"TERM": "dumb"}, False, False),
        (False, {}, False, False),
    ],
    ids=["terminal", "NO_COLOR", "dumb", "pipe"],
)
def test_colors_and_bars_are_for_terminals_alone(in_terminal, environment, bar, colored):
    text = shown(in_terminal, **environment)

    assert (b"\x1b[3" in text) == colored
    assert bool(ESCAPE.search(text)) == bar  # a bar moves the cursor
    assert (b"3/4" in text) == bar
    assert (b"actcache: sweep: 3 of 4 (75%)" in text) != bar
    assert b"rows" in text


def test_outside_of_notebooks_the_front_door_is_silent(capsys):
    assert isinstance(AUTOMATIC, Progress)
    assert not notebook.in_notebook()
    with AUTOMATIC.steps("build", 3) as advance:
        advance(3)
    AUTOMATIC.cost("3 texts")
    assert capsys.readouterr() == ("", "")


def test_in_a_notebook_a_bar_is_shown_and_every_value_escaped(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the package nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the package nbformat is not installed")
    code = textwrap.dedent(
        """
        import time
        from actcache.progress import AUTOMATIC
        with AUTOMATIC.steps("<build>", 4) as advance:
            advance(1)
            time.sleep(0.3)
            advance(3)
        AUTOMATIC.cost("about $0.01")
        """
    )
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(
        page, timeout=600, resources={"metadata": {"path": str(ROOT)}}
    ).execute()

    bar, cost = page.cells[0].outputs
    html = bar["data"]["text/html"]
    assert '&lt;build&gt; <progress value="4" max="4"></progress> 4 of 4' in html
    assert cost["text"] == "about $0.01\n"
    assert json.dumps(page.cells[0].outputs).count("<progress") == 1  # updated in place
