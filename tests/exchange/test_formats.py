"""The front functions and commands: which format goes with what, and files that are complete."""

import argparse
import json
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from actcache.cli import export as command
from actcache.cli.main import main
from actcache.errors import ActcacheError, FormatError, MismatchError, StoreExistsError
from actcache.exchange import FORMATS, VALUES, export, import_store
from actcache.progress import Silent
from actcache.store.array import Residuals
from actcache.store.store import open_store, verify
from tests.support.processes import run_code
from tests.support.recorder import Recorder
from tests.support.stores import as_json


def test_an_interrupted_export_leaves_nothing(store, tmp_path, monkeypatch):
    right, calls = Residuals.batches, []

    def breaks(self, *args, **how):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return right(self, *args, **how)

    monkeypatch.setattr(Residuals, "batches", breaks)
    for name, to in (("s.h5", "hdf5"), ("s.npz", "npz"), ("s.safetensors", "safetensors")):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_nothing_is_replaced_without_overwrite(store, tmp_path):
    (tmp_path / "s.h5").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()

    with pytest.raises(StoreExistsError, match="--overwrite"):
        export(store, tmp_path / "s.h5", to="hdf5")
    assert (tmp_path / "s.h5").read_text(encoding="utf-8") == "mine"
    export(store, tmp_path / "s.h5", to="hdf5", overwrite=True)
    with pytest.raises(StoreExistsError, match="another path"):
        export(store, tmp_path / "folder", to="hdf5", overwrite=True)


def test_a_damaged_store_is_not_exported(store, tmp_path):
    shard = next((store / "embed" / "prompt").glob("c.0*"))
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 4
    shard.write_bytes(bytes(raw))

    for to in ("hdf5", "npz", "safetensors", "archive"):
        with pytest.raises(FormatError, match="checksum"):
            export(store, tmp_path / "out", to=to)


@pytest.mark.parametrize(
    ("of", "how", "message"),
    [
        ("store", {"to": "gguf"}, "what actcache analyze left"),
        ("store", {"to": "hdf5", "directions": ["mood"]}, "what actcache analyze left"),
        ("results", {"to": "archive"}, "Choose another format"),
        ("results", {"to": "npz", "directions": ["mood"]}, "with --directions"),
    ],
)
def test_a_format_that_does_not_go_with_the_source_is_refused(
    store, results, tmp_path, of, how, message
):
    with pytest.raises(MismatchError, match=message):
        export(store if of == "store" else results[0], tmp_path / "x", **how)


def test_the_commands_write_and_read(store, tmp_path, capsys):
    out = str(tmp_path / "s.h5")
    assert main(["export", str(store), "--to", "hdf5", "-o", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 11
    assert facts["bytes on disk"] == Path(out).stat().st_size
    assert main(["export", str(store), "--to", "npz", "-o", str(tmp_path / "s.npz")]) == 0
    assert zipfile.ZipFile(tmp_path / "s.npz").testzip() is None
    assert "resid_post/prompt" in capsys.readouterr().out
    assert main(["export", str(store), "--to", "hdf5", "-o", out]) == 1
    assert "--overwrite" in capsys.readouterr().err
    imported = import_store(out, tmp_path / "t.zarr")
    assert as_json(imported) == as_json(open_store(store))
    assert verify(imported.path) == []


def test_the_command_offers_every_format():
    made = argparse.ArgumentParser()
    command.add_arguments(made)
    choices = {action.dest: action.choices for action in made._actions}
    assert choices["to"] == FORMATS
    assert choices["values"] == VALUES


def test_the_suffix_chooses_the_format(store, tmp_path):
    for name, to in (("s.h5", "hdf5"), ("s.npz", "npz"), ("a.zarr", "archive")):
        assert export(store, tmp_path / name)["format"] == to
    with pytest.raises(
        ActcacheError, match=r"format is not clear from 's.bin', expected hdf5, npz"
    ):
        export(store, tmp_path / "s.bin")


def test_an_open_store_is_exported_as_by_its_path(store, tmp_path):
    progress = Recorder()
    by_path = export(store, tmp_path / "a.h5", progress=progress)
    of_store = export(open_store(store), tmp_path / "b.h5")
    assert by_path == {**of_store, "path": by_path["path"]}
    assert (progress.bars, sum(progress.rows)) == ([("export", 33)], 33)
    imported = import_store(tmp_path / "b.h5", tmp_path / "t.zarr", progress=progress)
    assert imported.digest == open_store(store).digest


def test_importing_the_room_imports_no_format_library():
    code = (
        "import sys; import actcache.exchange\n"
        "print([m for m in ('torch', 'h5py', 'zarr', 'safetensors') if m in sys.modules])"
    )
    assert run_code(code).stdout == "[]\n"


@pytest.mark.parametrize("to", ["archive", "hdf5", "npz", "safetensors"])
def test_two_exports_to_one_path_leave_a_whole_one_and_say_so(store, tmp_path, to):
    """Each begins before the other ends; the second to end finds the name taken."""
    path, opened = tmp_path / f"out.{to}", open_store(store)

    class Beside(Silent):
        """Runs a whole export when the first one has written a piece."""

        begun = False

        @contextmanager
        def steps(self, title, total):
            yield self.step

        def step(self, _n):
            if not self.begun:
                self.begun = True
                export(store, path, to=to)

    with pytest.raises(StoreExistsError, match="exists already"):
        export(store, path, to=to, progress=Beside())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([store.name, path.name])
    if to in ("archive", "hdf5"):
        assert import_store(path, tmp_path / "again.zarr").digest == opened.digest
