"""The stage on a model whose attention is written: it finds the planted tokens and directions."""

import numpy as np
import pytest

from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.pipeline import analyze
from actcache.build.pipeline import build_store
from actcache.conventions import ATTENTION, ATTENTION_CONTROL
from tests.analysis.concepts.planted import PLANTED, save_planted, signal, write_planted_rows

pytestmark = pytest.mark.model

POSITIONS = ("template_-4", "template_-3", "template_-2", "template_-1")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    store = build_store(
        write_planted_rows(folder / "rows.jsonl"),
        folder / "rows.zarr",
        model=save_planted(folder / "model"),
        positions=("template:4",),
        sites=("resid_post", ATTENTION, ATTENTION_CONTROL),
    )
    analyze(store, folder / "out", stages=("concepts",), methods=("mean", "ridge"))
    return folder / "out", ConceptSummary.read(folder / "out")


def test_the_planted_token_is_found_in_every_block(planted):
    _, summary = planted
    scores = summary.concepts["7"]

    assert scores.tokens == PLANTED
    assert scores.blind == ()
    for layer, token in enumerate(PLANTED):
        assert scores.mass[token][layer] > 0.45  # one of two heads
        assert all(scores.mass[other][layer] < 0.05 for other in POSITIONS if other != token)


def test_difference_of_means_there_is_the_planted_direction(planted):
    out, summary = planted
    from safetensors.numpy import load_file

    directions = load_file(out / "directions.safetensors")
    mean = directions["7/mean-hard-attended"]
    auc = summary.concepts["7"].sets["mean-hard-attended"].auc
    for block in range(4):
        assert auc[block].value == 1
        assert mean[block] @ signal(block) >= 0.95
        assert np.linalg.norm(mean[block]) == pytest.approx(1, abs=1e-5)


def test_the_last_token_cannot_know_before_the_last_block(planted):
    _, summary = planted
    last = summary.concepts["7"].sets["mean-hard-template_-1"].auc

    assert all(0.35 <= last[block].value <= 0.65 for block in range(3))
    assert last[3].value == 1


def test_a_span_on_random_words_loses_the_place(planted):
    _, summary = planted
    scores = summary.concepts["7"]

    assert scores.random_span_tokens is not None
    assert scores.random_span_mass is not None
    assert sum(a == b for a, b in zip(scores.random_span_tokens, PLANTED, strict=True)) < 4
    for layer, token in enumerate(PLANTED):
        assert scores.random_span_mass[token][layer] < scores.mass[token][layer] / 3


def test_the_report_has_controls_and_gives_no_verdict(planted):
    out, summary = planted
    page = (out / "tables.md").read_text()

    assert "AUC on held-out rows is no verdict" in page
    assert "A verdict needs a steering slope" in page
    for word in ("random span", "shuffled labels", "random directions", *POSITIONS):
        assert word in page
    controls = summary.concepts["7"].controls
    assert controls.draws >= 20
    assert all(
        interval.low < 0.5 < interval.high for interval in (*controls.shuffled, *controls.random)
    )
    assert summary.design == "same"
    assert (out / "concepts.png").read_bytes()[1:4] == b"PNG"
