"""Files of the results folder: whole or not there, nothing pickled, JSON that any reader takes."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from actcache.analysis.files import write_arrays, write_aside, write_json, write_tensors
from actcache.errors import ActcacheError


@dataclass(frozen=True)
class Found:
    mean: np.ndarray
    name: str
    parts: tuple[int, ...]


def test_frozen_results_become_json(tmp_path):
    found = Found(np.array([1.5, 2.0]), "x", (1, 2))
    write_json(tmp_path / "s.json", {"found": found, "n": np.int64(3), "none": None})

    read = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert read == {
        "found": {"mean": [1.5, 2.0], "name": "x", "parts": [1, 2]},
        "n": 3,
        "none": None,
    }


def test_a_number_that_json_has_not_is_refused_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "s.json", {"n": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "s.json", {"n": float("nan")})

    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == {"n": 1}


def test_a_writer_that_breaks_leaves_nothing_behind(tmp_path):
    def breaks(path):
        path.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(ActcacheError, match="disk full"):
        write_aside(tmp_path / "x.png", breaks)
    assert not list(tmp_path.iterdir())


def test_arrays_come_back_without_pickle(tmp_path):
    arrays = {"id": np.array(["a", "bé"]), "slope": np.eye(2)}
    write_arrays(tmp_path / "a.npz", arrays)

    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)


def test_tensors_are_those_that_were_given_whatever_their_memory_order(tmp_path):
    from safetensors.numpy import load_file

    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors(tmp_path / "t.safetensors", {"b/x": values}, about={"layer": "after block"})

    np.testing.assert_array_equal(load_file(tmp_path / "t.safetensors")["b/x"], values)
