"""Commands under odd conditions: closed or narrow streams, few files, and bugs of ours."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actcache.cli.main import main
from actcache.cli.terminal.last_resort import without_secrets
from tests.support.processes import ROOT
from tests.support.stores import build, example

posix = pytest.mark.skipif(os.name != "posix", reason="shells and limits of POSIX")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    settings, values = example(n=300, shard_rows=1)
    settings["columns"] |= {name: ["base"] * 300 for name in ("variant", "split")}
    settings["columns"]["label"] = [""] * 300
    return build(tmp_path_factory.mktemp("s") / "müßig.zarr", settings, values)


def shell(line, **environment):
    return subprocess.run(
        ["sh", "-c", line.format(actcache=f"{sys.executable} -m actcache")],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@posix
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("{{actcache}} info {store} >&-", 0, ""),
        ("{{actcache}} info {store} >&- 2>&-", 0, ""),
        ("({{actcache}} info {store}; echo $? >&2) | true", 0, "0"),
        ("{{actcache}} info {store} > /dev/full", 1, "actcache: [Errno 28] No space left"),
        ("{{actcache}} info nowhere.zarr 2> /dev/null", 1, ""),
        ("ulimit -n 100; {{actcache}} info {store}", 0, ""),
        ("ulimit -S -n 100; {{actcache}} verify {store}", 0, ""),
    ],
)
def test_closed_or_full_streams_and_few_files_give_at_most_one_line(store, line, code, message):
    ran = shell(line.format(store=store))

    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    assert message in ran.stderr
    assert ran.stderr.count("\n") <= 1


@posix
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["encoding", "locale"],
)
def test_an_ascii_terminal_gets_escapes(store, environment):
    ran = shell(f"{{actcache}} info {store}", **environment)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.isascii()
    assert "m\\xfc\\xdfig" in ran.stdout


@pytest.fixture
def mistaken(monkeypatch, tmp_path):
    """Make `actcache info` raise an unexpected error with secrets in its message."""

    def run(_args):
        raise LookupError("no such thing\nat https://me:pass-word@host/v1?api_key=abcdefg&x=1")

    monkeypatch.setattr("actcache.cli.info.run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_an_unexpected_error_prints_one_line_and_saves_a_trace(mistaken, tmp_path, capsys):
    assert main(["info", "s.zarr"]) == 1

    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "LookupError: no such thing" in message
    [trace] = tmp_path.iterdir()
    assert str(trace) in message
    text = trace.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "in main" in text
    assert "pass-word" not in text
    assert "abcdefg" not in text


def test_the_line_says_when_no_trace_can_be_written(mistaken, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(Path("no/such/folder")))

    assert main(["info", "s.zarr"]) == 1
    assert "no temporary file can be written" in capsys.readouterr().err


def test_too_many_open_files_print_one_line_with_a_remedy(monkeypatch, capsys):
    def run(_args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("actcache.cli.info.run", run)

    assert main(["info", "s.zarr"]) == 1
    assert "Raise the limit, with: ulimit -n 65536" in capsys.readouterr().err


def test_running_out_of_memory_prints_one_line(monkeypatch, capsys):
    def run(_args):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("actcache.cli.info.run", run)

    assert main(["info", "s.zarr"]) == 1
    assert "out of memory (Unable to allocate 9 TiB)" in capsys.readouterr().err


def test_keys_of_the_environment_are_removed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    assert without_secrets("a sk-very-secret b") == "a … b"
    assert without_secrets("http://host/v1 is fine, 3 @ 4") == "http://host/v1 is fine, 3 @ 4"
