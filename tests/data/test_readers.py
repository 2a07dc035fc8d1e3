"""Decoding of files: line ends, blank lines, encodings, csv cells, and files that are damaged."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actcache.data.formats import read_samples
from actcache.data.sources import expand_globs, open_sources
from actcache.errors import RowError
from tests.support.rows import GOOD, bad, lines, message, read, table

READ = (
    "Pass a .jsonl, .json, .csv, .tsv or .parquet file, - for stdin, a folder made by save_to_disk, "
    "or a Hub id."
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def test_a_cell_of_several_lines_counts_as_several_lines():
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
def test_any_text_survives_every_kind_of_file(texts):
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
        pairs = [
            {"prompt": s.prompt, "positive": s.positive, "negative": s.negative}
            for s in read(content, name)
        ]
        assert pairs == rows


def test_spaces_around_the_names_in_a_header_are_dropped():
    assert len(read(b"prompt, label\na,b\nc,d\n", "mood.csv")) == 2


# Each bad file, and the whole line that it gives: what was found, what was expected, the remedy.
BAD = {
    "unknown ending": bad(
        "mood.txt",
        lines(GOOD),
        "'mood.txt' ends in '.txt', expected .jsonl, .json, .csv or .tsv (also as .gz), or "
        ".parquet. Convert the file, or rename it after what it holds.",
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
}


@pytest.mark.parametrize(("name", "content", "line"), BAD.values(), ids=BAD)
def test_a_damaged_file_gives_its_one_line(name, content, line):
    Path(name).write_bytes(content)
    assert message(name) == line


def test_endless_brackets_give_one_line_and_no_crash():
    Path("mood.json").write_bytes(b"[" * 200_000)
    assert re.fullmatch(
        r"'mood\.json': not usable JSON \(.*recursion.*\)\. Correct it\.", message("mood.json")
    )


@pytest.mark.parametrize(
    "path",
    ["none.jsonl", "data/none.json", "/none/such", "./none", "a/b/c", "none.parquet", "a b"],
)
def test_a_missing_file_is_named(path):
    assert message(path) == f"no file at '{path}'. {READ}"


def test_an_empty_path_is_named():
    assert message("") == f"the path of the data is empty. {READ}"


def test_a_folder_that_is_not_a_data_set_is_named():
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


def test_rows_are_read_lazily():
    Path("mood.jsonl").write_bytes(b'{"prompt": 1}\n' + b"not JSON\n")
    [source] = open_sources("mood.jsonl", split=None, note=print)
    rows = source.rows
    assert (source.behavior, next(rows).values) == ("mood", {"prompt": 1})
    with pytest.raises(RowError, match="line 2"):
        next(rows)


def test_a_glob_is_replaced_by_the_files_that_match_in_order(tmp_path):
    Path("deep/er").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "d.csv", "[x].jsonl"):
        Path(name).write_bytes(lines(GOOD))

    assert expand_globs(["d.csv", "*.jsonl"]) == [
        *("d.csv", Path("[x].jsonl"), Path("a.jsonl"), Path("b.jsonl"))
    ]
    assert expand_globs([f"{tmp_path}/**/c.*"]) == [tmp_path / "deep/er/c.jsonl"]
    assert expand_globs(["[x].jsonl", "org/name"]) == ["[x].jsonl", "org/name"]  # it exists
    assert [sample.behavior for sample in read_samples("?.jsonl")] == ["a", "b"]


def test_a_glob_that_matches_nothing_is_named():
    assert message("*.jsonl") == f"no file matches '*.jsonl'. {READ}"
