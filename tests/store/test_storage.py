"""The storage seam: the fast path of local files equals the general path, and files are atomic."""

import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.errors import (
    ActcacheError,
    DamageError,
    IncompleteStoreError,
    StoreExistsError,
)
from actcache.store.storage.atomic import atomic_path, remove
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.memory import MemoryStorage
from actcache.store.store import open_store
from actcache.store.verify import verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.processes import ROOT, run_code
from tests.support.stores import (
    GOLDEN_CERTIFICATE,
    as_json,
    build,
    commit_next,
    example,
    file_bytes,
    fill,
    golden,
    scratch,
    shaped,
    shapes,
)

INTERRUPTED = ROOT / "tests" / "golden" / "format_1_interrupted.zarr.partial"


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return LocalStorage(tmp_path / "s") if request.param == "local" else MemoryStorage("s")


def assert_same_answers(fast, general, rng):
    """Two open stores answer every question alike."""
    assert as_json(fast) == as_json(general)
    assert fast.digest == general.digest
    for name in fast.arrays:
        local, memory = fast.array(name), general.array(name)
        rows = rng.integers(0, fast.n, 5)
        layers = rng.integers(0, local.shape[1], 3)
        for key in (rows, (rows, layers), (slice(1, None), layers), (slice(0, 2), 0), (0, 0)):
            np.testing.assert_array_equal(local[key], memory[key])
        assert local.tensor(slice(0, 1)).equal(memory.tensor(slice(0, 1)))
        assert local.tensor(rows).equal(memory.tensor(rows))
        for (n, values), (m, others) in zip(local.batches(3), memory.batches(3), strict=True):
            np.testing.assert_array_equal(n, m)
            np.testing.assert_array_equal(values, others)


@settings(max_examples=30)
@given(shapes(), st.integers(0, 4))
def test_a_store_in_files_equals_one_in_memory_in_every_byte_and_answer(plan, n_before):
    config, values = shaped(**plan)
    contents = StoreContents(**config)
    memory = MemoryStorage()
    with Writer.resume(memory, contents) as writer:  # interrupted once, anywhere
        for _ in range(n_before):
            if writer.committed < writer.n:
                commit_next(writer, values)
        assert verify(memory, partial=True) == []
    with Writer.resume(memory, contents) as writer:
        fill(writer, values, certificate={"worst": 0.5})
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values, certificate={"worst": 0.5})
        assert file_bytes(path) == memory.objects
        rng = np.random.default_rng(plan["seed"])
        with open_store(path, check=True) as fast, open_store(memory, check=True) as general:
            assert general.complete
            assert_same_answers(fast, general, rng)
        assert verify(path) == verify(memory) == []


@settings(max_examples=30)
@given(st.data())
def test_damage_is_the_same_in_files_and_in_memory(data):
    config, values = example(n=3, shard_rows=2)
    with scratch() as folder:
        path = build(Path(folder) / "a.zarr", config, values)
        memory = MemoryStorage(str(path))  # the same words in messages
        memory.objects = file_bytes(path)
        name = data.draw(st.sampled_from(sorted(memory.objects)))
        raw = bytearray(memory.objects[name])
        how = data.draw(st.sampled_from(["flip", "cut", "remove", "add"]))
        if how == "flip":
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del raw[-1]
        if how == "remove":
            (path / name).unlink()
            del memory.objects[name]
        else:
            target = f"{name}x" if how == "add" else name
            (path / target).write_bytes(raw)
            memory.objects[target] = bytes(raw)

        def outcome(where):
            try:
                return verify(where)
            except ActcacheError as error:
                return str(error)

        assert outcome(path) == outcome(memory) != []


def test_a_store_in_memory_has_one_writer_and_is_never_overwritten():
    config, values = example()
    contents = StoreContents(**config)
    memory = MemoryStorage()
    with Writer.create(memory, contents) as writer:
        with pytest.raises(ActcacheError, match=r"written already.*Wait for it"):
            Writer.resume(memory, contents)
        commit_next(writer, values)
    with pytest.raises(IncompleteStoreError, match="4 of 11 rows"):
        open_store(memory)
    with pytest.raises(StoreExistsError, match="not empty"):
        Writer.create(memory, contents, overwrite=True)
    with Writer.resume(memory, contents) as writer:
        fill(writer, values)
    with pytest.raises(StoreExistsError, match="finished store"):
        Writer.resume(memory, contents)
    assert open_store(memory).n == 11


