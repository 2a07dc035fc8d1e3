"""Lists of numbers on the command line, and flags that are made from settings."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from actcache.cli.terminal.options import (
    add_settings,
    add_settings_of,
    given_settings,
    multipliers,
    names,
    numbers,
    preset_help,
)
from actcache.errors import ActcacheError
from actcache.settings import setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("3", [3]), ("3,5", [3, 5]), ("0:3,7", [0, 1, 2, 7]), ("9,1:2", [9, 1])],
)
def test_numbers_and_ranges_keep_their_order_and_leave_out_the_stop(text, expected):
    assert numbers(text, "layers") == (None if expected is None else tuple(expected))


@pytest.mark.parametrize("text", ["", "a", "1,", "1:", ":2", "1.5", "1:2:3"])
def test_text_that_is_not_a_list_of_numbers_is_refused(text):
    with pytest.raises(ActcacheError, match=f"^layers are '{text}', .* For example 0:100,205"):
        numbers(text, "layers")


def test_multipliers_are_a_range_with_both_ends_or_a_list():
    assert multipliers("-1.5:1.5:0.5") == (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    assert multipliers("0:0.3:0.1") == (0.0, 0.1, 0.2, 0.3)
    assert multipliers("-1,0,2.5") == (-1.0, 0.0, 2.5)
    for wrong in ("1:0:0.5", "0:1:0", "0:1:0.3", "a,b", "1:2"):
        with pytest.raises(ActcacheError, match="START:STOP:STEP"):
            multipliers(wrong)


def test_names_are_split_at_commas():
    assert names("a,b") == ("a", "b")
    assert names(None) is None


@dataclass(frozen=True, kw_only=True)
class Basket:
    """A dataclass with every kind of setting."""

    owner: str = setting(help="who carries it")
    fruit: Literal["apple", "pear"] = setting("apple", help="what is in it", group="contents")
    size: Literal["s", "l"] = setting("s", help="s or l", metavar="SIZE")
    others: Sequence[Literal["apple", "pear"]] = setting(("pear",), help="some of {words}")
    counts: Sequence[int] | None = setting(None, help="numbers (default: 100% of them)")
    pieces: int = setting(0, help="how many")
    full: bool = setting(False, help="no room left")


@pytest.fixture
def command():
    parser = argparse.ArgumentParser(exit_on_error=False)
    groups = add_settings(parser, Basket, {"contents": "Fruit."}, no_default=["size"])
    assert list(groups) == ["", "contents"]
    return parser


def test_flags_of_a_dataclass_are_parsed_into_its_fields(command):
    line = "--owner Eve --fruit pear --others apple,pear --counts 1:3,7 --pieces 4 --full"
    given = given_settings(command.parse_args(line.split()), Basket)

    assert given == {
        "owner": "Eve",
        "fruit": "pear",
        "size": None,
        "others": ("apple", "pear"),
        "counts": (1, 2, 7),
        "pieces": 4,
        "full": True,
    }


def test_flags_that_are_not_given_have_the_defaults_of_the_fields(command):
    given = given_settings(command.parse_args(["--owner", "Eve"]), Basket)

    assert given["size"] is None  # so that something else may set it
    del given["size"]
    assert Basket(**given) == Basket(owner="Eve")


def test_words_are_refused_by_the_parser_unless_the_dataclass_is_to_refuse_them(command):
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'plum'"):
        command.parse_args(["--owner", "Eve", "--fruit", "plum"])
    assert command.parse_args(["--owner", "Eve", "--size", "xl"]).size == "xl"


def test_help_shows_words_and_each_default_once(command):
    shown = " ".join(command.format_help().split())

    for text in (
        "contents: Fruit.",
        "--fruit {apple,pear} what is in it (default: apple)",
        "--others LIST some of apple, pear (default: pear)",
        "--counts LIST numbers (default: 100% of them)",
        "--pieces PIECES how many (default: 0)",
        "--full no room left",
        "--owner OWNER who carries it",
    ):
        assert text in shown
    assert shown.count("(default") == 5


def test_single_settings_can_be_taken_from_a_dataclass():
    parser = argparse.ArgumentParser()
    add_settings_of(parser, Basket, "pieces", "full")

    assert vars(parser.parse_args(["--pieces", "3"])) == {"pieces": 3, "full": False}


def test_the_help_of_presets_writes_settings_as_flags():
    assert "--multipliers=-1,0,1\n" in preset_help("sweep") + "\n"
    assert "--system=''\n" in preset_help("build")
    assert "--separator='\\n\\n'" in preset_help("build")
