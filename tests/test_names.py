"""One rule for names, asked of rows and of stores, and safe file names for what is left."""

import doctest

import pytest

from actcache import names as module
from actcache.analysis.checks import require_names
from actcache.analysis.names import slugs
from actcache.errors import MismatchError, RowError
from actcache.names import MAX_BYTES, name_problem
from actcache.store.store import open_store
from tests.support.rows import GOOD, lines, read
from tests.support.stores import build, example

BAD = {
    "..": "without /",
    ".": "without /",
    "../up": "without /",
    "a\\b": "without /",
    "tidy@sys_pos": "without @",
    "red\x1b[31m": "without U.001B",
    "two\nlines": "without U.000A",
    "two\u2028lines": "without LINE SEP",
    "right\u202eleft": "without RIGHT-TO-LEFT OVERRIDE",
    "ü" * (MAX_BYTES // 2 + 1): "bytes long",
}
FINE = ["power seeking", "learned.zarr", "[red]tidy[bold]", "<b>", "$x$", "müßig", "a" * MAX_BYTES]
BAD_IDS = ["red\x1b", "a\nb", "x" * 1001]


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_bad_name_is_refused_in_rows_and_in_stores(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RowError, match=f"'behavior' is .*{BAD[name]}.*Rename it"):
        read(lines({**GOOD, "behavior": name}))

    settings, values = example()
    settings["columns"]["behavior"][3] = name
    build(tmp_path / "s.zarr", settings, values)
    with pytest.raises(MismatchError, match=f"a behavior of .*{BAD[name]}.*another name"):
        require_names(open_store(tmp_path / "s.zarr"))


@pytest.mark.parametrize("name", BAD_IDS, ids=["escape", "line", "long"])
def test_an_id_may_be_longer_and_hold_more_but_nothing_that_cannot_be_printed(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RowError, match=r"'id' is .*Rename it"):
        read(lines({**GOOD, "id": name}))
    assert name_problem("mood/3@user_pos", is_id=True) is None
    assert name_problem("x" * 1000, is_id=True) is None


@pytest.mark.parametrize("name", FINE)
def test_a_good_name_is_taken_by_both(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read(lines({**GOOD, "behavior": name}))[0].behavior == name

    settings, values = example()
    settings["columns"]["behavior"] = [name] * settings["n"]
    build(tmp_path / "s.zarr", settings, values)
    require_names(open_store(tmp_path / "s.zarr"))


def test_whatever_a_name_is_its_file_name_is_plain_short_and_its_own():
    names = [*BAD, *FINE, "Tidy", "tidy", "CON", "learned-zarr", ""]
    made = slugs(names)

    assert len(set(made.values())) == len(names)
    for slug in made.values():
        assert 0 < len(slug.encode()) <= 70
        assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
