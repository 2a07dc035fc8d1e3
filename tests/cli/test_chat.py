"""`actcache chat`, through a pipe: answers on stdout, commands that change what comes next."""

import io
import json

import numpy as np
import pytest

from actcache.cli.main import main
from actcache.steering.source import SteeringSource
from actcache.steering.steering import Steering
from tests.cli.commands import refused


@pytest.fixture(scope="module")
def steering_file(folder):
    vector = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    source = SteeringSource(model=str(folder / "model"))
    path = folder / "mood.safetensors"
    Steering(layers=(1,), vectors=vector, strength=3.0, source=source).save(path)
    return path


def chat(monkeypatch, source, lines, *flags):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", str(source), "--max-new", "6", *flags])


@pytest.mark.model
def test_messages_are_answered_and_commands_steer(steering_file, monkeypatch, capsys):
    lines = ["Hi", "/compare", "/off", "", "And?", "/strength -2", "Yes?", "/quit", "never"]
    assert chat(monkeypatch, steering_file, lines, "--json") == 0

    turns = json.loads(capsys.readouterr().out)
    assert [turn["message"] for turn in turns] == ["Hi", "And?", "Yes?"]
    assert [turn["steering"] for turn in turns] == ["strength 3", "not steered", "strength -2"]
    assert turns[0]["answer"] != turns[0]["without steering"]


@pytest.mark.model
def test_answers_go_to_stdout_and_mistakes_do_not_end_the_chat(steering_file, monkeypatch, capsys):
    lines = ["/compare", "/strength much", "/nothing", "/strength", "x" * 200, "Hi"]
    assert chat(monkeypatch, steering_file, lines) == 0

    shown = capsys.readouterr()
    assert shown.out.strip()
    for remedy in ("Write one first", "For example /strength 0.5", "/quit", "strength 3", "/reset"):
        assert remedy in shown.err


@pytest.mark.model
def test_ctrl_c_ends_the_chat(steering_file, monkeypatch, capsys):
    class Interrupted(io.StringIO):
        def __next__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert main(["chat", str(steering_file)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.model
def test_a_folder_without_a_steering_is_named(folder, capsys):
    assert "actcache steer" in refused(["chat", folder], capsys)
