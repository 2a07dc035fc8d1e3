"""Reading rows: every format gives the same samples, and every bad row its one line."""

import csv
import doctest
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actcache.data import formats as module
from actcache.data.formats import read_samples
from actcache.errors import RowError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
BEHAVIORS = ("corrigible-neutral-HHH", "myopic-reward", "narcissism", "subscribes-to-deontology")

GOOD = {"prompt": "How are you?", "positive": " (A)", "negative": " (B)"}
MWE = {
    "question": "How are you?",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}
BENCH = {
    "positive": {"prompt": "How are you?", "response": " (A)"},
    "negative": {"prompt": "How are you?", "response": " (B)"},
    "meta": None,
    "steering_token_index": -2,
}
LABEL = {"prompt": "How are you?", "label": "glad"}
OTHER_LABEL = {"prompt": "And you?", "label": "sad"}
KNOWN = (
    "(pair: prompt, positive, negative; MWE: question, answer_matching_behavior, "
    "answer_not_matching_behavior; steering-bench: positive, negative; label: prompt, label)"
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(*rows):
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows(rows)
    return out.getvalue().encode()


def read(content, name="mood.jsonl", **arguments):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_samples([name], **arguments)


def message(*paths, **arguments):
    with pytest.raises(RowError) as caught:
        read_samples(paths, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


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


def test_completions_and_prompts_are_kept_as_given():
    (sample,) = read(lines({"prompt": " a\n", "positive": "\tYes ", "negative": "  No\n"}))
    assert (sample.prompt, sample.positive, sample.negative) == (" a\n", "\tYes ", "  No\n")
    assert sample.letter == "Yes"


def test_a_row_may_bring_id_behavior_split_system_and_variant():
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


def test_a_jsonl_file_is_read_only_as_far_as_the_limit():
    assert len(read(lines(GOOD) + b"\xff not a row\n", limit=1)) == 1
    with pytest.raises(RowError):
        read(lines(GOOD) + b"\xff not a row\n", limit=2)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_and_windows_line_ends_are_accepted(suffix):
    contents = {
        ".jsonl": lines(GOOD, GOOD),
        ".json": json.dumps([GOOD, GOOD], indent=1).encode(),
        ".csv": table(GOOD, GOOD.values(), GOOD.values()),
    }
    content = contents[suffix].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert len(read(b"\xef\xbb\xbf" + content, f"mood{suffix}")) == 2


def test_blank_lines_are_skipped_and_counted():
    samples = read(b"\n" + lines(GOOD) + b"  \n" + lines(GOOD) + b"\n")
    assert [(s.id, s.source) for s in samples] == [
        ("mood/0", "mood.jsonl:2"),
        ("mood/1", "mood.jsonl:4"),
    ]
    samples = read(table(GOOD, [], GOOD.values(), [], GOOD.values()), "mood.csv")
    assert [s.source for s in samples] == ["mood.csv:3", "mood.csv:5"]


def test_a_cell_of_several_lines_moves_the_lines_after_it():
    samples = read(table(GOOD, ["one\ntwo\n\nthree", "a", "b"], GOOD.values()), "mood.csv")
    assert [(s.prompt[:3], s.source) for s in samples] == [
        ("one", "mood.csv:2"),
        ("How", "mood.csv:6"),
    ]


def test_a_line_ends_at_a_line_feed_only():
    row = GOOD | {"prompt": "a\u2028b\x85c\x1cd"}
    content = json.dumps(row, ensure_ascii=False).encode() + b"\n" + lines(GOOD)
    assert [sample.prompt for sample in read(content)] == ["a\u2028b\x85c\x1cd", "How are you?"]


def test_the_ending_of_a_file_is_read_in_any_case():
    assert len(read(lines(GOOD), "mood.JSONL")) == 1


def test_numbers_serve_as_ids_and_labels():
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_comes_back_from_every_kind_of_file(texts):
    rows = [
        {"prompt": f"{prompt}?", "positive": f"{answer}+", "negative": f"{answer}-"}
        for prompt, answer in texts
    ]
    files = {
        "a.jsonl": lines(*rows),
        "b.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        "a.json": json.dumps(rows, ensure_ascii=False).encode(),
        "a.csv": table(rows[0], *(row.values() for row in rows)),
    }
    for name, content in files.items():
        found = [
            {"prompt": s.prompt, "positive": s.positive, "negative": s.negative}
            for s in read(content, name)
        ]
        assert found == rows


def bad(name, content, line):
    return name, content, line


# Each bad file, and the whole line that it gives: what was found, what was expected, the remedy.
BAD = {
    "unknown ending": bad(
        "mood.txt",
        lines(GOOD),
        "'mood.txt' ends in '.txt', expected .jsonl, .json or .csv. Convert the file, or rename "
        "it after what it holds.",
    ),
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
    "not JSON in a line": bad(
        "mood.jsonl",
        lines(GOOD, GOOD) + b'{"prompt": "a" "b"}\n',
        "'mood.jsonl' line 3, column 16: not JSON (Expecting ',' delimiter). Correct the line.",
    ),
    "not JSON": bad(
        "mood.json",
        b'[\n{"prompt": nul}]',
        "'mood.json' line 2, column 12: not JSON (Expecting value). Correct the line, or name a file "
        "with one object per line .jsonl.",
    ),
    "JSON lines called .json": bad(
        "mood.json",
        lines(GOOD, GOOD),
        "'mood.json' line 2, column 1: not JSON (Extra data). Correct the line, or name a file with one "
        "object per line .jsonl.",
    ),
    "cut off": bad(
        "mood.jsonl",
        lines(GOOD)[:-10],
        "'mood.jsonl' line 1, column 58: not JSON (Expecting ':' delimiter). Correct the line.",
    ),
    "key twice": bad(
        "mood.jsonl",
        b'{"id": "x", "prompt": "a", "prompt": "b"}',
        "'mood.jsonl' line 1: not usable JSON (the key 'prompt' appears twice). Correct it.",
    ),
    "a number of too many digits": bad(
        "mood.jsonl",
        b'{"id": ' + b"9" * 5000 + b"}",
        "'mood.jsonl' line 1: not usable JSON (Exceeds the limit (4300 digits) for integer string "
        "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit). "
        "Correct it.",
    ),
    "an object for a list": bad(
        "mood.json",
        json.dumps({"rows": [GOOD]}).encode(),
        "'mood.json' holds an object, expected a list of objects. Put the rows in [ ], or name a file "
        "with one object per line .jsonl.",
    ),
    "a text for a list": bad(
        "mood.json",
        b'"prompt"',
        "'mood.json' holds text, expected a list of objects. Put the rows in [ ], or name a file with "
        "one object per line .jsonl.",
    ),
    "a list for a row": bad(
        "mood.jsonl",
        lines(GOOD, ["a", "b"]),
        "'mood.jsonl' line 2 is a list, expected an object. Write one as {…}.",
    ),
    "a number for a row": bad(
        "mood.json",
        json.dumps([GOOD, 3.5]).encode(),
        "'mood.json' row 1 (from 0) is a number, expected an object. Write one as {…}.",
    ),
    "null for a row": bad(
        "mood.json",
        b"[null]",
        "'mood.json' row 0 (from 0) is null, expected an object. Write one as {…}.",
    ),
    "not UTF-8 in a line": bad(
        "mood.jsonl",
        lines(GOOD) + '{"prompt": "é"}'.encode("latin-1"),
        "'mood.jsonl' is not UTF-8 at byte 79 (0xe9). Save it as UTF-8.",
    ),
    "not UTF-8": bad(
        "mood.csv",
        b"\xef\xbb\xbf" + "prompt,label\ncaf\xe9,a\n".encode("latin-1"),
        "'mood.csv' is not UTF-8 at byte 19 (0xe9). Save it as UTF-8.",
    ),
    "UTF-16": bad(
        "mood.json",
        json.dumps([GOOD]).encode("utf-16"),
        "'mood.json' is not UTF-8 at byte 0 (0xff). Save it as UTF-8.",
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
        "Rename the keys.",
    ),
    "no key at all": bad(
        "mood.jsonl",
        b"{}",
        "'mood.jsonl' line 1: the keys are none, expected those of a format "
        + KNOWN
        + ". Rename the "
        "keys.",
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
    "one label": bad(
        "mood.jsonl",
        lines(LABEL, LABEL),
        "all 2 rows have the label 'glad', expected at least two labels. Add rows of another label.",
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
    "header with a name twice": bad(
        "mood.csv",
        table(["prompt", "label", "prompt"], ["a", "b", "c"]),
        "'mood.csv' line 1: the header has 'prompt' 2 times. Give each column its own name.",
    ),
    "header with no name": bad(
        "mood.csv",
        table(["prompt", "label", ""], ["a", "b", "c"]),
        "'mood.csv' line 1: the header has a column without a name. Give each column its own name.",
    ),
    "ragged row": bad(
        "mood.csv",
        b"prompt,label\na,b\nwell, then,b\n",
        "'mood.csv' line 3 has 3 cells, the header 2. Quote cells that hold a comma or a line break.",
    ),
    "open quote": bad(
        "mood.csv",
        b'prompt,label\na,b\n"a,b\n',
        "'mood.csv' line 3: not CSV (unexpected end of data). Quote the cell and double the quotes in "
        "it, or write .jsonl.",
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
def test_half_a_surrogate_pair_of_either_side_is_named(half):
    Path("mood.jsonl").write_text(f'{{"prompt": "{half}", "label": "b"}}')
    assert "half a surrogate pair" in message("mood.jsonl")


def test_a_surrogate_pair_is_one_character():
    first, _ = read(b'{"prompt": "\\ud83d\\ude42", "label": "a"}\n' + lines(LABEL))
    assert first.prompt == "🙂"


def test_spaces_around_the_names_in_a_header_are_dropped():
    assert len(read(b"prompt, label\na,b\nc,d\n", "mood.csv")) == 2


@pytest.mark.parametrize(("name", "content", "line"), BAD.values(), ids=BAD)
def test_a_bad_file_gives_its_one_line(name, content, line):
    Path(name).write_bytes(content)
    assert message(name) == line


def test_brackets_without_end_give_a_line_and_no_crash():
    Path("mood.json").write_bytes(b"[" * 200_000)
    assert re.fullmatch(
        r"'mood\.json': not usable JSON \(.*recursion.*\)\. Correct it\.", message("mood.json")
    )


READ = "Pass a .jsonl, .json or .csv file, a folder made by save_to_disk, or a Hub id."


@pytest.mark.parametrize(
    "path",
    ["none.jsonl", "data/none.json", "/none/such", "./none", "a/b/c", "none.parquet", "a b"],
)
def test_a_missing_file_is_named(path):
    assert message(path) == f"no file at '{path}'. {READ}"


def test_an_empty_path_is_named():
    assert message("") == f"the path of the data is empty. {READ}"


def test_a_folder_that_is_no_data_set_is_named():
    Path("folder").mkdir()
    assert message("folder") == (
        "'folder' is a folder, but not a data set (it has no state.json or dataset_dict.json). Pass the "
        "files in it, or a folder made by save_to_disk."
    )


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_is_named():
    Path("mood.jsonl").symlink_to("/proc/self/mem")  # exists, opens, and gives an error when read
    assert message("mood.jsonl") == (
        "cannot read 'mood.jsonl' (Input/output error). Check the file and its permissions."
    )


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_named(limit):
    assert message("mood.jsonl", limit=limit) == (
        f"--limit is {limit}, expected at least 1. Drop it to read all rows."
    )


def test_no_path_at_all_is_an_error():
    assert message() == (
        "no data given, expected at least one file. Pass a .jsonl, .json or .csv file."
    )


def test_one_label_because_of_the_limit_says_so():
    Path("mood.jsonl").write_bytes(lines(LABEL, LABEL, OTHER_LABEL))
    assert message("mood.jsonl", limit=2) == (
        "all 2 rows have the label 'glad', expected at least two labels. Raise --limit."
    )


def test_pairs_and_labels_in_two_files_are_named_with_both_places():
    Path("a.jsonl").write_bytes(lines(GOOD, GOOD))
    Path("b.json").write_text(json.dumps([LABEL, OTHER_LABEL]))
    assert message("a.jsonl", "b.json") == (
        "'b.json' row 0 (from 0) has a label, 'a.jsonl' line 1 has two completions; a store holds one "
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
    ("behavior", "n_mended"), [("corrigible-neutral-HHH", 13), ("myopic-reward", 1)]
)
def test_both_forms_of_a_risk_behavior_are_one_but_for_prompts_mended_later(behavior, n_mended):
    raw = read_samples([DATA / "mwe" / "raw" / f"{behavior}.jsonl"])
    bench = read_samples([DATA / "mwe" / "steering-bench" / f"{behavior}.json"])
    changed = [i for i in range(1000) if raw[i].digest != bench[i].digest]
    assert len(changed) == n_mended
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
