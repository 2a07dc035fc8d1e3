"""Completion scripts, run by the shells on this machine."""

import argparse
import shutil
import subprocess

import pytest

from actcache.cli.main import main, parser
from actcache.cli.terminal.completion import SHELLS, completion

[CHOICES] = [a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash on this machine")


def run_shell(shell, script):
    run = subprocess.run([shell], input=script, capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.returncode == 0
    return run.stdout.split("\n")[:-1]


def completed(*words):
    """What bash offers for the last word of a command line."""
    listed = " ".join(f"'{word}'" for word in ("actcache", *words))
    script = completion(parser(), "bash")
    script += f"COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _actcache; printf '%s\\n' "
    return [word for word in run_shell(BASH, script + '"${COMPREPLY[@]}"\n') if word]


@needs_bash
def test_bash_completes_commands_flags_and_words():
    assert completed("") == [*CHOICES, "--help", "--version"]
    assert completed("an") == ["analyze"]
    assert completed("build", "--pre") == ["--preset"]
    assert completed("build", "rows.jsonl", "--preset", "") == [
        "none",
        "steering-bench",
        "repepo",
        "caa",
    ]
    assert completed("build", "rows.jsonl", "--preset", "ca") == ["caa"]
    assert completed("completion", "") == [*SHELLS]
    assert completed("build", "rows") == []  # bash offers files
    assert completed("nothing", "--x") == []


@needs_bash
@pytest.mark.parametrize("name", CHOICES)
def test_bash_knows_every_flag_of_every_command(name):
    flags = {flag for action in CHOICES[name]._actions for flag in action.option_strings}
    assert set(completed(name, "-")) == flags


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in CHOICES:
        assert name in script
    if (path := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} on this machine")
    assert run_shell(path, script) == []


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish on this machine")
def test_fish_completes_commands_flags_and_words():
    script = completion(parser(), "fish")
    offered = run_shell("fish", script + "complete -C 'actcache build rows --preset '\n")
    assert {line.split("\t")[0] for line in offered} == {"none", "steering-bench", "repepo", "caa"}


def test_another_shell_is_refused_with_those_there_are(capsys):
    assert main(["completion", "zsch"]) == 2
    assert "Did you mean 'zsh'?" in capsys.readouterr().err
