"""The Hub: asked once whether it answers; errors of other packages cut to one sentence."""

import os
import time

import pytest

from actcache.hub import first_sentence
from tests.support.processes import run_code


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_an_id_without_network_is_refused_without_asking_again_and_again(monkeypatch, offline):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", offline)
    monkeypatch.setitem(os.environ, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()

    done = run_code("""
from actcache.data.formats import read_samples
from actcache.engine.model import load_tokenizer
from actcache.errors import ActcacheError
for load in (load_tokenizer, read_samples):
    try:
        load("no/such")
    except ActcacheError as error:
        print(error)
""")

    assert "Pass a folder with config.json" in done.stdout
    assert "pass a local file" in done.stdout
    assert time.monotonic() - start < 40  # with its retries it was 77 s on an idle machine


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One thing. And another.", "One thing."),
        ("A heading:\n- first\n- second", "A heading: - first."),
        ("", "ValueError."),
        ("x" * 400, "x" * 300 + "…"),
    ],
)
def test_an_error_is_cut_to_a_whole_sentence(text, sentence):
    assert first_sentence(ValueError(text)) == sentence
