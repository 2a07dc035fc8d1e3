"""The reader: equal to zarr-python and to what was written, however it is asked; damage is found."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.errors import (
    FormatError,
    IncompleteStoreError,
    MismatchError,
    StoreNotFoundError,
)
from actcache.store.array import CONVERTED_BYTES
from actcache.store.schema import RowArray
from actcache.store.shard_maps import OPEN_MAPS
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.reference import store as reference
from tests.support.processes import ROOT, run_code
from tests.support.stores import (
    GOLDEN_CERTIFICATE,
    as_json,
    build,
    commit_next,
    example,
    file_bytes,
    golden,
    scratch,
    shaped,
    shapes,
)

GOLDEN = ROOT / "tests" / "golden" / "format_1.zarr"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


@pytest.fixture
def built(path):
    """A store of 11 rows in shards of 4, and its values as they are read."""
    config, values = example()
    return build(path, config, values), as_read(config, values)


def as_read(config, values):
    kinds = {array.name: array.dtype for array in config["arrays"]}
    return {
        name: reference.float32_of_bits(array) if kinds[name] == "bfloat16" else array
        for name, array in values.items()
    }


# --- equality -------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(shapes())
def test_our_reader_and_zarr_python_give_what_was_written(plan):
    config, values = shaped(**plan)
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        store = open_store(path, check=True)
        group: Any = zarr.open_group(path, mode="r")
        for name, truth in as_read(config, values).items():
            np.testing.assert_array_equal(store.array(name)[:], truth)
            np.testing.assert_array_equal(group[name][:], values[name])
        for name in store.columns:
            np.testing.assert_array_equal(store[name], group[name][:])
        assert verify(path) == []


def rows_of(n):
    """Ways to ask for rows, each with what NumPy makes of it."""
    numbers = st.integers(-n, n - 1)
    ends = st.none() | st.integers(-n - 1, n + 1)
    return st.one_of(
        numbers,
        st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1])),
        st.lists(numbers, max_size=6),
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
    )


def as_numpy(rows):
    return np.array(rows, int) if isinstance(rows, list) else rows


@settings(max_examples=60)
@given(shapes(), st.data())
def test_any_rows_and_layers_are_those_of_the_whole_array(plan, data):
    config, values = shaped(**plan)
    with scratch() as folder:
        store = open_store(build(Path(folder) / "a.zarr", config, values))
        for name, truth in as_read(config, values).items():
            array = store.array(name)
            rows = data.draw(rows_of(array.shape[0]))
            layers = data.draw(rows_of(array.shape[1]))
            of_layers = truth[:, as_numpy(layers)]
            np.testing.assert_array_equal(array[rows], truth[as_numpy(rows)])
            np.testing.assert_array_equal(array[rows, layers], of_layers[as_numpy(rows)])
            layer = data.draw(st.integers(-array.shape[1], array.shape[1] - 1))
            np.testing.assert_array_equal(array.layer(layer), truth[:, layer])
            if not isinstance(rows, int):
                of_layer = truth[:, layer]
                np.testing.assert_array_equal(array.layer(layer, rows), of_layer[as_numpy(rows)])


@settings(max_examples=60)
@given(shapes(), st.none() | st.integers(1, 13), st.data())
def test_batches_are_all_rows_in_order_or_those_selected(plan, size, data):
    config, values = shaped(**plan)
    n = config["n"]
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    with scratch() as folder:
        store = open_store(build(Path(folder) / "a.zarr", config, values))
        cuts = []
        for name, truth in as_read(config, values).items():
            batches = list(store.array(name).batches(size, select=mask, layers=-1))
            rows = np.concatenate([np.zeros(0, int), *(rows for rows, _ in batches)])
            np.testing.assert_array_equal(rows, np.arange(n) if mask is None else mask.nonzero()[0])
            for rows, resid in batches:
                np.testing.assert_array_equal(resid, truth[rows][:, -1:])
                assert 0 < len(rows) <= min(size or n, config["shard_rows"])
            cuts.append([rows.tolist() for rows, _ in batches])
        assert cuts.count(cuts[0]) == len(cuts)  # arrays of one store are cut alike


def test_bfloat16_is_given_as_float32_exactly_and_as_its_bits(path):
    bits = np.arange(0x10000, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80].reshape(-1, 1, 2)  # every finite value
    config, _ = example(n=len(bits), shard_rows=1000)
    config["arrays"], config["columns"] = [RowArray("a/b", 1, 2, "bfloat16")], {}
    build(path, config, {"a/b": bits})
    array = open_store(path).array("a/b")
    np.testing.assert_array_equal(
        array[:].view(np.uint32), reference.float32_of_bits(bits).view(np.uint32)
    )
    np.testing.assert_array_equal(array.bits[:], bits)
    assert (array.dtype, array.bits.dtype, array[:].dtype.name) == ("bfloat16", "uint16", "float32")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resid_post/fork", "bfloat16"),
        ("resid_post/prompt", "float16"),
        ("embed/prompt", "float32"),
    ],
)
def test_a_tensor_holds_the_same_values_in_the_dtype_that_is_kept(built, name, dtype):
    path, truth = built
    array = open_store(path, check=True).array(name)
    for rows in (slice(4, 8), slice(2, 9), [10, 0], ..., 3):
        tensor = array.tensor(rows, layers=[0])
        assert str(tensor.dtype) == f"torch.{dtype}"
        expected = truth[name][[3] if rows == 3 else rows][:, :1]
        np.testing.assert_array_equal(tensor.float().numpy(), expected.astype(np.float32))
    assert array.tensor(slice(4, 8)).data_ptr() % 16 == 0  # the map itself, from its first byte on


def test_changing_a_tensor_changes_neither_the_file_nor_what_is_read_later(built):
    path, truth = built
    array = open_store(path).resid("prompt")
    array.tensor(slice(0, 4)).mul_(0)
    np.testing.assert_array_equal(array[:], truth["resid_post/prompt"])
    np.testing.assert_array_equal(array.tensor(slice(0, 4)).numpy(), truth["resid_post/prompt"][:4])
    assert verify(path) == []


def test_rows_of_one_shard_are_a_view_of_the_file(path):
    config, values = example(shard_rows=11)
    array = open_store(build(path, config, values)).resid("prompt")
    whole = array[:]
    for view in (array.layer(1), array[3:7], next(array.batches(5))[1], array[2]):
        assert np.shares_memory(view, whole)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0


def test_batches_of_bfloat16_stay_small_once_they_are_float32():
    width = CONVERTED_BYTES // (4 * 8)
    config, values = example(n=20, shard_rows=20, arrays=[RowArray("a/b", 1, width, "bfloat16")])
    with scratch() as folder:
        array = open_store(build(Path(folder) / "a.zarr", config, values)).array("a/b")
        assert [len(rows) for rows, _ in array.batches()] == [8, 8, 4]
        assert [len(rows) for rows, _ in array.bits.batches()] == [20]


# --- what a user sees -----------------------------------------------------------------------------


def test_columns_are_arrays_that_compare_and_select(built):
    path, truth = built
    store = open_store(path)
    mask = store["behavior"] == "müßiggang"
    assert mask.dtype == bool
    assert mask.sum() == 4
    np.testing.assert_array_equal(store.resid("prompt")[mask], truth["resid_post/prompt"][mask])
    assert store.prompts[2] == "Is 2 a number?\nIs 2 a number?\n"
    assert store["label"].dtype == bool
    assert store.ragged("prompt_tokens")[4].tolist() == [0, 1, 2, 3]
    assert len(store.ragged("prompt_tokens")) == 11
    with pytest.raises(ValueError, match="read-only"):
        store["n_tokens"][0] = 1


def test_a_store_describes_itself(built):
    store = open_store(built[0])
    assert (store.n, store.n_planned, store.n_layers, store.d_model) == (11, 11, 3, 4)
    assert (store.kind, store.complete, store.certificate) == ("residuals", True, None)
    assert store.arrays == ["resid_post/prompt", "resid_post/fork", "embed/prompt"]
    assert store.sites == ["resid_post", "embed"]
    assert store.positions == ["prompt", "fork"]
    assert store.config["batch_tokens"] == 64
    assert store.provenance["seed"] is None
    assert store.shard_reason == "as asked"
    assert store.n_bytes == 11 * (3 * 4 * 2 + 3 * 4 * 2 + 4 * 4)
    assert store.resid("prompt", site="embed").shape == (11, 1, 4)
    assert "n=11" in repr(store)


def test_strings_of_any_characters_are_read_back(path):
    texts = ["", "a\0", "\0", "line\nbreak", "𝔘nicode", "trailing ", "x" * 3000, "ё", "", "-", "1"]
    config, values = example()
    config["columns"] = {"prompt": texts, "id": np.array(texts, object)}
    store = open_store(build(path, config, values))
    assert store["prompt"].tolist() == store["id"].tolist() == texts


def test_one_long_prompt_does_not_make_all_of_them_as_wide(path):
    n = 40
    config, values = example(n=n)
    config["columns"] = {"prompt": ["x" * 500_000] + ["short"] * (n - 1)}
    prompts = open_store(build(path, config, values))["prompt"]
    assert prompts.dtype == object
    assert (prompts == "short").sum() == n - 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s["nothing"], "xpected one of id, behavior"),
        (lambda s: s["prompt_tokens"], r"read with \.ragged"),
        (lambda s: s.ragged("id"), "xpected one of prompt_tokens"),
        (lambda s: s.resid("positive"), "xpected one of resid_post/prompt"),
        (lambda s: s.resid("prompt").bits, "expected bfloat16"),
        (lambda s: next(s.resid("prompt").batches(0)), "expected 1 or more"),
        (lambda s: next(s.resid("prompt").batches(select=np.ones(3, bool))), r"expected \[11\]"),
    ],
)
def test_a_missing_name_is_refused_with_those_the_store_has(built, ask, message):
    with pytest.raises(MismatchError, match=message):
        ask(open_store(built[0]))


@pytest.mark.parametrize(
    "ask",
    [
        lambda a: a[11],
        lambda a: a[-12],
        lambda a: a[[0, 11]],
        lambda a: a[0, 3],
        lambda a: a.layer(-4),
        lambda a: a[np.zeros(3, bool)],
        lambda a: a[np.zeros((2, 2), int)],
        lambda a: a[np.array([0.5])],
    ],
)
def test_rows_and_layers_beyond_the_end_are_index_errors(built, ask):
    with pytest.raises(IndexError):
        ask(open_store(built[0]).resid("prompt"))


def test_a_sweep_has_no_d_model(path):
    config, values = example()
    config["kind"] = "sweep"
    store = open_store(build(path, config, values))
    with pytest.raises(MismatchError, match="holds a sweep, expected residuals"):
        _ = store.d_model


def test_closing_releases_files_and_arrays_stay_valid(built):
    path, truth = built
    with open_store(path) as store:
        view = store.resid("prompt")[0:2]
    np.testing.assert_array_equal(view, truth["resid_post/prompt"][:2])
    np.testing.assert_array_equal(store.resid("prompt")[:], truth["resid_post/prompt"])


# --- partial stores -------------------------------------------------------------------------------


def test_an_interrupted_store_opens_only_when_asked_for_and_shows_what_counts(path):
    config, values = example()
    with Writer.create(path, StoreContents(**config)) as writer:
        commit_next(writer, values)
        commit_next(writer, values)
    for where in (path, Path(f"{path}.partial")):
        with pytest.raises(IncompleteStoreError, match=r"8 of 11 rows.*--resume"):
            open_store(where)
        with pytest.raises(IncompleteStoreError, match=r"8 of 11 rows.*--resume"):
            verify(where)
        store = open_store(where, partial=True)
        assert (store.n, store.n_planned, store.complete) == (8, 11, False)
        assert store.resid("prompt").shape == (8, 3, 4)
        np.testing.assert_array_equal(store.resid("prompt")[:], values["resid_post/prompt"][:8])
        assert len(store["id"]) == len(store.ragged("prompt_tokens")) == 8
        assert len(store["layer"]) == 3
        assert verify(where, partial=True) == []


def test_a_store_without_a_committed_row_has_none(path):
    config, _ = example()
    Writer.create(path, StoreContents(**config)).close()
    store = open_store(path, partial=True)
    assert store.resid("prompt")[:].shape == (0, 3, 4)
    assert list(store.resid("prompt").batches()) == []
    assert len(store["id"]) == 0


def test_a_store_is_pickled_without_what_it_has_read(path):
    config, values = example()
    build(path, config, values)
    store = open_store(path, check=True)
    size = len(pickle.dumps(store))
    assert store["prompt"].size
    assert store.resid("prompt")[:].size
    again = pickle.loads(pickle.dumps(store))

    assert len(pickle.dumps(store)) < size + 200  # which blocks were checked
    np.testing.assert_array_equal(again["prompt"], store["prompt"])
    np.testing.assert_array_equal(again.resid("prompt")[:], store.resid("prompt")[:])


def test_a_store_that_was_killed_while_it_was_created_holds_nothing_yet(path):
    config, _ = example()
    Writer.create(path, StoreContents(**config)).close()
    Path(f"{path}.partial/commits/c.0.0").unlink()
    for partial in (False, True):
        with pytest.raises(IncompleteStoreError, match=r"nothing yet.*--resume"):
            open_store(path, partial=partial)


def test_the_error_of_a_missing_store_says_how_to_build_one(path):
    with pytest.raises(StoreNotFoundError, match="Build one with: actcache build"):
        open_store(path)
    path.mkdir()
    with pytest.raises(FormatError, match="no folder with a zarr"):
        open_store(path)


# --- the golden store -----------------------------------------------------------------------------


def test_the_golden_store_holds_the_committed_values():
    expected = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    assert as_json(open_store(GOLDEN, check=True)) == expected
    assert verify(GOLDEN) == []


def test_the_writer_still_writes_the_golden_store_byte_for_byte(path):
    build(path, *golden(), certificate=GOLDEN_CERTIFICATE)
    assert file_bytes(path) == file_bytes(GOLDEN)


# --- processes ------------------------------------------------------------------------------------


def test_zarr_python_lists_and_reads_everything_without_a_warning(built):
    group: Any = zarr.open_group(built[0], mode="r")
    names = {name for name, _ in group.members(max_depth=None)}
    assert {
        "resid_post",
        "resid_post/prompt",
        "embed/prompt",
        "id",
        "prompt_tokens_offsets",
    } < names
    assert "resid_post" in str(group.tree())
    assert group["commits"][0].tobytes().startswith(b'{"record":0,')
    assert group.attrs["complete"] is True
    assert group["resid_post/prompt"].metadata.dimension_names == ("n", "layer", "d_model")


def test_a_store_opens_where_torch_and_zarr_cannot_be_imported(built):
    code = """
        import sys
        class Blocked:
            def find_spec(self, name, *args):
                if name.split(".")[0] in ("torch", "zarr", "transformers", "transformer_lens", "scipy"):
                    raise ImportError(name)
        sys.meta_path.insert(0, Blocked())
        from actcache.store.store import open_store, verify
        store = open_store(sys.argv[1], check=True)
        print(store.resid("prompt").layer(1).shape, store["id"][0], verify(sys.argv[1]))
    """
    out = run_code(code, built[0])
    assert out.stdout == "(11, 4) row-0 []\n", out.stderr


def test_a_store_goes_to_spawned_workers_without_its_values(built):
    path, truth = built
    array = open_store(path).resid("prompt")
    array[:]
    sent = pickle.dumps(array)
    np.testing.assert_array_equal(pickle.loads(sent)[:], truth["resid_post/prompt"])
    assert truth["resid_post/prompt"][:4, 0].tobytes() not in sent


def test_many_shards_do_not_use_up_the_file_descriptors():
    config, values = example(
        n=3 * OPEN_MAPS, shard_rows=1, arrays=[RowArray("a/b", 1, 2, "float32")]
    )
    code = """
        import resource, sys
        from actcache.store.shard_maps import OPEN_MAPS
        from actcache.store.store import open_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAPS + 40, OPEN_MAPS + 40))
        array = open_store(sys.argv[1]).array("a/b")
        print(array[:].shape, array.layer(0).shape, sum(len(rows) for rows, _ in array.batches()))
    """
    n = 3 * OPEN_MAPS
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        assert run_code(code, path).stdout == f"({n}, 1, 2) ({n}, 2) {n}\n"


def test_a_store_without_references_has_no_file_open():
    config, values = example()
    with scratch() as folder:
        store = open_store(build(Path(folder) / "a.zarr", config, values))
        store.resid("prompt")[:]
        assert open_below(folder)
        del store
        assert not open_below(folder)


def open_below(folder):
    """Files of this process that are open, or mapped, below a folder."""
    names = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    return [name for name in names if name.startswith(folder)]


def test_a_fork_reads_what_its_parent_has_open(built):
    code = """
        import os, sys
        from actcache.store.store import open_store
        array = open_store(sys.argv[1]).resid("prompt")
        parent = array[:].sum()
        child = os.fork()
        if child == 0:
            os._exit(0 if array[:].sum() == parent and array[[9, 1]].shape == (2, 3, 4) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_code(code, built[0]).stdout == "0\n"
