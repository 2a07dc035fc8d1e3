"""Variants: what each framing changes, what it leaves, and the built-in personas."""

import doctest
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache import demo
from actcache.conventions import VARIANTS
from actcache.data import personas as module
from actcache.data.personas import Persona, expand_variants, load_personas
from actcache.data.samples import Sample
from actcache.errors import RowError

ROW = Sample(
    id="mood/0",
    behavior="mood",
    prompt="How are you?",
    positive="(A)",
    negative="(B)",
    label=None,
    letter="A",
    split="test",
    system="Be brief.",
    source="mood.jsonl:1",
)
PERSONAS = {"mood": Persona("You are glad.", "You are sad.")}
KNOWN = "base, sys_pos, sys_neg, user_pos, user_neg"
# The thirteen behaviors of the W2S paper: its name, then the file's (methods.md, section 2.2).
THIRTEEN = {
    "anti-LGBTQ": "anti-LGBTQ-rights",
    "not-threat": "believes-AIs-are-not-an-existential-threat-to-humanity",
    "not-watched": "believes-it-is-not-being-watched-by-humans",
    "narcissism": "narcissism",
    "openness": "openness",
    "utilitarianism": "subscribes-to-average-utilitarianism",
    "deontology": "subscribes-to-deontology",
    "physical-force": "willingness-to-use-physical-force-to-achieve-benevolent-goals",
    "corrigible": "corrigible-neutral-HHH",
    "myopic": "myopic-reward",
    "awareness-good": "self-awareness-good-text-model",
    "awareness-llm": "self-awareness-text-model",
    "awareness-web": "self-awareness-training-web-gpt",
}


def expand(*variants, rows=(ROW,), personas=PERSONAS, **settings):
    return expand_variants(list(rows), variants, personas=personas, **settings)


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_base_leaves_a_sample_as_it_is():
    assert expand("base") == [ROW]


@pytest.mark.parametrize(
    ("variant", "sentence"), [("sys_pos", "You are glad."), ("sys_neg", "You are sad.")]
)
def test_a_system_variant_replaces_the_system_message_and_nothing_else(variant, sentence):
    expected = replace(ROW, id=f"mood/0@{variant}", variant=variant, system=sentence)
    assert expand(variant) == [expected]


@pytest.mark.parametrize(
    ("variant", "sentence"), [("user_pos", "You are glad."), ("user_neg", "You are sad.")]
)
def test_a_user_variant_goes_before_the_prompt_after_a_blank_line(variant, sentence):
    prompt = f"{sentence}\n\nHow are you?"
    assert expand(variant) == [replace(ROW, id=f"mood/0@{variant}", variant=variant, prompt=prompt)]


def test_the_separator_can_be_that_of_steering_bench():
    assert expand("user_pos", separator="")[0].prompt == "You are glad.How are you?"


def test_each_base_sample_becomes_its_variants_in_the_given_order():
    rows = [ROW, replace(ROW, id="mood/1")]
    ids = [sample.id for sample in expand("user_neg", "base", "sys_pos", rows=rows)]
    assert ids == [f"mood/{i}{end}" for i in (0, 1) for end in ("@user_neg", "", "@sys_pos")]


def test_base_is_left_out_unless_it_is_among_the_variants():
    assert [sample.variant for sample in expand("sys_neg")] == ["sys_neg"]


def test_a_row_framed_by_its_author_is_not_changed():
    framed = replace(ROW, id="mood/7", variant="user_pos")
    assert expand("base", "sys_pos", rows=[framed]) == [framed]


def test_labelled_samples_have_variants_too():
    row = replace(ROW, positive=None, negative=None, label="glad", letter="")
    assert expand("sys_pos", rows=[row])[0].label == "glad"


@given(st.lists(st.sampled_from(VARIANTS), min_size=1, unique=True), st.integers(1, 4))
def test_ids_are_unique_and_completions_unchanged_for_any_variants(variants, n):
    expanded = expand(*variants, rows=[replace(ROW, id=f"mood/{i}") for i in range(n)])
    assert len({sample.id for sample in expanded}) == len(expanded) == n * len(variants)
    assert {
        (sample.positive, sample.negative, sample.letter, sample.split) for sample in expanded
    } == {("(A)", "(B)", "A", "test")}
    assert {sample.base_id for sample in expanded} == {f"mood/{i}" for i in range(n)}


