"""Marked spans as rows write them: a text of the prompt, or its characters."""

import json

import pytest

from actcache.conventions import VARIANTS
from actcache.data.formats import read_samples
from actcache.data.personas import Persona, expand_variants
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


def test_a_text_marks_the_rows_own_system_message(tmp_path):
    row = read(tmp_path, "wasps", system="You fear wasps.")
    assert (row.span, row.span_part) == ((9, 14), "system")
    with pytest.raises(RowError, match="prompt and system message 2 times"):
        read(tmp_path, "spiders", system="You fear spiders.")


PERSONAS = {"fear": Persona("You fear wasps.", "You like wasps.")}


def test_a_text_marks_the_persona_that_a_variant_adds(tmp_path):
    row = read(tmp_path, "wasps")

    marked = expand_variants([row], VARIANTS, personas=PERSONAS)

    places = {s.variant: (s.span, s.span_part) for s in marked}
    system = ((9, 14), "system")
    user = ((9, 14), "prompt")
    assert places == {
        "base": ((0, 0), "prompt"),
        **dict.fromkeys(("sys_pos", "sys_neg"), system),
        **dict.fromkeys(("user_pos", "user_neg"), user),
    }
    assert len({s.digest for s in marked}) == 5


def test_a_variant_that_replaces_the_marked_system_message_marks_its_own_sentence(tmp_path):
    row = read(tmp_path, "wasps", system="They say wasps sting.")
    base, framed = expand_variants([row], ["base", "sys_pos"], personas=PERSONAS)
    assert (base.span, framed.span) == ((9, 14), (9, 14))
    row = read(tmp_path, "hornets", system="They say hornets sting.")
    _, framed = expand_variants([row], ["base", "sys_pos"], personas=PERSONAS)
    assert framed.span == (0, 0)


@pytest.mark.parametrize("variants", [["base"], ["base", "user_pos"]])
def test_a_text_that_is_nowhere_is_refused_with_its_row(tmp_path, variants):
    row = read(tmp_path, "hornets")
    with pytest.raises(RowError, match=r"fear.jsonl:1: 'span' is 'hornets', .* 0 times"):
        expand_variants([row], variants, personas=PERSONAS)


def test_overlapping_occurrences_count(tmp_path):
    with pytest.raises(RowError, match="2 times"):
        read(tmp_path, "aa", prompt="aaa")
