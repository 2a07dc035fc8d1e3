"""The reader: equal to zarr-python and to what was written, however it is asked; damage is found."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
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
from actcache.maps import OPEN_MAPS
from actcache.schema import RowArray
from actcache.store import open_store, verify
from actcache.writer import Writer
from tests import reference
from tests.stores import (
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

ROOT = Path(__file__).parents[1]
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
        name: reference.float32_of_bits(each) if kinds[name] == "bfloat16" else each
        for name, each in values.items()
    }


def run(code, *args):
    """Run Python in another process, from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# --- equality -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=60)
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


def test_what_lies_in_one_shard_is_a_view_of_the_file(path):
    config, values = example(shard_rows=11)
    array = open_store(build(path, config, values)).resid("prompt")
    whole = array[:]
    for view in (array.layer(1), array[3:7], next(array.batches(5))[1], array[2]):
        assert np.shares_memory(view, whole)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0


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


def test_a_store_says_what_it_is(built):
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


def test_strings_survive_whatever_they_hold(path):
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
        (lambda s: s["nothing"], "expected one of id, behavior"),
        (lambda s: s["prompt_tokens"], r"read with \.ragged"),
        (lambda s: s.ragged("id"), "expected one of prompt_tokens"),
        (lambda s: s.resid("positive"), "expected one of resid_post/prompt"),
        (lambda s: s.resid("prompt").bits, "expected bfloat16"),
        (lambda s: next(s.resid("prompt").batches(0)), "expected 1 or more"),
        (lambda s: next(s.resid("prompt").batches(select=np.ones(3, bool))), r"expected \[11\]"),
    ],
)
def test_what_a_store_does_not_have_is_said_with_what_it_has(built, ask, message):
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


def test_closing_lets_go_of_files_and_arrays_stay_valid(built):
    path, truth = built
    with open_store(path) as store:
        view = store.resid("prompt")[0:2]
    np.testing.assert_array_equal(view, truth["resid_post/prompt"][:2])
    np.testing.assert_array_equal(store.resid("prompt")[:], truth["resid_post/prompt"])


# --- partial stores -------------------------------------------------------------------------------


def test_an_interrupted_store_opens_only_when_asked_for_and_shows_what_counts(path):
    config, values = example()
    with Writer.create(path, **config) as writer:
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
    Writer.create(path, **config).close()
    store = open_store(path, partial=True)
    assert store.resid("prompt")[:].shape == (0, 3, 4)
    assert list(store.resid("prompt").batches()) == []
    assert len(store["id"]) == 0


def test_a_store_that_was_killed_while_it_was_created_holds_nothing_yet(path):
    config, _ = example()
    Writer.create(path, **config).close()
    Path(f"{path}.partial/commits/c.0.0").unlink()
    for partial in (False, True):
        with pytest.raises(IncompleteStoreError, match=r"nothing yet.*--resume"):
            open_store(path, partial=partial)


def test_no_store_is_said_with_how_to_get_one(path):
    with pytest.raises(StoreNotFoundError, match="Build one with: actcache build"):
        open_store(path)
    path.mkdir()
    with pytest.raises(FormatError, match="no folder with a zarr"):
        open_store(path)


# --- damage ---------------------------------------------------------------------------------------


def small(path):
    """A store of a few hundred bytes of values and every kind of file."""
    config, values = example(n=3, shard_rows=2)
    config["columns"] = {
        name: config["columns"][name] for name in ("id", "label", "prompt_tokens", "layer")
    }
    return build(path, config, values, certificate={"worst": 0.5})


@pytest.mark.slow
def test_verify_finds_a_flip_of_any_byte(path):
    small(path)
    assert verify(path) == []
    rng = np.random.default_rng(0)
    for name, raw in file_bytes(path).items():
        # Every byte of values and checksums; of documents and records a few dozen.
        is_data = "/c." in name and not name.startswith("commits")
        places = range(len(raw)) if is_data else rng.choice(len(raw), min(len(raw), 25), False)
        for at in places:
            flipped = bytearray(raw)
            flipped[at] ^= 1 << rng.integers(8)
            (path / name).write_bytes(flipped)
            try:
                assert verify(path), f"{name} at {at}"
            except FormatError:
                assert name == "zarr.json"  # a newer format
        (path / name).write_bytes(raw)
    assert verify(path) == []


