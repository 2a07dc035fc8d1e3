"""Marked spans as rows write them: a text of the prompt, or its characters."""

import json

import pytest

from actcache.data.formats import read_samples
from actcache.errors import RowError

PROMPT = "Fear spiders. Say so."
ROW = {"prompt": PROMPT, "positive": " (A)", "negative": " (B)"}


def read(tmp_path, span, *, suffix=".jsonl", **row):
    path = tmp_path / f"fear{suffix}"
    if suffix == ".csv":
        path.write_text(f'prompt,positive,negative,span\n"{PROMPT}",(A),(B),{span}\n')
    else:
        path.write_text(json.dumps({**ROW, **row, "span": span}))
    return read_samples([path])[0]


@pytest.mark.parametrize("span", ["spiders", [5, 12]])
def test_a_row_marks_by_text_or_by_characters(tmp_path, span):
    assert read(tmp_path, span).span == (5, 12)


def test_a_cell_of_a_table_marks_by_text(tmp_path):
    assert read(tmp_path, "spiders", suffix=".csv").span == (5, 12)


def test_an_empty_span_marks_nothing_and_a_missing_one_is_none(tmp_path):
    assert read(tmp_path, [0, 0]).span == (0, 0)
    assert read(tmp_path, None).span is None


def test_other_formats_mark_the_prompt_too(tmp_path):
    path = tmp_path / "mwe.jsonl"
    row = {"question": PROMPT, "answer_matching_behavior": "(A)", "span": "Say"}
    path.write_text(json.dumps({**row, "answer_not_matching_behavior": "(B)"}))
    assert read_samples([path])[0].span == (14, 17)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("wasps", "0 times, expected once"),
        ("s", "3 times, expected once"),
        ("", "0 times"),
        ([5], r"\[5\], expected a text"),
        ([5, 5.5], "expected a text"),
        ([True, 5], "expected a text"),
        (7, "a number, expected a text"),
        ([5, 22], r"\[5, 22\], but the prompt has 21 characters"),
        ([5, 4], "Count from 0"),
        ([-1, 4], "Count from 0"),
    ],
)
def test_a_span_that_is_not_in_the_prompt_is_refused_with_its_place(tmp_path, span, message):
    with pytest.raises(RowError, match=rf"fear.jsonl' line 1: 'span' is .*{message}"):
        read(tmp_path, span)


def test_overlapping_occurrences_count(tmp_path):
    with pytest.raises(RowError, match="2 times"):
        read(tmp_path, "aa", prompt="aaa")
