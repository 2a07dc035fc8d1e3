"""Targets are read from the command line's words, score texts, and say what is wrong."""

import numpy as np
import pytest

from actcache.analysis.generation.targets import ReadBack, parse_target
from actcache.errors import ActcacheError


def test_each_kind_scores_a_text(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("tidy\nin order\n", encoding="utf-8")

    assert parse_target("read_back").score("x", read_back=0.5) == 0.5
    assert parse_target("read_back").score("", read_back=float("nan")) is None
    assert parse_target("read_back").score("") is None
    assert parse_target(r"form:\([AB]\)").score("so (A) it is") == 1
    assert parse_target(r"form:^\([AB]\)$").score("so (A) it is") == 0
    assert parse_target("form:a:b").score("a:b") == 1
    assert parse_target(f"words:{words}").score("all In  Order now") == 1
    assert parse_target(f"words:{words}").score("untidy") == 0
    assert parse_target("refusal").score("x", refusal=True) == 1
    assert parse_target("judge").score("x", verdict=7.0) == 7
    assert parse_target("judge").score("x") is None


@pytest.mark.parametrize(
    ("text", "score"), [("(A)", 1.0), (" (B)\n", 0.0), ("(A tidy.", None), ("", None)]
)
def test_an_answer_is_one_of_the_completions_or_none(text, score):
    assert parse_target("answer").score(text, completions=(" (A)", "(B)")) == score


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("form:(", "no regular expression .*Correct it"),
        ("form:", "Pass one of them"),
        ("form", "Pass one of them"),
        ("words:", "Pass one of them"),
        ("words:/no/such/file", "No such file.* expected a text file"),
        ("readback", "Pass one of them"),
        ("judge:7", "Pass one of them"),
        ("refusal:", "Pass one of them"),
        ("", "Pass one of them"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(text, remedy):
    with pytest.raises(ActcacheError, match=remedy) as raised:
        parse_target(text)
    assert "\n" not in str(raised.value)


def test_read_back_projects_the_mean_residual_and_keeps_what_is_missing():
    read_back = ReadBack(layer=1, direction=np.array([0.6, 0.8], np.float32))
    means = np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)
    projected = read_back.project(means)
    assert projected[0] == pytest.approx(2.2, rel=1e-6)
    assert np.isnan(projected[1])
