"""Output: results on stdout; progress and costs on stderr."""

import json

import pytest

from actcache.cli.terminal import console
from actcache.progress import Progress


def test_bars_satisfy_the_progress_protocol():
    assert isinstance(console.Bars(), Progress)


def test_a_bar_is_shown_on_stderr_of_a_terminal_alone(capsys, monkeypatch):
    for is_terminal, quiet in ((True, False), (True, True), (False, False)):
        monkeypatch.setenv("FORCE_COLOR", "1" if is_terminal else "")
        with console.Bars(quiet=quiet).steps("sweep", 4) as on_rows:
            on_rows(3)
            on_rows(1)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("4/4" in shown.err and "sweep" in shown.err) == (is_terminal and not quiet)


def test_a_cost_is_one_unwrapped_line_on_stderr(capsys):
    console.Bars().cost("openai:[big]: 3 texts, " + "about $0.01 " * 20)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "openai:[big]: 3 texts, " + "about $0.01 " * 20 + "\n"


def test_a_result_is_a_table_or_one_document(capsys):
    facts = {"rows": 12345, "model": None, "bytes on disk": 2_500_000, "path": "a[b].zarr"}

    console.print_result(facts, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    console.print_result(facts, as_json=True)

    assert [line.split() for line in lines] == [
        *(["rows", "12,345"], ["bytes", "on", "disk", "2.5", "MB"], ["path", "a[b].zarr"]),
    ]
    assert json.loads(capsys.readouterr().out) == facts


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0.0, "0 B"), (999.0, "999 B"), (1e3, "1.0 kB"), (2.34e6, "2.3 MB"), (5e15, "5000.0 TB")],
)
def test_sizes_read_well(n_bytes, text):
    assert console.size(n_bytes) == text
