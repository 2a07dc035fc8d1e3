"""The life of a folder of stores, at random, beside a model of it in memory.

    python -m tests.crash.store_life --steps 10000

Stores are created, committed to, killed, resumed, overwritten, read while they are open, cut,
merged, exported, imported, renamed and deleted. After each step every store that the model has opens
and holds its rows, and the folder holds nothing else.
"""

import argparse
import hashlib
import os
import shutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actcache.errors import (
    ActcacheError,
    IncompleteStoreError,
    MismatchError,
    StoreExistsError,
    StoreNotFoundError,
)
from actcache.exchange import export, import_store
from actcache.store.copies.copy import subset
from actcache.store.copies.merge import merge
from actcache.store.copies.selection import Selection
from actcache.store.store import Store, open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.partial import discard
from actcache.store.writing.writer import Writer
from tests.support.stores import commit_next, example, scratch

NAMES = st.sampled_from(["a.zarr", "b.zarr", "c"])
PLANS = st.integers(0, 7)
MOST_ROWS = 40
DIES_BEFORE = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")


def plan(number):
    """Settings and values of one of eight small stores; no two have a row in common.

    Their shards are of one size, so that one could be taken for another's.
    """
    config, values = example(n=2 + number, shard_rows=2, seed=number)
    config["columns"]["id"] = [f"{number}-{i}" for i in range(2 + number)]
    return config, values


@dataclass
class Rows:
    """What a store holds: the id and the values of each row."""

    ids: list[str]
    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, number):
        config, values = plan(number)
        return cls(config["columns"]["id"], values)

    def take(self, rows):
        numbers = np.arange(len(self.ids))[rows]
        ids = [self.ids[i] for i in numbers]
        return Rows(ids, {name: array[numbers] for name, array in self.values.items()})


@dataclass
class Begun:
    """A store that is not finished."""

    plan: int
    committed: int = 0
    replaces: bool = False


@dataclass
class Reader:
    """A store that was opened at some time."""

    store: Store
    rows: Rows
    name: str
    stale: bool = field(default=False)
    """Whether something else came into its place, or nothing."""

    moved: bool = field(default=False)
    """Whether it was finished since it was last read, and so has another name."""


