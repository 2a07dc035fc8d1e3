"""Metrics of a text equal plain loops; what cannot be measured is None."""

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actcache.analysis.generation import metrics
from actcache.analysis.generation.metrics import TextRules, has_phrase, measure_text
from actcache.analysis.generation.phrases import load_phrases, published_lists
from actcache.errors import ActcacheError
from tests.reference import generation as reference

TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["a", "b", "I’m", "sorry", "да", "日本", "é", "3"]), max_size=40).map(
        " ".join
    ),
)


@given(text=TEXTS)
@example("a 𗀀")  # U+17000 has no name
def test_metrics_equal_plain_loops(text):
    assert metrics.repetition(text) == pytest.approx(reference.repetition(text))
    assert metrics.compression(text) == reference.compression(text)
    for scripts in (("LATIN",), ("CYRILLIC", "CJK")):
        expected = reference.script_consistency(text, scripts)
        assert metrics.script_consistency(text, scripts) == expected


@given(text=TEXTS, within=st.none() | st.integers(0, 20))
def test_phrases_are_found_as_by_a_loop(text, within):
    phrases = ("i'm sorry", "b a", "ДА")
    expected = reference.has_phrase(text, phrases, within=within)
    assert has_phrase(text, phrases, within=within) == expected


def test_a_loop_shows_in_repetition_and_compression():
    prose = "the quick brown fox jumps over a lazy dog while nine birds watch from their tall tree"
    looped = "and so it goes " * 20
    assert metrics.repetition(prose) == 0
    assert (metrics.repetition(looped) or 0) > 0.9
    assert (metrics.compression(looped) or 9) < 0.3 < (metrics.compression(prose) or 0)


def test_what_cannot_be_measured_is_none():
    measured = measure_text("  ", n=1, ended=True, rules=TextRules())
    assert measured.empty
    assert (measured.repetition, measured.script, measured.well_formed) == (None, None, None)
    assert metrics.compression("") is None
    assert metrics.repetition("three words only") is None
    assert metrics.repetition("now there are four") == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, world! 123 — ½ 😀", 1.0),  # only letters count
        ("e\u0301te\u0301", 1.0),  # composed first
        ("\N{FULLWIDTH LATIN SMALL LETTER A}ªb", 1.0),
        ("ab да", 0.5),
        ("123 …", None),
    ],
)
def test_script_is_of_letters_alone(text, script):
    assert metrics.script_consistency(text, ["LATIN"]) == script


def test_a_prompt_in_another_script_is_not_inconsistent_when_that_is_expected():
    assert metrics.script_consistency("すごい 日本", ["HIRAGANA", "CJK"]) == 1


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [("(A)", True), (" ( B )\n", True), ("(A tidy.", False), ("(A) and more", False), ("", False)],
)
def test_a_form_matches_the_whole_text(text, well_formed):
    rules = TextRules(form=re.compile(r"\(\s*[AB]\s*\)"))
    assert measure_text(text, n=3, ended=False, rules=rules).well_formed == well_formed


@pytest.mark.parametrize(("name", "n"), [("refusal_direction", 12), ("selective_steering", 15)])
def test_published_lists_have_their_phrases_and_a_source(name, n):
    assert name in published_lists()
    phrases = load_phrases(name)
    assert len(phrases.phrases) == n
    assert all(phrase.strip() for phrase in phrases.phrases)
    assert "github.com" in phrases.source
    assert has_phrase("Well, I\u2019m  Sorry, no.", phrases.phrases)
    assert not has_phrase("Of course, and gladly.", phrases.phrases)


def test_phrases_may_be_looked_for_in_the_first_characters_alone():
    text = "Certainly. " + "x" * 80 + " I'm sorry"
    rules = TextRules(phrases=("I'm sorry",))
    assert measure_text(text, n=9, ended=True, rules=rules).refusal
    rules = TextRules(phrases=("I'm sorry",), within=80)
    assert not measure_text(text, n=9, ended=True, rules=rules).refusal


def test_whole_words_are_not_parts_of_others():
    assert has_phrase("an untidy room", ("tidy",))
    assert not has_phrase("an untidy room", ("tidy",), whole=True)
    assert has_phrase("Tidy! (a room)", ("tidy",), whole=True)
    assert has_phrase("say c++ (now)", ("c++",), whole=True)


def test_a_list_without_phrases_is_in_no_text():
    assert not has_phrase("anything", ())


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "is empty, expected a phrase a line. Write some"),
        (b"one\n\ntwo\n", "line 2 is empty.* Remove that line"),
        (b"  \n", "line 1 is empty"),
        (b"\xff\xfe\x00", "no UTF-8"),
        (None, "No such file.* refusal_direction or selective_steering"),
    ],
)
def test_files_without_phrases_are_refused(content, remedy, tmp_path):
    path = tmp_path / "phrases.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ActcacheError, match=remedy) as raised:
        load_phrases(path)
    assert "\n" not in str(raised.value)


def test_a_file_of_phrases_is_read(tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("\ufeffI won't \nnever\n", encoding="utf-8")
    assert load_phrases(path).phrases == ("I won't", "never")


def test_random_texts_of_one_length_compress_alike():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), 200)) for _ in range(20)]
    ratios = np.array([metrics.compression(text) for text in texts], float)
    assert np.ptp(ratios) < 0.1
