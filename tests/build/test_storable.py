"""What a store cannot hold is refused before the model is loaded."""

import copy
import math
from dataclasses import replace

import pytest

from actcache.build.plan import plan_build
from actcache.build.provenance import require_storable
from actcache.build.row_columns import RowColumns
from actcache.build.run import run_build
from actcache.errors import ActcacheError

pytestmark = pytest.mark.model
N = 6


@pytest.fixture
def plan(samples, config):
    return plan_build(samples[:N], config)


def never():
    raise AssertionError("the model was loaded")


def deep(plan):
    shape = copy.copy(plan.model_config)
    shape.num_hidden_layers = 60_000
    return replace(plan, model_config=shape)


def with_column(plan, name, values):
    return replace(plan, row_columns=RowColumns({name: values}, ()))


def with_template(plan, template):
    return replace(plan, tokenizer={**plan.tokenizer, "template": template})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: with_column(plan, "a:b", ["x"] * N), "Choose another name"),
        (lambda plan: with_column(plan, "a/b", ["x"] * N), "Choose another name"),
        (lambda plan: with_column(plan, "Prompt", ["x"] * N), "Rename one"),
        (lambda plan: with_column(plan, "topic", ["x"] * N + ["y"]), "Pass as many"),
        (lambda plan: with_column(plan, "topic", ["\ud800"] * N), "topic"),
        (lambda plan: with_template(plan, "x" * (1 << 20)), "Record less"),
        (lambda plan: with_template(plan, math.nan), "Change that field"),
        (lambda plan: replace(plan, left_out=[{"id": "x", "reason": math.nan}]), "Change that"),
        (deep, "Keep fewer arrays in one store"),
    ],
)
def test_is_refused_before_the_model_is_loaded(plan, change, message, tmp_path):
    with pytest.raises(ActcacheError, match=message):
        run_build(change(plan), tmp_path / "s.zarr", model=never)
    assert not list(tmp_path.iterdir())


def test_shards_of_more_rows_than_there_are_are_refused_too(plan, tmp_path):
    with pytest.raises(ActcacheError, match="Give it rows"):
        run_build(plan, tmp_path / "s.zarr", model=never, shard_rows=N + 1)


def test_what_can_be_stored_is_loaded_for(plan, tmp_path):
    with pytest.raises(AssertionError, match="the model was loaded"):
        run_build(plan, tmp_path / "s.zarr", model=never)


def test_twenty_thousand_rows_may_be_left_out(plan, tmp_path):
    left_out = [
        {"id": f"long/{i}", "reason": "too long", "tokens": 9000, "context": 128}
        for i in range(20_000)
    ]
    store = run_build(replace(plan, left_out=left_out), tmp_path / "s.zarr")

    assert store.left_out == left_out
    assert "left_out" not in store.provenance


def test_no_store_fails_later_for_what_the_model_or_the_end_of_the_build_add(plan, tmp_path):
    """The longest template that passes, found by halving, is built to the end."""
    longest, too_long = 900_000, 1 << 20
    while too_long - longest > 1:
        length = (longest + too_long) // 2
        try:
            require_storable(with_template(plan, "x" * length))
            longest = length
        except ActcacheError:
            too_long = length

    store = run_build(with_template(plan, "x" * longest), tmp_path / "s.zarr")

    assert store.complete
    assert (1 << 20) - (tmp_path / "s.zarr" / "zarr.json").stat().st_size < 1000