class Life(RuleBasedStateMachine):
    """A folder of stores and its model."""

    steps = kills = warned_readers = 0

    def __init__(self):
        super().__init__()
        self._scratch = scratch()
        self.folder = Path(self._scratch.name) / "stores"
        self.folder.mkdir()
        self.outside = Path(self._scratch.name) / "outside"
        self.finished: dict[str, Rows] = {}
        self.begun: dict[str, Begun] = {}
        self.readers: list[Reader] = []

    def teardown(self):
        for reader in self.readers:
            reader.store.close()
        self._scratch.cleanup()

    # --- writing ----------------------------------------------------------------------------------

    @rule(name=NAMES, number=PLANS, overwrite=st.booleans())
    def create(self, name, number, overwrite):
        contents = StoreContents(**plan(number)[0])
        if not overwrite and (name in self.finished or name in self.begun):
            refused(StoreExistsError, lambda: Writer.create(self.folder / name, contents))
            return
        Writer.create(self.folder / name, contents, overwrite=overwrite).close()
        if name in self.begun:
            self._stale(name, finished=False)
        self.begun[name] = Begun(number, replaces=overwrite)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), shards=st.integers(0, 4))
    def resume_and_commit(self, data, shards):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        begun = self.begun[name]
        config, values = plan(begun.plan)
        if self._is_taken(name):
            return
        with Writer.resume(self.folder / name, StoreContents(**config)) as writer:
            assert writer.committed == begun.committed
            for _ in range(shards):
                if writer.committed < writer.n:
                    commit_next(writer, values)
            begun.committed = writer.committed

    @rule(name=NAMES, number=PLANS)
    def build(self, name, number):
        """In one go, whatever lies there."""
        build(self.folder / name, number, overwrite=True)
        if self.begun.pop(name, None):
            self._stale(name, finished=False)
        self._finished(name, Rows.of(number))

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def finish(self, data):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        if not self._is_taken(name):
            build_or_resume(self.folder / name, self.begun[name].plan)
            self._finished(name, Rows.of(self.begun.pop(name).plan))

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), number=PLANS)
    def resume_with_other_contents(self, data, number):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        if number != self.begun[name].plan:
            contents = StoreContents(**plan(number)[0])
            refused(MismatchError, lambda: Writer.resume(self.folder / name, contents))

    @rule(name=NAMES, number=PLANS, overwrite=st.booleans(), step=st.integers(1, 150))
    def build_and_die(self, name, number, overwrite, step):
        """Whatever the instant, `--resume` alone goes on; where nothing was begun, it says so."""
        if (name in self.finished or name in self.begun) and not overwrite:
            return
        path, rows = self.folder / name, Rows.of(number)
        before = self.finished.get(name)
        died = dies_at(step, lambda: build(path, number, overwrite=overwrite))
        Life.kills += died
        self._observe(name, number, rows, before, overwrite=overwrite)

    def _observe(self, name, number, rows, before, *, overwrite):
        """Bring the model to what a death left, which must be something between before and after."""
        path = self.folder / name
        old_part = self.begun.pop(name, None)
        try:
            store = open_store(path)
        except (IncompleteStoreError, StoreNotFoundError):
            if before is not None:  # between the old one's renaming and the new one's
                assert open_store(path, partial=True).n == len(rows.ids)
                self._stale(name)
                del self.finished[name]
        else:
            if before is None or store["id"].tolist() != before.ids:
                self._stale(name)
                self.finished[name] = rows
            store.close()
        try:
            part = open_store(f"{path}.partial", partial=True)
        except (IncompleteStoreError, StoreNotFoundError):
            pass
        else:
            of = part.n_planned - len(Rows.of(0).ids)  # each plan has a row more than the last
            assert_rows(part, Rows.of(of).take(slice(part.n)))
            self.begun[name] = Begun(of, part.n, replaces=True)
            part.close()
        if old_part and (name not in self.begun or self.begun[name].plan != old_part.plan):
            self._stale(name, finished=False)
        self._resume_alone(name, number, before, overwrite=overwrite)

    def _resume_alone(self, name, number, before, *, overwrite):
        path, rows = self.folder / name, Rows.of(number)
        part = self.begun.pop(name, None)
        was_finished = self.finished.get(name)
        try:
            build_or_resume(path, number)
        except StoreExistsError:  # it was finished, or not begun
            assert was_finished is not None
            if Path(f"{path}.partial").exists():
                discard(path)
        except MismatchError:  # it had not got to discarding the one that lay there
            assert part is not None
            assert part.plan != number
            discard(path)
        else:
            assert before is None or overwrite
            self._finished(name, rows)
        if part is not None and name not in self.begun:
            self._stale(name, finished=False)

    # --- copies -----------------------------------------------------------------------------------

    @precondition(lambda self: self.finished)
    @rule(data=st.data(), name=NAMES, overwrite=st.booleans(), step=st.integers(0, 60))
    def subset(self, data, name, overwrite, step):
        source = data.draw(st.sampled_from(sorted(self.finished)))
        rows = self.finished[source]
        some = data.draw(st.sets(st.integers(0, len(rows.ids) - 1), min_size=1))
        numbers = np.array(sorted(some))
        self._copy(
            name,
            rows.take(numbers),
            lambda **how: subset(
                self.folder / source, self.folder / name, selection=Selection(rows=numbers), **how
            ),
            sources=[source],
            overwrite=overwrite,
            step=step,
        )

    @precondition(lambda self: len(self.finished) > 1)
    @rule(data=st.data(), name=NAMES, overwrite=st.booleans(), step=st.integers(0, 60))
    def merge(self, data, name, overwrite, step):
        pair = st.lists(st.sampled_from(sorted(self.finished)), min_size=2, max_size=2, unique=True)
        sources = data.draw(pair)
        first, second = (self.finished[source] for source in sources)
        paths = [self.folder / source for source in sources]
        if set(first.ids) & set(second.ids):
            refused(MismatchError, lambda: merge(paths, self.folder / "z"))
            return
        if len(first.ids) + len(second.ids) > MOST_ROWS:
            return
        joined = Rows(
            first.ids + second.ids,
            {k: np.concatenate([v, second.values[k]]) for k, v in first.values.items()},
        )
        self._copy(
            name,
            joined,
            lambda **how: merge(paths, self.folder / name, **how),
            sources=sources,
            overwrite=overwrite,
            step=step,
        )

    @precondition(lambda self: self.finished)
    @rule(
        data=st.data(),
        name=NAMES,
        to=st.sampled_from(["archive", "hdf5"]),
        overwrite=st.booleans(),
        step=st.integers(0, 60),
    )
    def export_and_import(self, data, name, to, overwrite, step):
        source = data.draw(st.sampled_from(sorted(self.finished)))
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        file = self.outside / ("x.h5" if to == "hdf5" else "x.zarr")
        digest = export(self.folder / source, file, to=to)["digest"]
        self._copy(
            name,
            self.finished[source],
            lambda **how: import_store(file, self.folder / name, **how),
            sources=[],
            overwrite=overwrite,
            step=step,
        )
        if name in self.finished and self.finished[name] is self.finished[source]:
            assert open_store(self.folder / name).digest == digest

    def _copy(self, name, rows, copy, *, sources, overwrite, step):
        """Make a copy, sometimes after a death in the midst of it."""
        if name in sources:
            refused(MismatchError, lambda: copy(overwrite=overwrite))
            return
        if not overwrite and (name in self.finished or name in self.begun):
            refused(StoreExistsError, copy)
            return
        if step and name not in self.begun:
            died = dies_at(step, lambda: copy(overwrite=overwrite))
            Life.kills += died
            begun = Path(f"{self.folder / name}.partial").exists()
            if not died or not begun:
                if not died or self._holds(name, rows):
                    self._finished(name, rows)
                    return
                copy(overwrite=overwrite)
            else:
                try:
                    copy(resume=True)
                except StoreExistsError:  # nothing says yet that it was to be replaced
                    assert not (Path(f"{self.folder / name}.partial") / "commits/c.0.0").exists()
                    copy(overwrite=overwrite)
        else:
            copy(overwrite=overwrite)
        if self.begun.pop(name, None):
            self._stale(name, finished=False)
        self._finished(name, rows)

    def _holds(self, name, rows):
        try:
            store = open_store(self.folder / name)
        except ActcacheError:
            return False
        return store["id"].tolist() == rows.ids

    # --- the file system --------------------------------------------------------------------------

    @precondition(lambda self: self.finished)
    @rule(data=st.data(), name=NAMES)
    def rename(self, data, name):
        source = data.draw(st.sampled_from(sorted(self.finished)))
        if name in self.finished:
            return
        (self.folder / source).rename(self.folder / name)
        self._stale(source)
        self.finished[name] = self.finished.pop(source)

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.finished)))
        shutil.rmtree(self.folder / name)
        self._stale(name)
        del self.finished[name]

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def give_up(self, data):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        discard(self.folder / name)
        self._stale(name, finished=False)
        del self.begun[name]

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def copy_what_is_not_finished(self, data):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        shutil.rmtree(self.outside, ignore_errors=True)
        shutil.copytree(f"{self.folder / name}.partial", self.outside)
        refused(IncompleteStoreError, lambda: open_store(self.outside))
        refused(IncompleteStoreError, lambda: verify(self.outside))
        store = open_store(self.outside, partial=True)
        assert_rows(store, self._part(name))

    # --- reading ----------------------------------------------------------------------------------

    @precondition(lambda self: self.finished)
    @rule(data=st.data(), check=st.booleans())
    def open(self, data, check):
        name = data.draw(st.sampled_from(sorted(self.finished)))
        store = open_store(self.folder / name, check=check)
        self.readers.append(Reader(store, self.finished[name], name))

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def open_part(self, data):
        name = data.draw(st.sampled_from(sorted(self.begun)))
        store = open_store(self.folder / name, partial=True)
        self.readers.append(Reader(store, self._part(name), f"{name}.partial"))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), array=st.sampled_from(sorted(Rows.of(0).values)))
    def read(self, data, array):
        reader = data.draw(st.sampled_from(self.readers))
        n = len(reader.rows.ids)
        rows = data.draw(st.lists(st.integers(0, n - 1), max_size=4)) if n else []
        assert not self._says_replaced(reader, array, rows)

    @invariant()
    def a_store_that_was_replaced_while_open_gives_its_own_rows_or_says_so(self):
        for reader in self.readers:
            if reader.moved and not reader.stale:
                for array in reader.rows.values:
                    assert not self._says_replaced(reader, array, slice(None))
                reader.moved = False
            if reader.stale:
                for array in reader.rows.values:
                    Life.warned_readers += self._says_replaced(reader, array, slice(None))
        self.readers = [reader for reader in self.readers if not reader.stale]

    def _says_replaced(self, reader, array, rows):
        try:
            values = bits(reader.store, array)[rows]
            ids = reader.store["id"].tolist()
        except MismatchError as error:
            return "was replaced, moved or removed" in str(error)
        np.testing.assert_array_equal(values, reader.rows.values[array][rows])
        assert ids == reader.rows.ids
        return False

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close(self, data):
        reader = data.draw(st.sampled_from(self.readers))
        reader.store.close()
        self.readers = [other for other in self.readers if other is not reader]

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def every_store_holds_its_rows_and_there_is_nothing_else(self):
        Life.steps += 1
        for name, rows in self.finished.items():
            assert_rows(open_store(self.folder / name, check=True), rows)
            assert verify(self.folder / name) == []
        for name in self.begun:
            path = self.folder / name
            assert_rows(open_store(path, partial=True, check=True), self._part(name))
            assert verify(path, partial=True) == []
            if name not in self.finished:
                refused(IncompleteStoreError, lambda path=path: open_store(path))
        names = {*self.finished, *(f"{name}.partial" for name in self.begun)}
        assert {entry.name for entry in self.folder.iterdir()} == names

    # --- helpers ----------------------------------------------------------------------------------

    def _part(self, name):
        begun = self.begun[name]
        return Rows.of(begun.plan).take(slice(begun.committed))

    def _is_taken(self, name):
        """Whether a finished store lies where one was begun that shall not replace it."""
        begun = self.begun[name]
        if begun.replaces or name not in self.finished:
            return False
        contents = StoreContents(**plan(begun.plan)[0])
        refused(StoreExistsError, lambda: Writer.resume(self.folder / name, contents))
        return True

    def _finished(self, name, rows):
        """A store has come; readers of its parts go on, those of what it replaced do not."""
        self._stale(name)
        self.finished[name] = rows
        for reader in self.readers:
            if reader.name == f"{name}.partial":
                reader.name, reader.moved = name, True

    def _stale(self, name, *, finished=True):
        for reader in self.readers:
            if reader.name == (name if finished else f"{name}.partial"):
                reader.stale = True


