"""Prompts that are continued: splits, limits, behaviors, and rows that do not fit."""

import json

import pytest

from actcache.analysis.generation.run.measures import form_of_rows
from actcache.analysis.generation.run.rows import (
    PromptRow,
    data_rows,
    digest_of_rows,
    prompt_rows,
    require_fit,
)
from actcache.errors import ActcacheError, RowError
from actcache.prompts.render import Renderer, Rendering
from tests.support.tiny import tokenizer


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tokenizer(), Rendering())


def written(tmp_path, rows, name="mood.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def pairs(n, **more):
    return [
        {"prompt": f"Is it {i}?", "positive": "(A)", "negative": "(B)", **more} for i in range(n)
    ]


def test_a_third_of_rows_without_splits_validates_and_none_is_lost(tmp_path, renderer):
    rows = data_rows([written(tmp_path, pairs(30))], ["mood"], renderer)

    assert len({row.id for row in rows}) == 30
    assert sum(row.split == "validation" for row in rows) == 10
    assert all(row.completions == ("(A)", "(B)") for row in rows)
    assert rows[0].tokens == renderer_tokens(renderer, "Is it 0?")


def renderer_tokens(renderer, prompt):
    [row] = prompt_rows([prompt], ["mood"], renderer)
    return row.tokens


def test_splits_of_their_own_are_kept_and_train_rows_are_left_out(tmp_path, renderer):
    rows = [*pairs(2, split="train"), *pairs(2, split="validation"), *pairs(3, split="test")]
    taken = data_rows([written(tmp_path, rows)], ["mood"], renderer)
    assert [row.split for row in taken] == ["validation"] * 2 + ["test"] * 3
    with pytest.raises(RowError, match="split train"):
        data_rows([written(tmp_path, rows[:2])], ["mood"], renderer)


def test_the_limit_is_of_each_behavior_and_split(tmp_path, renderer):
    files = [written(tmp_path, pairs(30), f"{name}.jsonl") for name in ("mood", "calm")]
    rows = data_rows(files, ["mood", "calm"], renderer, limit=4)
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.behavior, row.split] = counts.get((row.behavior, row.split), 0) + 1
    assert counts == {(b, s): 4 for b in ("mood", "calm") for s in ("validation", "test")}


def test_one_direction_steers_all_rows_and_of_several_each_row_has_its_own(tmp_path, renderer):
    path = written(tmp_path, pairs(3))
    assert {row.behavior for row in data_rows([path], ["tidy"], renderer)} == {"tidy"}
    with pytest.raises(RowError, match="--behavior"):
        data_rows([path], ["tidy", "calm"], renderer)


def test_a_prompt_is_a_test_row_of_every_behavior(renderer):
    rows = prompt_rows(["Hi", "Ho"], ["tidy", "calm"], renderer)
    assert [row.id for row in rows] == [
        *("prompt/0@tidy", "prompt/0@calm", "prompt/1@tidy", "prompt/1@calm")
    ]
    assert {row.split for row in rows} == {"test"}
    with pytest.raises(RowError, match="prompt 1 is empty"):
        prompt_rows(["Hi", "  "], ["tidy"], renderer)


def row(i, n, **more):
    tokens = tuple(range(3, 3 + n))
    return PromptRow(id=f"r/{i}", behavior="b", split="test", tokens=tokens, digest=f"d{i}", **more)


def test_rows_that_do_not_fit_are_named_and_those_that_do_pass():
    rows = [row(0, 10), row(1, 30), row(2, 20)]
    require_fit(rows, max_new=10, context=40, front=10)
    require_fit(rows, max_new=1000, context=None)
    with pytest.raises(ActcacheError, match=r"'r/1' has 30 tokens, .* --max-new 9 or less"):
        require_fit(rows, max_new=10, context=39)
    with pytest.raises(ActcacheError, match=r"first 11 tokens of a prompt, row 'r/0' has 10"):
        require_fit(rows, max_new=1, context=None, front=11)


def test_the_digest_of_rows_is_of_ids_splits_texts_and_tokens():
    rows = [row(0, 10), row(1, 30)]
    assert digest_of_rows(rows) == digest_of_rows([row(0, 10), row(1, 30)])
    for other in ([row(0, 10)], [row(0, 11), row(1, 30)], [row(1, 30), row(0, 10)]):
        assert digest_of_rows(rows) != digest_of_rows(other)


def test_the_form_is_of_few_completions_alone():
    two = [row(i, 3, completions=(" (A)", "(B)")) for i in range(3)]
    assert form_of_rows(two) == r"\(A\)|\(B\)"
    assert form_of_rows([*two, row(9, 3)]) is None
    assert form_of_rows([row(i, 3, completions=(f"yes {i}", f"no {i}")) for i in range(5)]) is None
