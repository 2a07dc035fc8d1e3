"""The page of steered texts: strengths, every text of a prompt, names of others as text."""

import pytest

from actcache.analysis.report.html.generation_page import (
    TEXT_BYTES,
    TextRow,
    generation_page,
    strength_rows,
    text_columns,
)
from tests.analysis.report.html.test_results_page import Reader
from tests.analysis.report.test_generation import scores, summary
from tests.support.browser import opened
from tests.support.pages import HOSTILE


def texts(n=6, length=10):
    ways = [("unsteered", ""), ("CAA, fixed layer", "λ 0.5"), ("random vector", "λ 0.5")]
    return [
        TextRow(
            id=f"row-{i}",
            behavior=["tidy", HOSTILE][i % 2],
            split="test",
            prompt=f"{HOSTILE} {i}",
            method=method,
            strength=strength,
            sample=0,
            text=f"{i} {method} " + "x" * length,
            target=None if i else 0.5,
            nll_unsteered=1.25,
        )
        for i in range(n)
        for method, strength in ways
    ]


def page_of(methods, rows):
    return generation_page(
        summary(*methods), rows, settings={"config": {"seed": 0}}, commands=["x"], again="y"
    )


@pytest.fixture(scope="module")
def page():
    return page_of(
        [scores("tidy"), scores(HOSTILE), scores("tidy", "random", control=True)], texts()
    )


def test_the_identity_is_a_strength_without_effect():
    rows = strength_rows(summary(scores("tidy")))
    [at_identity] = [row for row in rows if row["strength"] == 0]
    assert (at_identity["effect"], at_identity["perplexity"]) == (0.0, 1.0)
    assert len(rows) == 5


def test_of_many_texts_whole_prompts_are_left_out_and_it_says_how_many():
    rows = texts(n=4000, length=400)
    data = text_columns(rows)
    assert data is not None
    assert data["n_prompts"] == 4000
    n_texts = len(data["id"])
    assert n_texts < 4000
    assert len(data["of"]) == 3 * n_texts  # all ways of each
    assert sum(map(len, data["text"]["words"])) < TEXT_BYTES
    behaviors = [data["behavior"]["words"][code] for code in data["behavior"]["codes"]]
    assert behaviors.count("tidy") == behaviors.count(HOSTILE)


def test_without_texts_and_methods_there_is_still_a_page():
    read = Reader(page_of([], []))
    assert "No strength was chosen" in read.text
    assert read.data["texts"] is None


def test_findings_and_methods_stand_in_the_page(page):
    read = Reader(page)
    assert "tidy: " in read.text
    assert read.tags.count("img") == 0
    assert read.tags.count("script") == 3
    assert page == page_of(
        [scores("tidy"), scores(HOSTILE), scores("tidy", "random", control=True)], texts()
    )


@pytest.mark.slow
def test_texts_are_browsed_in_a_browser(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with opened(path, tmp_path) as browser:
        browser.click("#texts-explorer tbody tr:nth-child(2)")
        shown = [row.text for row in browser.all("#detail tbody tr")]
        assert len(shown) == 3
        assert "CAA, fixed layer λ 0.5 1 CAA, fixed layer" in shown[1]
        browser.run("document.getElementById('texts-search').value = 'row-3'")
        browser.run("document.getElementById('texts-search').dispatchEvent(new Event('input'))")
        assert len(browser.all("#texts-explorer > div:first-child tbody tr")) == 1
        assert len(browser.all(".chart svg.marks")) == 8  # four for each behavior
        assert browser.run("return window.harmed") is None
        assert browser.requests() == []
        assert browser.complaints() == []
        browser.screenshot("texts-1280")
