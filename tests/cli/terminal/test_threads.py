"""The number of threads follows the width of the model, unless the user gave one."""

import json
import os

import pytest

from actcache.cli.terminal import threads

GIVEN = "OMP_NUM_THREADS"


@pytest.fixture
def torch_threads(monkeypatch):
    import torch

    numbers_set: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers_set.append)
    return numbers_set


@pytest.mark.parametrize(
    ("given", "width", "chosen"),
    [("", 128, [1]), ("", 512, [1]), ("", 768, []), ("", None, []), ("3", 128, [])],
)
def test_a_small_model_runs_in_one_thread_unless_a_number_was_given(
    given, width, chosen, monkeypatch, torch_threads, capsys
):
    monkeypatch.setenv(GIVEN, given)

    threads.choose_threads(width)

    assert torch_threads == chosen
    assert os.environ[GIVEN] == ("1" if chosen else given)
    assert ("OMP_NUM_THREADS=N" in capsys.readouterr().err) == bool(chosen)


@pytest.mark.parametrize(
    ("document", "width"),
    [
        ({"hidden_size": 128}, 128),
        ({"n_embd": 768}, 768),
        ({"text_config": {"hidden_size": 64}}, 64),
        ({}, None),
        ([1], None),
        ({"hidden_size": "many"}, None),
    ],
)
def test_the_width_is_read_from_the_config(document, width, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")

    assert threads.width_of(str(tmp_path)) == width


def test_an_unknown_model_has_no_width(tmp_path):
    assert threads.width_of(str(tmp_path)) is None
    assert threads.width_of("/no/such/folder") is None
    assert threads.width_of("no/such-id-in-the-cache") is None
