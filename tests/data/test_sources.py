"""What rows are read from: in memory, under a name, from stdin, zipped, with other keys."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from actcache.data import read_samples
from actcache.data.readers import MAX_LINE
from actcache.errors import RowError
from tests.support.rows import GOOD, LABEL, OTHER_LABEL, lines, message

pd = pytest.importorskip("pandas", reason="the package pandas is not installed")
datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def notes():
    return []


def type_in(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def refused(data, **arguments):
    with pytest.raises(RowError) as caught:
        read_samples(data, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_prompts_alone_are_samples_without_label_or_completions():
    [sample] = read_samples({"greetings": ["Hello."]})

    assert (sample.id, sample.prompt, sample.kind) == ("greetings/0", "Hello.", "prompt")
    assert (sample.positive, sample.label, sample.letter) == (None, None, "")


def test_one_label_is_enough():
    assert [s.label for s in read_samples({"mood": [LABEL, LABEL | {"prompt": "b"}]})] == [
        "glad",
        "glad",
    ]


def test_rows_in_memory_have_the_name_of_their_key_or_rows():
    assert [s.id for s in read_samples([GOOD])] == ["rows/0"]
    assert [s.id for s in read_samples({"a": [GOOD], "b": [GOOD, GOOD]})] == ["a/0", "b/0", "b/1"]
    Path("calm.jsonl").write_bytes(lines(GOOD))
    assert [s.id for s in read_samples({"mood": "calm.jsonl"})] == ["mood/0"]
    assert [s.id for s in read_samples(["calm.jsonl", pd.DataFrame([GOOD])])] == [
        "calm/0",
        "rows/0",
    ]


def test_what_a_table_lacks_is_missing():
    frame = pd.DataFrame([LABEL | {"id": "a", "n": 1}, OTHER_LABEL | {"n": 2}])
    first, second = read_samples(frame)

    assert (first.id, second.id) == ("a", "rows/1")
    assert [first.extra, second.extra] == [{"n": 1}, {"n": 2}]
    assert type(second.extra["n"]) is int


def test_a_dataset_dict_gives_train_and_says_what_is_ignored(notes):
    data = datasets.Dataset.from_list([GOOD])
    parts = datasets.DatasetDict(train=data, test=data, dev=data)

    assert len(read_samples({"mood": parts}, note=notes.append)) == 1
    assert notes == [
        "'mood': the split 'train' is read, test, dev are ignored; --split reads another"
    ]
    notes.clear()
    parts.save_to_disk("mood")
    read_samples("mood", split="dev", note=notes.append)
    read_samples("mood:dev", note=notes.append)
    assert notes == []
    read_samples(["mood"], note=notes.append)
    assert len(notes) == 1
    assert refused({"mood": parts}, split="trian").startswith(
        "'mood' has no split 'trian', only train, test, dev."
    )


def test_a_split_of_files_is_ignored_and_said(notes):
    Path("mood.jsonl").write_bytes(lines(GOOD))
    read_samples("mood.jsonl", split="test", note=notes.append)
    assert notes == ["--split test is ignored: no data has splits to choose from"]


@pytest.mark.parametrize("content", [lines(GOOD, GOOD), json.dumps([GOOD, GOOD]).encode()])
def test_stdin_is_json_by_lines_or_a_list(monkeypatch, content):
    type_in(monkeypatch, b"\xef\xbb\xbf\n" + content if content[:1] == b"[" else content)

    assert [s.id for s in read_samples("-")] == ["stdin/0", "stdin/1"]
    assert not sys.stdin.buffer.closed


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "stdin is empty, expected at least one row. Add rows, or drop it."),
        (b"PAR1", "'stdin' line 1, column 1: not JSON (Expecting value). Correct the line."),
        (b"\xff", "'stdin' is not UTF-8 at byte 0 (0xff). Save it as UTF-8."),
    ],
)
def test_bad_input_on_stdin_gives_its_one_line(monkeypatch, content, line):
    type_in(monkeypatch, content)
    assert message("-") == line


def test_a_zipped_file_is_named_without_its_endings():
    Path("mood.jsonl.gz").write_bytes(gzip.compress(lines(GOOD)))
    [sample] = read_samples("mood.jsonl.gz")
    assert (sample.id, sample.source) == ("mood/0", "mood.jsonl.gz:1")


def test_damaged_zipped_files_give_their_one_line():
    whole = gzip.compress(lines(GOOD) * 50)
    for content in (whole[: len(whole) // 2], lines(GOOD), whole[:20] + b"\0\0\0" + whole[23:]):
        Path("mood.jsonl.gz").write_bytes(content)
        assert "'mood.jsonl.gz' is not a whole gzip file" in message("mood.jsonl.gz")


@pytest.mark.parametrize("name", ["mood.jsonl.gz", "mood.json.gz", "mood.csv.gz"])
def test_a_file_that_was_made_to_fill_the_memory_is_refused(name, monkeypatch):
    monkeypatch.setattr("actcache.data.readers.MAX_LINE", 1 << 16)
    Path(name).write_bytes(gzip.compress(b" \n" * (4 << 20)))
    assert "more than 200 times as large" in message(name)


def test_a_line_too_long_for_a_row_is_refused(monkeypatch):
    assert MAX_LINE > 1 << 20
    monkeypatch.setattr("actcache.data.readers.MAX_LINE", 1000)
    Path("mood.jsonl").write_bytes(b" " * 1001)
    assert message("mood.jsonl").startswith("'mood.jsonl' line 1 is longer than")


def test_keys_are_renamed_by_the_map(notes):
    row = {"q": "Well?", "chosen": " (A)", "rejected": " (B)", "prompt": "old"}
    names = {"prompt": "q", "positive": "chosen", "negative": "rejected", "before": "prompt"}
    [sample] = read_samples([row], map=names, note=notes.append)

    assert (sample.prompt, sample.positive, sample.negative) == ("Well?", " (A)", " (B)")
    assert sample.extra == {"before": "old"}
    assert notes == []


def test_a_map_of_a_key_that_is_not_there_is_refused_with_the_nearest():
    assert refused([{"question": "a", "n": 1}], map={"prompt": "qestion"}) == (
        "'rows' row 0 (from 0): --map prompt=qestion names 'qestion', but the keys are question, n. "
        "Did you mean 'question'? Name one of them."
    )
    text = refused([{"question": "a", "prompt": "b"}], map={"prompt": "question"})
    assert "would replace the row's own 'prompt'" in text
    assert "--map prompt=question,other_prompt=prompt" in text


def test_half_a_pair_is_no_plain_prompt():
    text = refused([{"prompt": "a", "positive": " (A)", "negativ": " (B)"}])
    assert "Did you mean 'negative'? Rename the keys, or pass --map NAME=KEY." in text


def test_keys_that_look_like_a_mistake_are_said(notes):
    rows = [{"prompt": "a", "sytem": "b", "topic": "c", "prompt_id": "d"}]
    [sample] = read_samples(rows, note=notes.append)

    assert sample.extra == {"sytem": "b", "topic": "c", "prompt_id": "d"}
    assert notes == [
        "'rows': the key 'sytem' is kept as a column. If 'system' was meant: --map system=sytem"
    ]


def test_parquet_is_read_with_the_names_of_its_classes():
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["glad", "sad"])}
    )
    data = {"prompt": ["a", "b"], "label": [1, 0]}
    datasets.Dataset.from_dict(data, features=features).to_parquet("mood.parquet")

    samples = read_samples("mood.parquet")
    assert [(s.id, s.label) for s in samples] == [("mood/0", "sad"), ("mood/1", "glad")]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bits"])
def test_damaged_parquet_gives_its_one_line(damage):
    pd.DataFrame([LABEL, OTHER_LABEL] * 500).to_parquet("mood.parquet")
    path = Path("mood.parquet")
    whole = path.read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": lines(GOOD),
        "bits": whole[:30] + bytes(byte ^ 0xFF for byte in whole[30:60]) + whole[60:],
    }
    path.write_bytes(content[damage])
    assert message("mood.parquet").startswith("'mood.parquet' cannot be read as parquet (")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (7, "the data is of the type int"),
        (b"rows", "the data is of the type bytes"),
        ([7], "the data is of the type int"),
        ([["a", "b"]], "the data is of the type list"),
        ({"mood": {"prompt": "a"}}, "the data under 'mood' is of the type dict"),
        ({"mood": 7}, "the data is of the type int"),
        ([GOOD, 7], "'rows' row 1 (from 0) is of the type int"),
        ([], "no data given"),
        ({}, "no data given"),
        ({"mood": pd.DataFrame()}, "'mood' is empty"),
        (pd.DataFrame([[1, 2]], columns=["prompt", "prompt"]), "the column 'prompt' 2 times"),
        ({"mood": [" "]}, "'prompt' is only white space"),
        ({"mood": ["a", GOOD]}, "a file has one format"),
        ([GOOD, {"prompt": "a"}], "'positive' is missing"),
    ],
)
def test_data_that_cannot_be_read_gives_its_one_line(data, named):
    assert named in refused(data)