def bits(store, name):
    array = store.array(name)
    return array.bits if array.dtype == "bfloat16" else array


def assert_rows(store, rows):
    assert store["id"].tolist() == rows.ids
    for name, values in rows.values.items():
        np.testing.assert_array_equal(bits(store, name)[:], values)


def refused(kind, call):
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)


def build(path, number, *, overwrite):
    """Build a store in one go."""
    config, values = plan(number)
    with Writer.create(path, StoreContents(**config), overwrite=overwrite) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
        writer.finish()


def build_or_resume(path, number):
    """Go on as `--resume` alone does."""
    config, values = plan(number)
    with Writer.resume(path, StoreContents(**config)) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
        writer.finish()


def dies_at(step, work):
    """Do it in a fork that dies before its call number `step`; say whether it did."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call):
            def die(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return call(*args, **kwargs)

            return die

        for name in DIES_BEFORE:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = int.from_bytes(os.urandom(4)) if args.seed is None else args.seed
    sys.stdout.write(f"seed {seed}\n")
    while Life.steps < args.steps:
        seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])
        run_state_machine_as_test(
            hypothesis.seed(seed)(Life),
            settings=settings(
                max_examples=max(1, min(20, (args.steps - Life.steps) // 30)),
                stateful_step_count=30,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    sys.stdout.write(
        f"{Life.steps} steps, {Life.kills} deaths, {Life.warned_readers} readers were told\n"
    )


if __name__ == "__main__":
    main()