@pytest.mark.slow
def test_verify_finds_every_file_that_is_missing_short_long_or_a_link(path):
    small(path)
    for name, raw in file_bytes(path).items():
        file = path / name
        outside = path.parent / "outside"
        outside.write_bytes(raw)
        for damage in (
            lambda file=file: None,
            lambda file=file, raw=raw: file.write_bytes(raw[:-1]),
            lambda file=file, raw=raw: file.write_bytes(raw + b"\0"),
            lambda file=file: file.write_bytes(b""),
            lambda file=file, outside=outside: file.symlink_to(outside),
            lambda file=file: os.mkfifo(file),
            lambda file=file: file.mkdir(),
        ):
            file.unlink()
            damage()
            try:
                assert verify(path), name
                with pytest.raises(FormatError):
                    read_all(path)
            except FormatError:
                assert name == "zarr.json"  # no store at all
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            file.write_bytes(raw)
    assert verify(path) == []


def read_all(path):
    store = open_store(path)
    for name in (*store.columns, *store.columns.ragged_names):
        store.columns.ragged(name) if name in store.columns.ragged_names else store[name]
    for name in store.arrays:
        store.array(name)[:]


def test_verify_reports_every_byte_as_it_goes(built):
    seen: list[int] = []
    verify(built[0], on_bytes=seen.append)
    assert sum(seen) == open_store(built[0]).n_bytes
    assert len(seen) == 3 * (3 + 3 + 1)


@pytest.mark.parametrize(
    "name", ["notes.txt", "commits/c.9.0", "embed/prompt/c.9.0.0", "x/zarr.json"]
)
def test_verify_finds_what_does_not_belong_there(built, name):
    file = built[0] / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    assert [problem.found for problem in verify(built[0])] == ["something that no store has"]


def test_a_folder_that_is_a_link_is_not_followed(built):
    path, _ = built
    for name in ("resid_post/prompt", "resid_post", "commits", "id"):
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")
        with pytest.raises(FormatError, match="something else, expected a folder"):
            open_store(path)
        (path / name).unlink()
        (path.parent / "elsewhere").rename(path / name)
    assert verify(path) == []


def test_a_store_may_itself_be_reached_through_a_link(built):
    path, truth = built
    link = path.parent / "latest.zarr"
    link.symlink_to(path)
    np.testing.assert_array_equal(open_store(link).resid("prompt")[:], truth["resid_post/prompt"])


def test_reading_checks_blocks_only_when_asked_to(built):
    path, truth = built
    file = path / "resid_post/prompt/c.1.0.0"
    raw = bytearray(file.read_bytes())
    raw[-60] ^= 1  # in the last layer
    file.write_bytes(raw)
    open_store(path).resid("prompt")[:]
    checked = open_store(path, check=True).resid("prompt")
    np.testing.assert_array_equal(checked[:, :2], truth["resid_post/prompt"][:, :2])
    with pytest.raises(FormatError, match="other bytes at layer 2"):
        checked.layer(2)
    with pytest.raises(FormatError, match="other bytes at layer 2"):
        checked[5]


def test_a_whole_shard_of_another_store_is_found(tmp_path):
    config, values = example()
    one = build(tmp_path / "one.zarr", config, values)
    other = build(tmp_path / "other.zarr", *example(seed=1))
    shutil.copy(other / "embed/prompt/c.0.0.0", one / "embed/prompt/c.0.0.0")
    assert [problem.where[-20:] for problem in verify(one)] == ["embed/prompt/c.0.0.0"]
    shutil.copy(other / "commits/c.1.0", one / "commits/c.1.0")
    with pytest.raises(FormatError, match="chains to the record before it"):
        open_store(one)


def test_a_newer_format_asks_for_an_upgrade(built):
    document = json.loads((built[0] / "zarr.json").read_text())
    document["attributes"]["format"] = 2
    (built[0] / "zarr.json").write_text(json.dumps(document))
    for reader in (open_store, verify):
        with pytest.raises(FormatError, match=r"reads 1\. Upgrade actcache"):
            reader(built[0])


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
        from actcache.store import open_store, verify
        store = open_store(sys.argv[1], check=True)
        print(store.resid("prompt").layer(1).shape, store["id"][0], verify(sys.argv[1]))
    """
    out = run(code, built[0])
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
        from actcache.maps import OPEN_MAPS
        from actcache.store import open_store
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAPS + 40, OPEN_MAPS + 40))
        array = open_store(sys.argv[1]).array("a/b")
        print(array[:].shape, array.layer(0).shape, sum(len(rows) for rows, _ in array.batches()))
    """
    n = 3 * OPEN_MAPS
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        assert run(code, path).stdout == f"({n}, 1, 2) ({n}, 2) {n}\n"


def test_a_store_that_is_forgotten_has_no_file_open():
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
        from actcache.store import open_store
        array = open_store(sys.argv[1]).resid("prompt")
        parent = array[:].sum()
        child = os.fork()
        if child == 0:
            os._exit(0 if array[:].sum() == parent and array[[9, 1]].shape == (2, 3, 4) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run(code, built[0]).stdout == "0\n"
