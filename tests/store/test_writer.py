"""The writer: every row it counts is on disk and correct, and it counts no other row."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.errors import (
    ActcacheError,
    FormatError,
    IncompleteStoreError,
    MismatchError,
    NotFiniteError,
    StoreExistsError,
)
from actcache.store.schema import Ragged, RowArray
from actcache.store.storage.atomic import (
    WORTH_AN_EARLY_SYNC,
    write_durably,
    write_large_files,
)
from actcache.store.storage.protocol import LargeObject
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.crash import kill_test
from tests.reference import store as reference
from tests.support.processes import ROOT, run_code
from tests.support.stores import (
    build,
    commit_next,
    example,
    file_bytes,
    fill,
    scratch,
    shaped,
    shapes,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


@settings(max_examples=40)
@given(shapes())
def test_a_shard_is_the_bytes_of_its_definition(plan):
    config, values = shaped(**plan)
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        for name, array in values.items():
            for shard in range(-(-config["n"] // config["shard_rows"])):
                expected = reference.shard_file(array, shard, config["shard_rows"])
                assert (path / name / f"c.{shard}.0.0").read_bytes() == expected


@settings(max_examples=40)
@given(shapes(), st.lists(st.integers(0, 4), max_size=3))
def test_a_resumed_store_is_the_uninterrupted_one_byte_for_byte(plan, sessions):
    config, values = shaped(**plan)
    with scratch() as folder:
        whole = build(Path(folder) / "whole.zarr", config, values, certificate={"worst": 0.5})
        path = Path(folder) / "resumed.zarr"
        committed = 0
        for n_shards in sessions:
            with Writer.resume(path, StoreContents(**config)) as writer:
                assert writer.committed == committed
                while writer.committed < writer.n and n_shards:
                    commit_next(writer, values)
                    n_shards -= 1
                committed = writer.committed
        with Writer.resume(path, StoreContents(**config)) as writer:
            assert writer.committed == committed
            fill(writer, values, certificate={"worst": 0.5})
        assert file_bytes(path) == file_bytes(whole)


def test_blocks_that_lie_layer_by_layer_are_written_as_the_same_bytes(tmp_path):
    config, values = example()
    turned = {
        name: np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)
        for name, array in values.items()
    }
    build(tmp_path / "a.zarr", config, values)
    build(tmp_path / "b.zarr", config, turned)
    assert file_bytes(tmp_path / "a.zarr") == file_bytes(tmp_path / "b.zarr")


def test_only_committed_rows_count(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        assert (writer.committed, writer.next_rows) == (0, slice(0, 4))
        commit_next(writer, values)
        assert (writer.committed, writer.next_rows) == (4, slice(4, 8))
        commit_next(writer, values)
        commit_next(writer, values)
        assert (writer.committed, writer.next_rows) == (11, slice(11, 11))
        with pytest.raises(MismatchError, match="Commit each shard once"):
            commit_next(writer, values)


def test_a_shard_without_its_record_does_not_count_and_is_removed(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
        commit_next(writer, values)
    folder = Path(f"{path}.partial")
    (folder / "commits/c.2.0").unlink()
    (folder / "embed/prompt/c.2.0.0.tmp").write_bytes(b"half")
    assert open_store(path, partial=True).n == 4
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 4
        assert not list(folder.rglob("*.tmp"))
        assert [p.name for p in folder.glob("embed/prompt/c.*")] == ["c.0.0.0"]
        fill(writer, values)
    assert verify(path) == []


def test_a_damaged_record_ends_the_log_of_an_interrupted_store(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
        commit_next(writer, values)
    record = Path(f"{path}.partial/commits/c.1.0")
    record.write_bytes(record.read_bytes().replace(b'"rows":[0,4]', b'"rows":[0,5]'))
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 0
        fill(writer, values)
    assert verify(path) == []


def test_a_second_writer_is_refused_at_once(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        with pytest.raises(ActcacheError, match=r"another process.*Wait for it"):
            Writer.resume(path, StoreContents(**config))
        with pytest.raises(ActcacheError, match=r"another process.*Wait for it"):
            Writer.create(path, StoreContents(**config), overwrite=True)
        with pytest.raises(StoreExistsError, match="--resume"):
            Writer.create(path, StoreContents(**config))
        code = """
            import sys
            from actcache.store.writing.contents import StoreContents
            from actcache.store.writing.writer import Writer
            from tests.support.stores import example
            Writer.resume(sys.argv[1], StoreContents(**example()[0]))
        """
        assert "another process" in run_code(code, path, check=False).stderr
        fill(writer, values)
    assert verify(path) == []


def changed(config, at, value):
    config = {**config, "config": copy.deepcopy(config["config"])}
    config["provenance"] = copy.deepcopy(config["provenance"])
    config["columns"] = dict(config["columns"])
    inner = config
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    return config


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("config", "batch_tokens"), 128, "'config.batch_tokens': stored 64, found 128"),
        (("config", "new"), 1, "'config.new': stored None, found 1"),
        (
            ("provenance", "model", "weights_sha256"),
            "cd",
            "'provenance.model.weights_sha256': stored 'abab.*found 'cd'",
        ),
        (("kind",), "sweep", "'kind': stored 'residuals', found 'sweep'"),
        (
            ("columns", "id"),
            [f"row-{i}" if i != 7 else "other" for i in range(11)],
            r"'columns.id\[7\]': stored 'row-7', found 'other'",
        ),
        (
            ("columns", "prompt_tokens"),
            Ragged.of([[1]] * 11),
            "'columns.prompt_tokens.shape': stored",
        ),
        (("columns", "layer"), np.arange(3) + 1, r"'columns.layer\[0\]': stored 0, found 1"),
        (("columns", "more"), np.arange(11), "'columns.more': stored None"),
        (
            ("arrays",),
            [RowArray("resid_post/prompt", 3, 4, "float32"), *example()[0]["arrays"][1:]],
            "'arrays.resid_post/prompt.dtype': stored 'float16', found 'float32'",
        ),
        (("shard_rows",), 5, "'shard_rows': stored 4, found 5"),
    ],
)
def test_resuming_with_something_else_names_the_field_and_both_values(path, at, value, message):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
    before = file_bytes(Path(f"{path}.partial"))
    with pytest.raises(MismatchError, match=f"{message}.*begin anew with --overwrite"):
        Writer.resume(path, StoreContents(**changed(config, at, value)))
    assert file_bytes(Path(f"{path}.partial")) == before


def test_tuples_and_lists_are_the_same_setting(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
    config["config"]["positions"] = ("prompt", "fork")
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 4


def test_resuming_without_an_interrupted_store_begins_one(path):
    config, values = example()
    with Writer.resume(path, StoreContents(**config)) as writer:
        fill(writer, values)
    assert open_store(path).n == 11


@pytest.mark.parametrize(
    ("name", "bad", "shown"),
    [
        ("resid_post/prompt", np.float16(np.inf), "is inf"),
        ("resid_post/prompt", np.float16(np.nan), "is nan"),
        ("resid_post/fork", np.uint16(0xFF80), "is -inf"),
        ("resid_post/fork", np.uint16(0x7FC1), "is nan"),
        ("embed/prompt", np.float32(-np.inf), "is -inf"),
        ("embed/prompt", np.float32(np.nan), "is nan"),
    ],
)
def test_a_value_that_is_not_finite_stops_the_build_and_names_its_place(path, name, bad, shown):
    config, values = example()
    broken = {key: array.copy() for key, array in values.items()}
    layer = broken[name].shape[1] - 1
    broken[name][6, layer, 3] = bad
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, broken)
        message = f"'{name}' of row 6 at layer {layer} {shown} in coordinate 3.*--store-dtype"
        with pytest.raises(NotFiniteError, match=message):
            commit_next(writer, broken)
        assert writer.committed == 4
        assert not list(path.parent.rglob("*.tmp"))
        fill(writer, values)  # once repaired
    assert verify(path) == []


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("resid_post/prompt", np.float16(-65504)),
        ("resid_post/fork", np.uint16(0xFF7F)),
        ("embed/prompt", np.finfo(np.float32).max),
    ],
)
def test_the_largest_finite_value_is_kept(path, name, largest):
    config, values = example()
    values[name][3, 0, 1] = largest
    build(path, config, values)
    array = open_store(path).array(name)
    bits = array.bits if array.dtype == "bfloat16" else array
    np.testing.assert_array_equal(bits[3, 0][1], largest)


@pytest.mark.parametrize(
    "blocks",
    [
        lambda v: {**v, "embed/prompt": v["embed/prompt"][:3]},
        lambda v: {**v, "embed/prompt": v["embed/prompt"].astype(np.float64)},
        lambda v: {**v, "resid_post/fork": v["resid_post/fork"].view(np.float16)},
        lambda v: {name: v[name] for name in list(v)[1:]},
        lambda v: {**v, "more": v["embed/prompt"]},
    ],
)
def test_blocks_of_another_shape_dtype_or_name_are_refused(path, blocks):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        with pytest.raises(MismatchError, match=r"Pass rows 0 to 4|Commit each shard once"):
            writer.commit(blocks({name: array[:4] for name, array in values.items()}))
        assert writer.committed == 0


def test_a_store_is_not_finished_before_all_rows_are_there(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
        with pytest.raises(IncompleteStoreError, match=r"4 of 11 rows.*Commit the rest"):
            writer.finish()
    assert not path.exists()


def test_a_finished_store_is_never_opened_for_writing(path):
    config, values = example()
    writer = Writer.create(path, StoreContents(**config))
    fill(writer, values)
    before = file_bytes(path)
    for again in (
        lambda: Writer.create(path, StoreContents(**config)),
        lambda: Writer.resume(path, StoreContents(**config)),
    ):
        with pytest.raises(StoreExistsError, match="--overwrite"):
            again()
    with pytest.raises(StoreExistsError, match=r"Writer\.resume"):
        writer.finish()
    assert file_bytes(path) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_overwritten_store_stays_until_the_new_one_is_complete(path):
    config, values = example()
    build(path, config, values)
    new_config, new_values = example(n=7, seed=1)
    with Writer.create(path, StoreContents(**new_config), overwrite=True) as writer:
        commit_next(writer, new_values)
    assert open_store(path).n == 11
    assert open_store(path, partial=True).n == 4
    with Writer.resume(path, StoreContents(**new_config)) as writer:  # it was begun to overwrite
        fill(writer, new_values)
    assert open_store(path).n == 7
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_overwriting_begins_an_interrupted_store_anew(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
    new_config, new_values = example(n=7, seed=1)
    with Writer.create(path, StoreContents(**new_config), overwrite=True) as writer:
        assert writer.committed == 0
        fill(writer, new_values)
    assert verify(path) == []


def test_a_folder_that_is_no_store_is_never_replaced(path):
    config, _ = example()
    path.mkdir()
    (path / "thesis.txt").write_text("five years of work")
    with pytest.raises(StoreExistsError, match="no store, so it will not be replaced"):
        Writer.create(path, StoreContents(**config), overwrite=True)
    shutil.move(path, f"{path}.partial")
    with pytest.raises(FormatError, match=r"thesis\.txt.*Choose another path"):
        Writer.resume(path, StoreContents(**config))
    with pytest.raises(FormatError, match=r"thesis\.txt.*Choose another path"):
        Writer.create(path, StoreContents(**config), overwrite=True)
    assert Path(f"{path}.partial/thesis.txt").read_text() == "five years of work"


def test_a_folder_that_cannot_be_written_is_refused_in_one_line():
    with pytest.raises(
        ActcacheError, match=r"cannot be created: Not a directory\. Choose a folder"
    ):
        Writer.create("/dev/null/a.zarr", StoreContents(**example()[0]))


def test_a_full_disk_is_reported_in_one_line_and_the_store_resumes(path):
    # The largest file size stands in for a full disk: the system refuses the same write.
    code = """
        import resource, sys
        from actcache.errors import ActcacheError
        from actcache.store.writing.contents import StoreContents
        from actcache.store.writing.writer import Writer
        from tests.support.stores import commit_next, example
        settings, values = example(n=600, shard_rows=300)
        with Writer.create(sys.argv[1], StoreContents(**settings)) as writer:
            commit_next(writer, values)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            try:
                commit_next(writer, values)
            except ActcacheError as error:
                print(error)
    """
    out = run_code(code, path, check=False)
    assert out.stdout.count("\n") == 1, out.stderr
    assert "cannot be written: File too large. 300 of 600 rows are kept: make room" in out.stdout
    assert not list(path.parent.rglob("*.tmp"))
    config, values = example(n=600, shard_rows=300)
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 300
        fill(writer, values)
    assert verify(path) == []


def test_a_write_that_fails_halfway_leaves_what_was_there_and_nothing_else(tmp_path):
    def parts():
        yield b"new"
        raise OSError(28, "No space left on device")

    file = tmp_path / "zarr.json"
    file.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        write_durably(file, parts())
    with pytest.raises(OSError, match="No space"):
        write_large_files(tmp_path, [LargeObject("zarr.json", 6, parts())])
    assert file_bytes(tmp_path) == {"zarr.json": b"old"}


def test_large_files_are_written_whole(tmp_path):
    size = 3 * WORTH_AN_EARLY_SYNC
    content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    files = [
        LargeObject(f"{i}", size, [content[:-7], b"", content[-7:].tobytes()]) for i in range(3)
    ]
    write_large_files(tmp_path, files)
    assert file_bytes(tmp_path) == {f"{i}": content.tobytes() for i in range(3)}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "1 values, expected one for each of 11"),
        ({"x": np.zeros((11, 2, 2))}, r"float64 \[11, 2, 2\]"),
        ({"x": np.zeros(11, complex)}, "complex128"),
        ({"x": np.zeros(11, "datetime64[s]")}, "datetime64"),
        ({"id": ["\ud800"] * 11}, "expected text that UTF-8 can hold"),
        ({"tokens": Ragged.of([[1]])}, "1 values, expected one for each of 11"),
    ],
)
def test_a_column_that_cannot_be_kept_is_refused_before_anything_is_written(path, columns, message):
    config, _ = example()
    with pytest.raises(MismatchError, match=message):
        Writer.create(path, StoreContents(**{**config, "columns": columns}))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("name", ["a/b", "Resid_Post", "zarr.json", "commits", "embed"])
def test_a_column_whose_name_is_taken_or_unsafe_is_refused(path, name):
    config, _ = example()
    with pytest.raises(FormatError, match=r"another name|Rename one"):
        Writer.create(path, StoreContents(**{**config, "columns": {name: np.arange(11)}}))


def test_a_store_without_rows_or_arrays_is_refused(path):
    config, _ = example()
    with pytest.raises(MismatchError, match="Give it rows"):
        Writer.create(path, StoreContents(**{**config, "n": 0, "columns": {}, "shard_rows": None}))
    with pytest.raises(MismatchError, match="Give it rows"):
        Writer.create(path, StoreContents(**{**config, "arrays": []}))


def test_leaving_the_context_frees_the_lock_even_after_an_error(path):
    config, values = example()

    def stop_halfway():
        with Writer.create(path, StoreContents(**config)) as writer:
            commit_next(writer, values)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 4


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_random_instants_every_committed_row_is_right(tmp_path):
    report = kill_test.random_kills(tmp_path, kills=10, seed=os.getpid())
    assert report.kills == 10
    assert report.wrong == 0


@pytest.mark.long
def test_a_build_killed_before_every_sync_and_rename_in_turn_resumes():
    # In a process of its own, which forks safely: it has no threads.
    out = subprocess.run(
        [sys.executable, "-m", "tests.crash.kill_test", "--steps"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.count("wrong=0") == 2


def test_rows_that_are_absent_may_be_nan_and_no_others(tmp_path):
    settings, values = example()
    name = next(iter(values))
    with Writer.create(tmp_path / "a.zarr", StoreContents(**settings)) as writer:
        rows = writer.next_rows
        block = {key: array[rows].copy() for key, array in values.items()}
        block[name] = np.asarray(block[name])
        absent = {name: np.arange(rows.stop - rows.start) == 1}
        block[name][1] = nan_of(block[name].dtype)
        with pytest.raises(NotFiniteError, match=f"'{name}' of row 1 "):
            writer.commit(block)
        block[name][0, 0, 0] = nan_of(block[name].dtype)
        with pytest.raises(NotFiniteError, match=f"'{name}' of row 0 "):
            writer.commit(block, absent=absent)
        block[name][0, 0, 0] = 0
        writer.commit(block, absent=absent)
    assert np.isnan(open_store(tmp_path / "a.zarr", partial=True).array(name)[1]).all()


def nan_of(dtype):
    return 0x7FC0 if dtype == np.uint16 else np.nan  # bfloat16 comes as its bits