class DyingStorage(MemoryStorage):
    """Dies before change number `left`, as a process may at any time."""

    left = -1

    def change(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def write(self, name, parts):
        parts = list(parts)
        self.change()
        super().write(name, parts)

    def remove(self, name):
        self.change()
        super().remove(name)


def test_a_store_without_renames_survives_death_before_every_change():
    config, values = example(n=5, shard_rows=2)
    contents = StoreContents(**config)
    whole = MemoryStorage()
    with Writer.create(whole, contents) as writer:
        fill(writer, values, certificate={"worst": 0.5})
    step, died = 0, True
    while died:
        step, died = step + 1, False
        storage = DyingStorage()
        for deaths in (1, 2):  # the second one within the resumed build
            storage.left = step if deaths == 1 else 1 + step % 11
            try:
                with Writer.resume(storage, contents) as writer:
                    fill(writer, values, certificate={"worst": 0.5})
                break
            except KeyboardInterrupt:
                died = True
            if storage.exists("commits/c.0.0"):
                assert verify(storage, partial=True) == []
                store = open_store(storage, partial=True)
                np.testing.assert_array_equal(
                    store.resid("prompt")[:], values["resid_post/prompt"][: store.n]
                )
                if not store.complete:
                    with pytest.raises(IncompleteStoreError):
                        open_store(storage)
        storage.left = -1
        begun = storage.exists("commits/c.0.0")
        if not begun and storage.exists("zarr.json"):
            with pytest.raises(IncompleteStoreError, match="nothing yet"):
                open_store(storage, partial=True)
        if not begun or not open_store(storage, partial=True).complete:
            with Writer.resume(storage, contents) as writer:
                fill(writer, values, certificate={"worst": 0.5})
        assert storage.objects == whole.objects, step
    assert step > 30


# --- a store is finished when its log is sealed ---------------------------------------------------


def test_an_unfinished_store_is_unfinished_under_any_name(tmp_path):
    config, values = example()
    with Writer.create(tmp_path / "a.zarr", StoreContents(**config)) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
    renamed = tmp_path / "b.zarr"
    shutil.copytree(tmp_path / "a.zarr.partial", renamed)
    for reader in (open_store, verify):
        with pytest.raises(IncompleteStoreError, match=r"b\.zarr' holds 11 of 11 rows.*--resume"):
            reader(renamed)
    assert not open_store(renamed, partial=True).complete
    assert verify(renamed, partial=True) == []


def test_a_sealed_store_is_finished_even_in_its_partial_folder(tmp_path):
    config, values = example()
    path = build(tmp_path / "a.zarr", config, values)
    partial = tmp_path / "a.zarr.partial"
    path.rename(partial)
    assert open_store(partial).complete
    assert verify(partial) == []
    with pytest.raises(IncompleteStoreError, match="--resume"):
        open_store(path)  # its own name is still to come
    with Writer.resume(path, StoreContents(**config)) as writer:
        fill(writer, values)
    assert open_store(path).complete


def test_a_seal_whose_document_is_missing_does_not_finish_a_store(tmp_path):
    config, values = example()
    memory = MemoryStorage()
    with Writer.create(memory, StoreContents(**config)) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
        document = memory.objects["zarr.json"]
        writer.finish()
    memory.objects["zarr.json"] = document  # as a kill between the two leaves it
    with pytest.raises(IncompleteStoreError):
        open_store(memory)
    with Writer.resume(memory, StoreContents(**config)) as writer:
        assert writer.committed == 11
        writer.finish()
    assert verify(memory) == []


def test_the_interrupted_golden_store_opens_verifies_and_resumes_to_the_finished_one(tmp_path):
    config, values = golden()
    assert verify(INTERRUPTED, partial=True) == []
    store = open_store(INTERRUPTED, partial=True)
    assert (store.n, store.n_planned) == (2, 3)
    np.testing.assert_array_equal(store.resid("prompt")[:], values["resid_post/prompt"][:2])
    with pytest.raises(IncompleteStoreError, match="2 of 3 rows"):
        open_store(INTERRUPTED)

    path = tmp_path / "a.zarr"
    shutil.copytree(INTERRUPTED, f"{path}.partial")
    with Writer.resume(path, StoreContents(**config)) as writer:
        assert writer.committed == 2
        fill(writer, values, certificate=GOLDEN_CERTIFICATE)
    assert file_bytes(path) == file_bytes(ROOT / "tests" / "golden" / "format_1.zarr")


# --- what every storage can do --------------------------------------------------------------------


def test_objects_are_written_listed_read_and_removed(storage):
    release = storage.lock()
    storage.write("a/b/x", [b"12", np.arange(2, dtype=np.uint8)])
    storage.write_small({"a/y": b"", "z": b"345"})
    assert sorted(storage.list()) == ["a/", "z"]
    assert sorted(storage.list("a")) == ["a/b/", "a/y"]
    assert storage.list("nowhere") == []
    assert storage.read("a/b/x") == b"12\0\1"
    assert storage.read_range("a/b/x", 1, 3) == b"2\0"
    assert (storage.size("a/b/x"), storage.size("a/y")) == (4, 0)
    storage.write("z", [b"6"])
    assert storage.read("z", n_bytes=1, at_most=1) == b"6"
    for wrong in (
        lambda: storage.read("z", n_bytes=2),
        lambda: storage.read("a/b/x", at_most=3),
        lambda: storage.read_range("z", 0, 2),
        lambda: storage.read("nothing"),
        lambda: storage.size("nothing"),
    ):
        with pytest.raises(DamageError):
            wrong()
    storage.remove("a/b")
    storage.remove("nothing")
    assert not storage.exists("a/b/x")
    assert storage.exists("a/y")
    with pytest.raises(ActcacheError, match="expected one writer"):
        storage.lock()
    release()
    storage.lock()()


def test_exactly_one_of_several_racing_writers_wins(storage):
    storage.lock()
    wins: dict[str, list[int]] = {f"log/{name}": [] for name in range(20)}
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        for name, winners in wins.items():
            if storage.put_if_absent(name, [bytes([number]) * 1000]):
                winners.append(number)

    racers = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    for name, [winner] in wins.items():
        assert storage.read(name) == bytes([winner]) * 1000
    assert sorted(storage.list("log")) == sorted(wins)  # no temporary is left


def test_a_storage_can_be_pickled_for_another_process(storage):
    storage.write("x", [b"1"]) if isinstance(storage, MemoryStorage) else storage.write_small(
        {"x": b"1"}
    )
    assert pickle.loads(pickle.dumps(storage)).read("x") == b"1"


# --- the atomic writer ----------------------------------------------------------------------------


def test_a_file_or_folder_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.npz"
    with atomic_path(path) as temporary:
        assert temporary.name == path.name  # some writers look at it
        assert temporary.parent.parent == path.parent
        temporary.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    with atomic_path(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "x").write_bytes(b"2")
    assert file_bytes(tmp_path) == {"new/a.npz": b"1", "folder/inner/x": b"2"}


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fails():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert file_bytes(tmp_path) == {"a.json": b"old"}


def test_a_taken_name_is_replaced_only_if_asked_and_a_folder_never(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(StoreExistsError, match="--overwrite"), atomic_path(path, overwrite=False):
        pass
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(StoreExistsError, match="Choose another path"),
        atomic_path(tmp_path / "folder"),
    ):
        pass
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_writers_of_one_path_do_not_interfere(tmp_path):
    path = tmp_path / "a.zarr"

    def write_both(make):
        with atomic_path(path, overwrite=False) as first:
            make(first, 1)
            with atomic_path(path, overwrite=False) as second:
                make(second, 2)
                make(first, 3)

    def file(temporary, number):
        with temporary.open("ab") as opened:
            opened.write(bytes([number]))

    def folder(temporary, number):
        temporary.mkdir(exist_ok=True)
        file(temporary / "x", number)

    for make, raw in ((file, {"a.zarr": b"\2"}), (folder, {"a.zarr/x": b"\2"})):
        with pytest.raises(StoreExistsError, match="exists already"):
            write_both(make)
        assert file_bytes(tmp_path) == raw
        remove(path)


def test_the_next_writer_removes_temporary_files_of_a_dead_one(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        from actcache.store.storage.atomic import atomic_path
        with atomic_path(Path(sys.argv[1])) as temporary:
            temporary.write_bytes(b"half")
            os._exit(1)
    """
    path, other = tmp_path / "a.npz", tmp_path / "a.npz.b"
    run_code(code, path, check=False)
    run_code(code, other, check=False)
    assert len(file_bytes(tmp_path)) == 2
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
    assert [raw for name, raw in file_bytes(tmp_path).items() if "a.npz.b" not in name] == [b"new"]


def test_a_file_has_its_name_only_once_it_and_its_folder_are_on_disk(tmp_path, monkeypatch):
    path, calls = tmp_path / "a.json", []

    def noted(name, call):
        def note_and_call(*args):
            target = args[0] if name != "fsync" else Path(f"/proc/self/fd/{args[0]}").readlink()
            calls.append((name, Path(target).name))
            return call(*args)

        return note_and_call

    for name in ("fsync", "rename", "replace", "link"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    for overwrite, naming in ((False, "link"), (True, "replace")):
        calls.clear()
        with atomic_path(path, overwrite=overwrite) as temporary:
            temporary.write_bytes(b"new")
        assert calls == [("fsync", "a.json"), (naming, "a.json"), ("fsync", tmp_path.name)]
