"""Samples: letter, digest, and the row of a variant."""

import doctest
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.conventions import SPLITS, VARIANTS
from actcache.data import samples as module
from actcache.data.samples import Sample, letter_of, samples_digest
from tests.reference import data as reference
from tests.support.processes import run_code

ROOT = Path(__file__).parents[2]
PAIR = Sample(
    id="mood/0",
    behavior="mood",
    prompt="How are you?",
    positive=" (A)",
    negative=" (B)",
    label=None,
    letter="A",
)
CONTENT = ("behavior", "variant", "system", "prompt", "positive", "negative", "label")


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize(
    ("positive", "negative", "letter"),
    [
        ("(A)", "(B)", "A"),
        (" (B)", " (A)", "B"),
        (" Yes", " No", "Yes"),
        ("No.", "Yes!", "No"),
        ("Oui", "I do not", ""),
        ("I do", "No", ""),
        ("don't", "do", ""),
        (" ... ", "A", ""),
        ("é", "è", "é"),
        (None, None, ""),
        ("(A)", None, ""),
    ],
)
def test_letter_is_the_positive_word_where_both_answers_are_one_word(positive, negative, letter):
    assert letter_of(positive, negative) == letter


@given(st.text("aB_ ()'.\n9", max_size=6), st.text("aB_ ()'.\n9", max_size=6))
def test_letter_equals_its_definition(positive, negative):
    assert letter_of(positive, negative) == reference.letter(positive, negative)


def test_digest_is_the_same_in_another_process():
    code = (
        "from actcache.data.samples import Sample; print(Sample(id='x', behavior='mood', "
        "prompt='How are you?', positive=' (A)', negative=' (B)', label=None, letter='A').digest)"
    )
    assert run_code(code).stdout.strip() == PAIR.digest
    # sha256 of ["mood", "base", null, "How are you?", " (A)", " (B)", null]
    assert PAIR.digest == "1e4523b0f5ba4caf"


@pytest.mark.parametrize("key", CONTENT)
def test_digest_changes_with_each_text(key):
    changed: dict[str, Any] = {key: "other"}
    assert replace(PAIR, **changed).digest != PAIR.digest


@pytest.mark.parametrize("key", ["id", "split", "source", "letter"])
def test_digest_ignores_id_split_source_and_letter(key):
    changed: dict[str, Any] = {key: "other"}
    assert replace(PAIR, **changed).digest == PAIR.digest


def test_digest_differs_between_no_system_message_and_an_empty_one():
    assert replace(PAIR, system="").digest != PAIR.digest


def test_digest_differs_between_texts_that_concatenate_to_one():
    left = replace(PAIR, prompt="ab", positive="c")
    right = replace(PAIR, prompt="a", positive="bc")
    assert left.digest != right.digest


def test_digest_accepts_any_script():
    assert len(replace(PAIR, prompt="気分は？ 🙂").digest) == 16


def test_digest_of_all_samples_depends_on_order_id_split_and_content():
    other = replace(PAIR, id="mood/1")
    variants = [
        [PAIR, other],
        [other, PAIR],
        [PAIR],
        [replace(PAIR, split="test"), other],
        [replace(PAIR, prompt="?"), other],
        [replace(PAIR, id="x"), other],
    ]
    assert len({samples_digest(samples) for samples in variants}) == len(variants)


@pytest.mark.parametrize("variant", VARIANTS)
def test_base_id_is_the_id_of_the_row(variant):
    name = "mood/0" if variant == "base" else f"mood/0@{variant}"
    assert replace(PAIR, id=name, variant=variant).base_id == "mood/0"


def test_base_id_of_a_row_framed_by_its_author_is_its_own():
    assert replace(PAIR, id="mood/7", variant="sys_pos").base_id == "mood/7"
    assert replace(PAIR, id="mood/7@sys_pos").base_id == "mood/7@sys_pos"


def test_samples_are_equal_wherever_they_were_read():
    assert replace(PAIR, source="a.json:1") == replace(PAIR, source="b.json:2")
    assert replace(PAIR, split="test") != PAIR


def test_a_sample_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PAIR.prompt = "?"  # type: ignore[misc]


def test_splits_are_in_the_order_of_the_fractions():
    assert SPLITS == ("train", "validation", "test")


def test_rows_need_neither_torch_nor_transformers_nor_datasets():
    code = (
        "import sys, actcache.data.formats, actcache.data.personas, actcache.data.splits; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    assert run_code(code).stdout.strip() == "[]"