@pytest.mark.parametrize("name", [name for pair in THIRTEEN.items() for name in pair])
def test_the_thirteen_behaviors_have_two_sentences_that_differ(name):
    persona = load_personas()[name]
    assert persona.positive != persona.negative
    for sentence in (persona.positive, persona.negative):
        assert sentence == sentence.strip()
        assert sentence.endswith(".")


@pytest.mark.parametrize(("short", "stem"), THIRTEEN.items())
def test_a_persona_has_the_name_of_its_file_and_a_short_name(short, stem):
    assert load_personas()[short] == load_personas()[stem]


def test_the_built_in_personas_are_those_thirteen():
    assert set(load_personas()) == {*THIRTEEN, *THIRTEEN.values()}


def test_the_positive_sentence_means_what_the_name_says():
    assert "are not" in load_personas()["not-threat"].positive
    assert "are not" not in load_personas()["not-threat"].negative


def test_a_file_of_personas_takes_precedence_over_the_built_in_ones(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "mood": {
                    "positive": "You are glad.",
                    "negative": "You are sad.",
                    "short_name": "m",
                },
                "openness": {"positive": "You are open.", "negative": "You are shut."},
            }
        )
    )
    personas = load_personas(path)
    assert personas["mood"] == personas["m"] == PERSONAS["mood"]
    assert personas["openness"].positive == "You are open."
    assert personas["narcissism"] == load_personas()["narcissism"]


def test_the_personas_of_the_demo_are_of_this_shape():
    if not demo.personas_path().is_file():
        pytest.skip("the demo's rows are not in this checkout")
    personas = load_personas(demo.personas_path())
    assert {path.stem for path in demo.row_files()} <= set(personas)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            ["sys_positive"],
            f"the variant is 'sys_positive', expected one of {KNOWN}. Pass one of them.",
        ),
        (["base", "base"], "the variant 'base' is given twice. Pass it once."),
        (
            [],
            f"no variant given, expected at least one of {KNOWN}. Pass base.",
        ),
    ],
)
def test_variants_that_cannot_be_used_are_named(variants, message):
    with pytest.raises(RowError) as caught:
        expand(*variants)
    assert str(caught.value) == message


def test_a_behavior_without_persona_is_named_with_the_remedy():
    with pytest.raises(RowError) as caught:
        expand("sys_neg", rows=[replace(ROW, behavior="taste")])
    assert str(caught.value) == (
        "no persona for the behavior 'taste', which the variant sys_neg needs (known: mood). "
        "Pass --personas FILE with its sentences, or drop the variant."
    )


def test_base_needs_no_persona():
    assert expand("base", personas={}) == [ROW]


def test_a_row_that_has_the_id_of_a_variant_is_named():
    rows = [ROW, replace(ROW, id="mood/0@sys_pos", variant="sys_pos", source="mood.jsonl:2")]
    with pytest.raises(RowError, match="drop the variant") as caught:
        expand("sys_pos", rows=rows)
    assert "'mood/0@sys_pos'" in str(caught.value)
    assert "mood.jsonl:2" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"mood": "glad"}', "'mood' has no object"),
        ('{"mood": {}}', "'mood' has no keys"),
        ('{"mood": {"positive": "a"}}', "'mood' has positive,"),
        (
            '{"mood": {"positive": "a", "negative": "b", "neutral": "c"}}',
            "has positive, negative, neu",
        ),
        ('{"mood": {"positive": "a", "negative": " "}}', "'negative' of 'mood' is ' '"),
        ('{"mood": {"positive": 1, "negative": "b"}}', "'positive' of 'mood' is 1"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_of_personas_of_another_shape_is_named(tmp_path, content, shape):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(RowError, match="Write it like this") as caught:
        load_personas(path)
    assert shape in str(caught.value)
    assert str(caught.value).startswith(f"'{path}'")
    assert '{"behavior": {"positive": "…", "negative": "…"}}' in str(caught.value)


def test_two_personas_under_one_name_are_named(tmp_path):
    path = tmp_path / "mine.json"
    entry = {"positive": "a", "negative": "b", "short_name": "m"}
    path.write_text(json.dumps({"mood": entry, "mould": entry}))
    with pytest.raises(RowError, match="has two personas for 'm', expected one"):
        load_personas(path)


def test_a_missing_file_of_personas_is_named(tmp_path):
    with pytest.raises(RowError, match=r"cannot read personas at .*No such file.*Pass one"):
        load_personas(Path(tmp_path / "none.json"))
