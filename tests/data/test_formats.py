"""Rows as samples: every format gives the same samples, and every bad row its one line."""

import doctest
import json
from collections import Counter
from pathlib import Path

import pytest

from actcache.data import formats as module
from actcache.data.formats import read_samples
from tests.support.rows import (
    BENCH,
    GOOD,
    LABEL,
    MWE,
    OTHER_LABEL,
    bad,
    lines,
    message,
    read,
    table,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
BEHAVIORS = ("corrigible-neutral-HHH", "myopic-reward", "narcissism", "subscribes-to-deontology")

KNOWN = (
    "(pair: prompt, positive, negative; MWE: question, answer_matching_behavior, "
    "answer_not_matching_behavior; steering-bench: positive, negative; label: prompt, label; "
    "prompt: prompt; 'messages' may stand for 'prompt')"
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


FORMS: dict[str, dict[str, object]] = {
    "pair": {**GOOD},
    "mwe": {**MWE},
    "steering-bench": {**BENCH},
}
CONTENTS = [
    pytest.param(suffix, content, id=f"{name}{suffix}")
    for name, row in FORMS.items()
    for suffix, content in {
        ".jsonl": lines(row),
        ".json": json.dumps([row]),
        ".csv": table(row, row.values()),
    }.items()
    if (name, suffix) != ("steering-bench", ".csv")  # cells hold no objects
]


@pytest.mark.parametrize(("suffix", "content"), CONTENTS)
def test_every_format_of_pairs_gives_the_same_sample(suffix, content):
    (sample,) = read(content, f"mood{suffix}")
    assert (sample.id, sample.behavior, sample.variant) == ("mood/0", "mood", "base")
    assert (sample.prompt, sample.positive, sample.negative) == ("How are you?", " (A)", " (B)")
    assert (sample.label, sample.letter, sample.split, sample.system) == (None, "A", "", None)
    assert sample.source == f"mood{suffix}:" + {".jsonl": "1", ".json": "0", ".csv": "2"}[suffix]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_labelled_rows_are_read_from_every_kind_of_file(suffix):
    rows = [LABEL, OTHER_LABEL]
    contents = {
        ".jsonl": lines(*rows),
        ".json": json.dumps(rows),
        ".csv": table(LABEL, *(row.values() for row in rows)),
    }
    samples = read(contents[suffix], f"mood{suffix}")
    assert [(s.prompt, s.label) for s in samples] == [("How are you?", "glad"), ("And you?", "sad")]
    assert {(s.positive, s.negative, s.letter) for s in samples} == {(None, None, "")}


def test_completions_and_prompts_are_not_changed():
    (sample,) = read(lines({"prompt": " a\n", "positive": "\tYes ", "negative": "  No\n"}))
    assert (sample.prompt, sample.positive, sample.negative) == (" a\n", "\tYes ", "  No\n")
    assert sample.letter == "Yes"


def test_a_row_may_have_id_behavior_split_system_and_variant():
    extra = {
        "id": "x1",
        "behavior": "taste",
        "split": "test",
        "system": "Be brief.",
        "variant": "user_pos",
    }
    (sample,) = read(lines(GOOD | extra))
    assert {key: getattr(sample, key) for key in extra} == extra


def test_a_file_may_hold_several_behaviors_and_ids_count_its_rows():
    samples = read(lines(GOOD | {"behavior": "a"}, GOOD | {"behavior": "b"}, GOOD))
    assert [sample.id for sample in samples] == ["a/0", "b/1", "mood/2"]


def test_several_files_are_read_in_order():
    for name in ("b", "a"):
        Path(f"{name}.jsonl").write_bytes(lines(GOOD, GOOD))
    samples = read_samples(["b.jsonl", Path("a.jsonl")])
    assert [sample.id for sample in samples] == ["b/0", "b/1", "a/0", "a/1"]


def test_one_path_need_not_be_in_a_list():
    Path("mood.jsonl").write_bytes(lines(GOOD))
    assert len(read_samples("mood.jsonl")) == 1


def test_limit_takes_the_first_rows_of_each_file():
    for name in ("a", "b"):
        Path(f"{name}.jsonl").write_bytes(lines(GOOD, GOOD, GOOD))
    samples = read_samples(["a.jsonl", "b.jsonl"], limit=2)
    assert [sample.id for sample in samples] == ["a/0", "a/1", "b/0", "b/1"]


def test_ids_and_labels_may_be_numbers():
    first, second = read(lines(LABEL | {"id": 7, "label": 0}, LABEL | {"id": 8, "label": 1}))
    assert (first.id, first.label, second.id, second.label) == ("7", "0", "8", "1")


def test_labels_are_stripped_so_that_one_class_is_not_two():
    samples = read(lines(LABEL | {"label": " glad"}, LABEL | {"label": "glad "}, OTHER_LABEL))
    assert {sample.label for sample in samples} == {"glad", "sad"}


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_csv_cell_and_null_count_as_missing(value):
    row = GOOD | {"system": value, "id": value, "split": value, "label": value}
    assert read(table(row, row.values()), "mood.csv")[0].system is None
    if value is None:
        assert read(lines(row))[0].id == "mood/0"


# Each bad file, and the whole line that it gives: what was found, what was expected, the remedy.
BAD = {
    "empty file": bad(
        "mood.jsonl",
        b"",
        "'mood.jsonl' is empty, expected at least one row. Add rows, or drop it.",
    ),
    "blank file": bad(
        "mood.json",
        b" \n\n",
        "'mood.json' is empty, expected at least one row. Add rows, or drop it.",
    ),
    "empty list": bad(
        "mood.json",
        b"[]",
        "'mood.json' is empty, expected at least one row. Add rows, or drop it.",
    ),
    "header only": bad(
        "mood.csv",
        table(GOOD),
        "'mood.csv' is empty, expected at least one row. Add rows, or drop it.",
    ),
    "missing key": bad(
        "mood.jsonl",
        lines(GOOD, {"prompt": "a", "positive": "b"}),
        "'mood.jsonl' line 2: 'negative' is missing, expected text. Add it, or drop the row.",
    ),
    "missing in a csv": bad(
        "mood.csv",
        table(GOOD, ["a", "", "c"]),
        "'mood.csv' line 2: 'positive' is missing, expected text. Add it, or drop the row.",
    ),
    "missing in an object": bad(
        "mood.json",
        json.dumps([BENCH | {"negative": {"prompt": "How are you?"}}]).encode(),
        "'mood.json' row 0 (from 0): 'negative.response' is missing, expected text. Add it, or drop "
        "the row.",
    ),
    "null for a key": bad(
        "mood.jsonl",
        lines(MWE | {"question": None}),
        "'mood.jsonl' line 1: 'question' is missing, expected text. Add it, or drop the row.",
    ),
    "unknown format": bad(
        "mood.jsonl",
        lines({"text": "a", "target": 1}),
        "'mood.jsonl' line 1: the keys are text, target, expected those of a format " + KNOWN + ". "
        "Rename the keys, or pass --map NAME=KEY.",
    ),
    "no key at all": bad(
        "mood.jsonl",
        b"{}",
        "'mood.jsonl' line 1: the keys are none, expected those of a format "
        + KNOWN
        + ". Rename the "
        "keys, or pass --map NAME=KEY.",
    ),
    "mixed formats": bad(
        "mood.jsonl",
        lines(GOOD, GOOD, MWE),
        "'mood.jsonl' line 3: has the format MWE, but 'mood.jsonl' line 1 has pair; a file has one "
        "format. Split it into two files.",
    ),
    "pairs and labels in a file": bad(
        "mood.jsonl",
        lines(LABEL, GOOD),
        "'mood.jsonl' line 2: has the format pair, but 'mood.jsonl' line 1 has label; a file has one "
        "format. Split it into two files.",
    ),
    "pair and label in a row": bad(
        "mood.jsonl",
        lines(GOOD | {"label": "glad"}),
        "'mood.jsonl' line 1: has a 'label' as well as two completions, expected one or the other. Drop "
        "'label', or 'positive' and 'negative'.",
    ),
    "number for text": bad(
        "mood.jsonl",
        lines(GOOD | {"positive": 1}),
        "'mood.jsonl' line 1: 'positive' is a number, expected text. Write it as text.",
    ),
    "messages for a prompt": bad(
        "mood.jsonl",
        lines(GOOD | {"prompt": [{"role": "user", "content": "a"}]}),
        "'mood.jsonl' line 1: 'prompt' is a list, expected text. Write it as text.",
    ),
    "truth for a label": bad(
        "mood.jsonl",
        lines(LABEL | {"label": True}),
        "'mood.jsonl' line 1: 'label' is true or false, expected text. Write it as text.",
    ),
    "fraction for an id": bad(
        "mood.jsonl",
        lines(GOOD | {"id": 0.5}),
        "'mood.jsonl' line 1: 'id' is a number, expected text. Write it as text.",
    ),
    "object for a system message": bad(
        "mood.jsonl",
        lines(GOOD | {"system": {"content": "a"}}),
        "'mood.jsonl' line 1: 'system' is an object, expected text. Write it as text.",
    ),
    "text for an object": bad(
        "mood.jsonl",
        lines({"positive": "a", "negative": "b"}),
        "'mood.jsonl' line 1: 'positive' is text, expected an object with 'prompt' and 'response'. "
        "Write one, or add a 'prompt' to the row.",
    ),
    "empty prompt": bad(
        "mood.jsonl",
        lines(GOOD | {"prompt": ""}),
        "'mood.jsonl' line 1: 'prompt' is empty, expected text. Write some, or drop the row.",
    ),
    "blank prompt": bad(
        "mood.jsonl",
        lines(GOOD | {"prompt": " \n\t"}),
        "'mood.jsonl' line 1: 'prompt' is only white space, expected text. Write some, or drop the "
        "row.",
    ),
    "blank prompt in a csv": bad(
        "mood.csv",
        table(GOOD, GOOD.values(), [" ", "a", "b"]),
        "'mood.csv' line 3: 'prompt' is only white space, expected text. Write some, or drop the row.",
    ),
    "empty completion": bad(
        "mood.jsonl",
        lines(MWE | {"answer_matching_behavior": ""}),
        "'mood.jsonl' line 1: 'answer_matching_behavior' is empty, expected text. Write some, or drop "
        "the row.",
    ),
    "blank completion in an object": bad(
        "mood.json",
        json.dumps([BENCH | {"positive": {"prompt": "How are you?", "response": "  "}}]).encode(),
        "'mood.json' row 0 (from 0): 'positive.response' is only white space, expected text. Write "
        "some, or drop the row.",
    ),
    "empty system message": bad(
        "mood.jsonl",
        lines(GOOD | {"system": ""}),
        "'mood.jsonl' line 1: 'system' is empty, expected text. Write some, or drop the key.",
    ),
    "empty label": bad(
        "mood.jsonl",
        lines(LABEL, LABEL | {"label": ""}),
        "'mood.jsonl' line 2: 'label' is empty, expected text. Write some, or drop the row.",
    ),
    "equal completions": bad(
        "mood.jsonl",
        lines(GOOD | {"negative": " (A)"}),
        "'mood.jsonl' line 1: both completions are '(A)', expected two that differ. Change one, or "
        "drop the row.",
    ),
    "equal but for white space": bad(
        "mood.jsonl",
        lines(GOOD | {"negative": "(A)\n"}),
        "'mood.jsonl' line 1: both completions are '(A)', expected two that differ. Change one, or "
        "drop the row.",
    ),
    "two prompts in steering-bench": bad(
        "mood.json",
        json.dumps(
            [BENCH | {"negative": {"prompt": "Who are you? " * 9, "response": "b"}}]
        ).encode(),
        "'mood.json' row 0 (from 0): 'positive.prompt' is 'How are you?', 'negative.prompt' 'Who are "
        "you? Who are you? Who are you? Who are you? Who a…', expected one prompt for both. Make them "
        "equal.",
    ),
    "unknown split": bad(
        "mood.jsonl",
        lines(GOOD | {"split": "val"}),
        "'mood.jsonl' line 1: 'split' is 'val', expected one of train, validation, test. Write one of "
        "them, or drop the key.",
    ),
    "unknown variant": bad(
        "mood.jsonl",
        lines(GOOD | {"variant": "system"}),
        "'mood.jsonl' line 1: 'variant' is 'system', expected one of base, sys_pos, sys_neg, "
        "user_pos, user_neg. Write one of them, or drop the key.",
    ),
    "duplicate id": bad(
        "mood.jsonl",
        lines(GOOD | {"id": "a"}, GOOD, GOOD | {"id": "a"}),
        "'mood.jsonl' line 3: the id 'a' is already used by 'mood.jsonl' line 1, expected a unique one. Change "
        '"id", or pass each file once, under its own name.',
    ),
    "a behavior that is a path": bad(
        "mood.jsonl",
        lines(GOOD | {"behavior": "../mood"}),
        "'mood.jsonl' line 1: 'behavior' is '../mood', expected a name without / and \\ (files and "
        "arrays are named after it). Rename it.",
    ),
    "a label that is a path": bad(
        "mood.jsonl",
        lines(LABEL | {"label": ".."}),
        "'mood.jsonl' line 1: 'label' is '..', expected a name without / and \\ (files and arrays are "
        "named after it). Rename it.",
    ),
    "NUL": bad(
        "mood.jsonl",
        lines(GOOD | {"positive": " (\0A)"}),
        "'mood.jsonl' line 1: 'positive' has a NUL at character 2, expected text. Remove it.",
    ),
    "NUL in a csv": bad(
        "mood.csv",
        b"prompt,label\na\0b,c\n",
        "'mood.csv' line 2: 'prompt' has a NUL at character 1, expected text. Remove it.",
    ),
    "half a surrogate pair": bad(
        "mood.jsonl",
        b'{"prompt": "a \\ud800", "label": "b"}',
        "'mood.jsonl' line 1: 'prompt' has half a surrogate pair, which UTF-8 cannot hold. Remove it.",
    ),
}


@pytest.mark.parametrize("half", ["\\ud800", "\\udbff", "\\udc00", "\\udfff"])
def test_either_half_of_a_surrogate_pair_is_named(half):
    Path("mood.jsonl").write_text(f'{{"prompt": "{half}", "label": "b"}}')
    assert "half a surrogate pair" in message("mood.jsonl")


def test_a_surrogate_pair_is_one_character():
    first, _ = read(b'{"prompt": "\\ud83d\\ude42", "label": "a"}\n' + lines(LABEL))
    assert first.prompt == "🙂"


@pytest.mark.parametrize(("name", "content", "line"), BAD.values(), ids=BAD)
def test_a_bad_row_gives_its_one_line(name, content, line):
    Path(name).write_bytes(content)
    assert message(name) == line


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_named(limit):
    assert message("mood.jsonl", limit=limit) == (
        f"--limit is {limit}, expected at least 1. Drop it to read all rows."
    )


def test_no_path_at_all_is_an_error():
    assert message() == (
        "no data given, expected at least one file. Pass a .jsonl, .json, .csv, .tsv or .parquet "
        "file, - for stdin, a folder made by save_to_disk, or a Hub id."
    )


def test_pairs_and_labels_in_two_files_are_named_with_both_places():
    Path("a.jsonl").write_bytes(lines(GOOD, GOOD))
    Path("b.json").write_text(json.dumps([LABEL, OTHER_LABEL]))
    assert message("a.jsonl", "b.json") == (
        "'a.jsonl' line 1 has two completions, 'b.json' row 0 (from 0) has a label; a store holds one "
        "kind. Build two stores."
    )


def test_one_name_for_two_files_is_named_with_both_places():
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "mood.jsonl").write_bytes(lines(GOOD))
    assert message("one/mood.jsonl", "two/mood.jsonl") == (
        "'two/mood.jsonl' line 1: the id 'mood/0' is already used by 'one/mood.jsonl' line 1, expected a "
        'unique one. Change "id", or pass each file once, under its own name.'
    )


def test_a_file_given_twice_is_named():
    Path("mood.jsonl").write_bytes(lines(GOOD))
    assert "the id 'mood/0' is already used by" in message("mood.jsonl", "mood.jsonl")


def test_an_empty_file_among_others_is_named():
    Path("a.jsonl").write_bytes(lines(GOOD))
    Path("b.jsonl").write_bytes(b"")
    assert message("a.jsonl", "b.jsonl").startswith("'b.jsonl' is empty")


@needs_data
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_published_behaviors_are_read_in_both_forms(behavior):
    raw = read_samples([DATA / "mwe" / "raw" / f"{behavior}.jsonl"])
    bench = read_samples([DATA / "mwe" / "steering-bench" / f"{behavior}.json"])
    assert len(raw) == len(bench) == 1000
    assert Counter(sample.letter for sample in bench) == {"A": 500, "B": 500}
    assert set(Counter(sample.letter for sample in raw).values()) == {500}
    assert {sample.behavior for sample in raw + bench} == {behavior}
    assert [sample.id for sample in raw] == [f"{behavior}/{i}" for i in range(1000)]
    assert [sample.source for sample in bench][-1] == f"{behavior}.json:999"


@needs_data
@pytest.mark.parametrize(
    ("behavior", "n_corrected"), [("corrigible-neutral-HHH", 13), ("myopic-reward", 1)]
)
def test_both_forms_of_a_risk_behavior_agree_except_for_prompts_corrected_later(
    behavior, n_corrected
):
    raw = read_samples([DATA / "mwe" / "raw" / f"{behavior}.jsonl"])
    bench = read_samples([DATA / "mwe" / "steering-bench" / f"{behavior}.json"])
    changed = [i for i in range(1000) if raw[i].digest != bench[i].digest]
    assert len(changed) == n_corrected
    assert all(raw[i].positive == bench[i].positive for i in changed)
    assert {sample.positive for sample in raw} == {" (A)", " (B)"}


@needs_data
def test_the_contrast_set_has_two_labels():
    samples = read_samples([DATA / "contrast" / "harmful-harmless.jsonl"])
    assert Counter(sample.label for sample in samples) == {"harmful": 299, "harmless": 300}


@needs_data
def test_all_published_behaviors_are_read_at_once():
    samples = read_samples(sorted((DATA / "mwe" / "steering-bench").glob("*.json")))
    assert Counter(sample.behavior for sample in samples) == dict.fromkeys(BEHAVIORS, 1000)
