"""SECURITY.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text("utf-8"))


@pytest.mark.parametrize(("file", "function"), NAMED, ids=lambda part: part.split("/")[-1])
def test_each_test_that_holds_a_promise_exists(file, function):
    text = (ROOT / file).read_text(encoding="utf-8")

    assert f"def {function or 'test_'}" in text


def test_each_promise_names_a_test():
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    promises = [line for line in lines if line.startswith("| ") and "held by" not in line]

    assert len(promises) > 20
    assert all("`tests/" in line for line in promises)
