"""Runs of shards: what shares a pass, what an interruption or a lack of memory may change."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import actcache.demo
from actcache.build.config import BuildConfig
from actcache.build.forecast import forecast_build
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.build.runs import RUN_BYTES, RUN_ROWS, Runs, read_rows, shards_of_a_run
from actcache.data.formats import read_samples
from actcache.engine.batching import Budget
from actcache.engine.model import load_model
from actcache.engine.tree_capture import capture
from actcache.store.schema import RowArray
from actcache.store.store import open_store

pytestmark = pytest.mark.model
SHARD_ROWS, RUN = 8, 24


@pytest.fixture(scope="module")
def model():
    return load_model(str(actcache.demo.model_path()))


@pytest.fixture(scope="module")
def plan():
    """Sixty rows of the demo, of which some later ones repeat earlier ones: three runs of three
    shards, the last run and its last shard shorter."""
    samples = read_samples(actcache.demo.row_files("tidy"))
    repeats = {20: 3, 30: 2, 31: 26, 50: 7, 51: 49, 58: 29}  # row: the row that it repeats
    chosen = [
        replace(samples[repeats.get(i, i)], id=f"row {i}", behavior=f"b{i // 20}")
        for i in range(60)
    ]
    config = BuildConfig(
        model=str(actcache.demo.model_path()), batch_tokens=500, sites=("resid_post",)
    )
    return plan_build(chosen, config)


def build(plan, path, model, **settings):
    return run_build(plan, path, model=model, shard_rows=SHARD_ROWS, run_rows=RUN, **settings)


@pytest.fixture(scope="module")
def whole(plan, model, tmp_path_factory):
    return build(plan, tmp_path_factory.mktemp("whole") / "s.zarr", model)


def values_of(store):
    return read_rows(store, np.arange(store.n))


class Breaking:
    """`capture`, which remembers the rows of each pass and raises an error at one of them."""

    def __init__(self, error=None, *, at_pass=-1):
        self.error, self.at_pass = error, at_pass
        self.passes = []

    def __call__(self, model, rows, **reading):
        self.passes.append(len(rows))
        if len(self.passes) == self.at_pass:
            raise self.error
        return capture(model, rows, **reading)


def bits_changed(left, right):
    """The rows of two stores of which any value differs in any bit."""
    return sorted(
        {
            int(row)
            for name in left.arrays
            for row in np.flatnonzero(
                (left.array(name).stored[:] != right.array(name).stored[:]).any((1, 2))
            )
        }
    )


def test_the_demo_model_shows_which_rows_shared_a_pass(plan, model, whole, tmp_path):
    """Without this the tests of equal bits below would prove nothing."""
    other = run_build(plan, tmp_path / "s.zarr", model=model, shard_rows=SHARD_ROWS, run_rows=1)

    assert set(range(32, 48)) <= set(bits_changed(whole, other))


def test_a_run_is_about_512_rows_of_whole_shards_within_its_bytes():
    small = RowArray("resid_post/prompt", 4, 32, "float32")
    large = RowArray("resid_post/prompt", 80, 8192, "bfloat16")

    assert shards_of_a_run([small], 512) == 1
    assert shards_of_a_run([small], 700) == 1
    assert shards_of_a_run([small], 48) == 11  # 528 rows
    assert shards_of_a_run([small], 8) == RUN_ROWS // 8
    assert shards_of_a_run([large], 48) == 11
    four = [replace(large, name=f"resid_post/{i}") for i in range(4)]
    n = shards_of_a_run(four, 48)
    assert n * 48 * 4 * large.row_bytes <= RUN_BYTES < (n + 1) * 48 * 4 * large.row_bytes
    assert shards_of_a_run(four, 48, run_bytes=1) == 1


def test_runs_cover_every_row_once_and_the_last_is_short(plan, model, whole):
    runs = runs_of(plan, whole)

    assert [runs.rows(run) for run in range(len(runs))] == [
        range(24),
        range(24, 48),
        range(48, 60),
    ]
    assert list(runs.left(0)) == [0, 1, 2]
    assert list(runs.left(32)) == [1, 2]
    assert list(runs.left(60)) == []
    with pytest.raises(IndexError):
        runs[3]


def runs_of(plan, store):
    return Runs.of(plan, store.row_arrays, shard_rows=SHARD_ROWS, run_rows=RUN)


def test_a_run_needs_the_earlier_runs_whose_rows_it_repeats(plan, whole):
    runs = runs_of(plan, whole)

    assert [runs.needs(run) for run in range(3)] == [set(), {0}, {0, 1}]
    assert runs[2].earlier.tolist() == [7, 29]


def test_a_run_alone_gives_the_bytes_of_the_whole_build(plan, model, whole):
    values = values_of(whole)
    for number in (2, 0, 1):
        run = pickle.loads(pickle.dumps(runs_of(plan, whole)[number]))
        asked: list[int] = []

        def read_earlier(rows, asked=asked):
            asked.extend(rows.tolist())
            return read_rows(whole, rows)

        shards = list(run.compute(model, read=capture, read_earlier=read_earlier))

        assert [rows for rows, _ in shards] == [
            run.rows[start : start + SHARD_ROWS] for start in range(0, len(run.rows), SHARD_ROWS)
        ]
        for rows, blocks in shards:
            assert blocks.keys() == values.keys()
            for name, block in blocks.items():
                assert block.swapaxes(0, 1).flags.c_contiguous  # as a shard lies on disk
                np.testing.assert_array_equal(block, values[name][rows.start : rows.stop])
        assert asked == run.earlier.tolist()


def test_repeated_rows_are_equal_to_the_rows_that_they_repeat(plan, whole):
    for values in values_of(whole).values():
        for row, source in {20: 3, 30: 2, 31: 26, 50: 7, 51: 49, 58: 29}.items():
            np.testing.assert_array_equal(values[row], values[source])


@pytest.mark.parametrize("n_committed", [32, 48, 60])
def test_resumed_anywhere_in_a_run_equals_uninterrupted(
    n_committed, plan, model, whole, tmp_path, monkeypatch
):
    from actcache.store.writing.writer import Writer

    commit = Writer.commit

    def breaks(writer, blocks):
        if writer.committed >= n_committed:
            raise RuntimeError("the disk broke")
        commit(writer, blocks)

    def cannot_finish(*_):
        raise RuntimeError("the disk broke")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "commit", breaks)
        patched.setattr(Writer, "finish", cannot_finish)
        with pytest.raises(RuntimeError, match="the disk broke"):
            build(plan, tmp_path / "s.zarr", model)
    assert open_store(tmp_path / "s.zarr", partial=True).n == n_committed

    read = Breaking()
    resumed = build(plan, tmp_path / "s.zarr", model, resume=True, read=read)

    assert resumed.digest == whole.digest
    assert bits_changed(resumed, whole) == []
    # The check before the build, and the rows of the runs that were not whole.
    n_run = sum(read.passes) - 2
    assert n_run == sum(
        len(runs_of(plan, whole)[run]._to_run) for run in range(n_committed // RUN, 3)
    ) * (n_committed < 60)


def test_out_of_memory_in_one_run_changes_no_other(plan, model, whole, tmp_path, caplog):
    tight = Breaking(torch.OutOfMemoryError(), at_pass=2)  # the first is the check before it
    with caplog.at_level(logging.WARNING, "actcache"):
        store = build(plan, tmp_path / "s.zarr", model, read=tight)

    assert [record.getMessage().partition(" with ")[0] for record in caplog.records] == [
        "actcache: the device is out of memory"
    ]
    # Rows 30 and 50 repeat rows of the run that ran out of memory.
    assert set(bits_changed(store, whole)) <= {*range(RUN), 30, 50}
    # Had the other runs shared its budget, their values would be others.
    halved = replace(plan, config=replace(plan.config, batch_tokens=250))
    shared = build(halved, tmp_path / "halved.zarr", model)
    assert set(bits_changed(shared, whole)) & set(range(RUN, 2 * RUN)) - {30}


def test_a_warning_of_too_little_memory_is_not_repeated_for_each_run(plan, model, tmp_path, caplog):
    def tight(model, rows, **reading):
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return capture(model, rows, **reading)

    with caplog.at_level(logging.WARNING, "actcache"):
        build(plan, tmp_path / "s.zarr", model, read=tight)

    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)) >= 1


def test_a_renewed_budget_begins_anew_and_warns_of_less_alone(caplog):
    first = Budget(100)
    with caplog.at_level(logging.WARNING, "actcache"):
        first.shrink(100)
        second = first.renewed()
        assert (first.tokens, second.tokens) == (50, 100)
        second.shrink(100)
        assert len(caplog.records) == 1
        second.shrink(50)
        assert len(caplog.records) == 2
        third = second.renewed()
        third.shrink(100)
        third.shrink(50)

    assert third.tokens == 25
    assert len(caplog.records) == 2


def test_a_shard_that_cannot_be_written_stops_what_comes_after_it(
    plan, model, tmp_path, monkeypatch
):
    from actcache.store.writing.writer import Writer

    commit = Writer.commit
    calls = []

    def breaks_once(writer, blocks):
        calls.append(writer.committed)
        if len(calls) == 2:
            raise OSError("the disk is full")
        commit(writer, blocks)

    monkeypatch.setattr(Writer, "commit", breaks_once)
    with pytest.raises(OSError, match="the disk is full"):
        build(plan, tmp_path / "s.zarr", model)

    assert calls == [0, 8]


def test_a_forecast_counts_the_passes_of_all_runs(model, tmp_path):
    samples = [
        replace(sample, prompt=sample.prompt.split('"')[1])  # the statement alone: a shorter row
        for sample in read_samples(actcache.demo.row_files())[: RUN_ROWS + 30]
    ]
    config = BuildConfig(
        model=str(actcache.demo.model_path()),
        positions=("prompt",),
        sites=("resid_post",),
        batch_tokens=500,
    )
    plan = plan_build(samples, config)
    read = Breaking()
    store = run_build(plan, tmp_path / "s.zarr", model=model, read=read)
    assert store.n > RUN_ROWS
    assert len(read.passes) > 10

    # Two passes are checks before the build: two rows, and two that share a beginning.
    assert forecast_build(plan, tmp_path / "t.zarr")["passes"] == len(read.passes) - 2
