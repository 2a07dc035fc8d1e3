"""Files of rows to test readers with: one good row of each format, and files made from rows."""

import csv
import io
import json
from pathlib import Path

import pytest

from actcache.data.formats import read_samples
from actcache.errors import RowError

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


def bad(name, content, line):
    return name, content, line
