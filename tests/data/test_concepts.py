"""Rows for concept directions: both sides, their splits, the published design, bad input."""

import json

import pytest

from actcache.cli.main import main
from actcache.data.concepts import POOLS, ConceptRows, ConceptSettings, read_lines
from actcache.data.formats import read_samples
from actcache.demo import concepts_path, statements_path
from actcache.errors import ActcacheError, RowError
from tests.cli.commands import refused

STATEMENTS = [f"Statement {i}." for i in range(40)]
PREFIX = "You fear {concept}."


def made(concepts=("bees", "fog"), pools=(STATEMENTS,), **settings):
    filled = ConceptSettings(**{"prefix": PREFIX, **settings})
    return ConceptRows(concepts=concepts, pools=pools, settings=filled)


def by_side(rows, behavior):
    return [
        [r for r in rows if r["behavior"] == behavior and r["label"] == label]
        for label in ("with", "without")
    ]


def test_each_statement_stands_on_both_sides_in_one_split():
    rows = list(made().rows())

    for concept in ("bees", "fog"):
        positive, negative = by_side(rows, concept)
        assert [r["prompt"] for r in negative] == STATEMENTS
        assert [r["prompt"] for r in positive] == [f"You fear {concept}. {s}" for s in STATEMENTS]
        assert [r["split"] for r in positive] == [r["split"] for r in negative]
        assert {r["prompt"][slice(*r["span"])] for r in positive} == {f"You fear {concept}."}
        assert {tuple(r["span"]) for r in negative} == {(0, 0)}
    splits = [r["split"] for r in rows[:40]]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [20, 8, 12]
    assert splits != sorted(splits)
    assert splits != [r["split"] for r in list(made(seed=1).rows())[:40]]


def test_the_published_design_has_two_pools_in_order_and_a_control_of_them_alone():
    pools = (STATEMENTS, [f"Saying {i}." for i in range(45)])
    rows = list(made(pools=pools, design="published").rows())

    positive, negative = by_side(rows, "bees")
    assert [r["prompt"] for r in positive] == [f"You fear bees. {s}" for s in pools[0]]
    assert [r["prompt"] for r in negative] == pools[1]
    assert [r["split"] for r in positive] == ["train"] * 32 + ["validation"] * 8
    first, second = by_side(rows, POOLS)
    assert [r["prompt"] for r in first + second] == [*pools[0], *pools[1]]
    assert {tuple(r["span"]) for r in first + second} == {(0, 0)}
    assert len({r["id"] for r in rows}) == len(rows)


def test_the_prefix_may_be_the_system_message_and_a_question_stands_on_both_sides():
    positive, negative = by_side(list(made(place="system", question="Well? ").rows()), "fog")

    assert {r["system"] for r in positive} == {"You fear fog."} == {r["span"] for r in positive}
    assert not any("system" in r for r in negative)
    assert [r["prompt"] for r in positive] == [f"Well? {s}" for s in STATEMENTS]
    assert positive[3]["prompt"] == negative[3]["prompt"]


@pytest.mark.parametrize("place", ["user", "system"])
def test_the_command_writes_rows_that_build_reads(tmp_path, capsys, place):
    out = tmp_path / "rows.jsonl"
    files = [str(concepts_path()), "--statements", str(statements_path())]
    assert main(["concepts", *files, "--prefix", PREFIX, "--place", place, "-o", str(out)]) == 0

    assert "3,072" in capsys.readouterr().out
    samples = read_samples([out])
    assert len(samples) == 24 * 128
    assert {s.span_part for s in samples if s.label == "with"} == {
        "prompt" if place == "user" else place
    }


def test_the_concepts_and_statements_of_the_demo_are_enough():
    assert len(read_lines(concepts_path())) >= 24
    assert len(read_lines(statements_path())) >= 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": ("Bees", "fog", "bees")}, "'Bees' and 'bees'.*Remove one"),
        ({"concepts": ("fog", "fog")}, "'fog' and 'fog'.*Remove one"),
        ({"concepts": ()}, "no concept.*Write one a line"),
        ({"concepts": ("a/b",)}, "a concept is 'a/b'.*Rename it"),
        ({"concepts": (POOLS,)}, "name of a control. Rename it"),
        ({"prefix": "You fear bees."}, "in it 0 times, expected once. Write for example"),
        ({"prefix": "{concept} {concept}"}, "in it 2 times"),
        (
            {"pools": ([*STATEMENTS, "statement  3."],)},
            "line 4 of statement file 1 and line 41.*equal",
        ),
        (
            {"pools": (STATEMENTS, STATEMENTS)},
            "line 1 of statement file 1 and line 1 of statement file 2",
        ),
        (
            {"pools": (STATEMENTS[:39],)},
            "39 statements leave 7 rows of a label for validation, expected 8",
        ),
        ({"design": "published"}, "takes two pools of statements, found 1. Pass two files"),
    ],
)
def test_bad_input_is_refused_by_name(changes, message):
    with pytest.raises(RowError, match=message):
        made(**changes)


def test_an_unknown_word_is_refused():
    with pytest.raises(ActcacheError, match="design is 'other', expected same, published"):
        made(design="other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\n\ntwo\n", "line 2 is blank, expected text. Remove the line"),
        ("", "is empty, expected one or more lines"),
        (b"\xff", "is not UTF-8 at byte 0"),
        (None, "cannot read"),
    ],
)
def test_bad_files_are_refused_before_anything_is_written(tmp_path, capsys, content, message):
    path = tmp_path / "statements.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "rows.jsonl"
    argv = ["concepts", concepts_path(), "--statements", path, "--prefix", PREFIX, "-o", out]

    assert message in refused(argv, capsys)
    assert not out.exists()


def test_a_file_that_exists_is_kept(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text("mine")
    argv = [
        "concepts",
        concepts_path(),
        "--statements",
        statements_path(),
        "--prefix",
        PREFIX,
        "-o",
        out,
    ]

    assert "--overwrite" in refused(argv, capsys)
    assert out.read_text() == "mine"
    assert main([str(word) for word in [*argv, "--overwrite", "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["concepts"] == 24
