"""The page of an analysis: what it shows, that all text is text, its size, the same bytes again."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from actcache.analysis.report.findings import findings
from actcache.analysis.report.html.columns import columns
from actcache.analysis.report.html.results_page import results_page
from actcache.analysis.report.html.samples import Samples, sample_columns, spread
from actcache.analysis.report.predictor_tables import predictor_tables
from tests.support.pages import HOSTILE, full_summary, planted_choices, planted_samples
from tests.support.summaries import GRID, LAYERS, mwe_summary, planted_behavior, planted_summary

LIMIT = 3_000_000


class Reader(HTMLParser):
    """Tags, text outside scripts, and the data of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self._of: str | None = None
        self.feed(page)
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._of = "data" if ("id", "data") in attrs else tag

    def handle_endtag(self, tag):
        self._of = None

    def handle_data(self, data):
        if self._of == "data":
            self.data = json.loads(data)
        elif self._of not in ("script", "style"):
            self.texts.append(data)


def page_of(summary, **parts):
    parts = {"samples": None, "choices": None, "commands": ["actcache x"], "again": "y", **parts}
    return results_page(summary, **parts)


@pytest.fixture(scope="module")
def page():
    summary = full_summary()
    return page_of(summary, samples=planted_samples(), choices=planted_choices([HOSTILE]))


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_findings_stand_first_and_every_table_is_there(read):
    summary = full_summary()
    words = " ".join(read.text.split())

    assert words.index("Findings") < words.index("behavior 1: steerable") < words.index("By letter")
    for finding in findings(summary):
        assert finding.text in words
    for table in predictor_tables(summary):
        assert table.title in words


def test_texts_of_others_are_text(page, read):
    assert read.tags.count("img") == 0
    assert read.tags.count("script") == 3  # the data, the library, ours
    assert "\x1b" not in page
    assert "\x00" not in page
    assert "\\x1b[31mred\\x00 {{ 7 * 7 }}" in read.text
    assert HOSTILE in read.data["samples"]["behavior"]["words"]


def test_nothing_is_loaded_from_anywhere(page, read):
    assert not {"link", "iframe", "object"} & {tag for tag in read.tags if tag != "link"}
    assert read.tags.count("link") == 1  # the icon, which is empty
    assert "default-src 'none'" in page
    for chart in read.data["charts"].values():
        assert "url" not in json.dumps(chart)


def test_the_same_results_give_the_same_bytes(page):
    again = page_of(full_summary(), samples=planted_samples(), choices=planted_choices([HOSTILE]))
    assert again == page


def test_slopes_and_curves_of_samples_are_those_of_the_sweep():
    samples = planted_samples()
    data = sample_columns(samples, {"behavior 1": 5})

    stored = np.frombuffer(base64.b64decode(data["slope"]["values"]), "<i2").reshape(
        -1, len(LAYERS)
    )
    np.testing.assert_allclose(
        stored * data["slope"]["step"], samples.slope, atol=data["slope"]["step"]
    )
    bytes_ = np.frombuffer(base64.b64decode(data["curves"]["values"]), np.int8)
    curves = bytes_.reshape(len(data["curves"]["of"]), len(LAYERS), len(GRID))
    largest = np.abs(samples.propensity).max((1, 2), keepdims=True)
    read = curves * np.array(data["curves"]["steps"])[:, None, None]
    assert (np.abs(read - samples.propensity) <= largest / 200).all()  # a byte has 127 steps
    assert [data["prompt"]["words"][i] for i in data["prompt"]["codes"]] == [
        text if len(text) <= 240 else f"{text[:239].rstrip()}…" for text in samples.prompt
    ]


def test_thirteen_behaviors_in_five_framings_fit():
    names = [f"a-behavior-with-quite-a-long-name-{i}" for i in range(13)]
    framings = ("", "@sys_pos", "@sys_neg", "@user_pos", "@user_neg")
    layers = tuple(range(32))
    scores = planted_behavior(1.0)

    def wide(one):
        return replace(one, by_layer=one.by_layer[:1] * 32, share_by_layer=(0.123456,) * 32)

    scores = replace(wide(scores), control=tuple(map(wide, scores.control * 5)))
    summary = planted_summary(
        {f"{name}{framing}": scores for name in names for framing in framings}
    )
    assert summary.sweep is not None
    grid = tuple(tuple(row) for row in np.random.default_rng(0).normal(size=(32, 7)))
    sweep = replace(summary.sweep, layers=layers, mean_propensity=dict.fromkeys(names, grid))
    n = 13 * 5 * 200
    rng = np.random.default_rng(1)
    samples = Samples(
        id=[f"{names[i % 13]}/{i}" for i in range(n)],
        behavior=[names[i % 13] for i in range(n)],
        variant=[["base", "sys_pos", "sys_neg", "user_pos", "user_neg"][i % 5] for i in range(n)],
        letter=["AB"[i % 2] for i in range(n)],
        prompt=[f"{i} ünï" * 60 for i in range(n)],
        layers=layers,
        multipliers=GRID.tolist(),
        slope=rng.normal(size=(n, 32)),
        propensity=rng.normal(size=(n, 32, 7)).astype(np.float32),
        predicted=np.zeros(n, np.int64),
        plane=rng.normal(size=(n, 2)).astype(np.float32),
        n_tested=n,
    )
    from tests.support.pages import predictors

    summary = replace(summary, sweep=sweep, predictors=predictors(names))

    page = page_of(summary, samples=samples, choices=planted_choices(names))

    assert len(page.encode()) <= LIMIT
    data = Reader(page).data["samples"]
    assert len(data["id"]) < n == data["n_tested"]
    assert len(set(data["behavior"]["codes"])) == 13
    assert len(set(data["framing"]["codes"])) == 5


def test_stages_that_did_not_run_have_no_section():
    summary = planted_summary({"tidy": planted_behavior(1.0)})
    text = Reader(page_of(summary)).text
    assert "Steerability by layer" in text
    for absent in ("Predictors", "Prompts in the plane", "Discriminative layers"):
        assert absent not in text

    bare = Reader(page_of(replace(summary, sweep=None, verdicts=())))
    assert "No stage ran that gives a finding" in bare.text
    assert "Steerability by layer" not in bare.text
    assert "Settings and provenance" in bare.text


def test_a_behavior_has_a_panel_each_and_framings_share_it():
    page = page_of(mwe_summary())
    names = [name for name in mwe_summary().behaviors if "@" not in name]
    assert page.count('data-chart="layers"') == len(names)
    rows = Reader(page).data["tables"]["layers"]
    assert rows["framing"]["words"] == ["base", "user_neg", "sys_neg"]


def test_as_many_of_each_group_are_chosen_as_fit():
    groups = ["a"] * 90 + ["b"] * 10
    chosen = spread(groups, 20)
    assert [groups[i] for i in chosen].count("a") == 10
    assert [groups[i] for i in chosen].count("b") == 10
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert spread(groups, 100).tolist() == list(range(100))


def test_numbers_that_json_has_not_are_null_and_words_stand_once():
    rows = [{"name": "x", "value": value, "on": True} for value in (1.23456, np.nan, np.inf, 3)]
    assert columns(rows) == {
        "name": {"words": ["x"], "codes": [0, 0, 0, 0]},
        "value": [1.235, None, None, 3],
        "on": [True, True, True, True],
    }
