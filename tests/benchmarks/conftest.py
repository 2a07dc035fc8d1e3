"""What tests of several benchmarks share."""

import json

import pytest

from benchmarks.support.models import saved_gpt2, saved_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with one token a word, and rows for it."""
    folder = tmp_path_factory.mktemp("benchmarks")
    saved_gpt2(folder / "model", layers=2, d_model=32, heads=2, vocab=64)
    saved_rows(folder / "rows.jsonl", 20, tokens=12, vocab=64)
    return folder


@pytest.fixture
def printed(capsys):
    """Read the JSON document that a benchmark prints last."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])
