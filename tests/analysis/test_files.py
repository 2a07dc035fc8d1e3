"""Files of the results folder: whole or not there, nothing pickled, JSON that any reader takes.

Dataclasses are equal after a round trip through JSON, and nothing else gets in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float64

from actcache.analysis.files import (
    DocumentError,
    plain,
    typed,
    write_arrays,
    write_aside,
    write_json,
    write_tensors,
)
from actcache.errors import ActcacheError


@dataclass(frozen=True, kw_only=True)
class Part:
    value: float
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Whole:
    parts: dict[str, Part]
    pair: tuple[float, int]
    many: tuple[Part, ...]
    layers: Sequence[int] | None
    word: Literal["a", "b"]
    flag: bool
    any: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    mean: Float64[np.ndarray, "2 layer"]
    mask: Bool[np.ndarray, " layer"]


floats = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(Part, value=floats, name=st.text())
WHOLE = {
    "parts": {"p": {"value": 1.5}},
    "pair": [1, 2],
    "many": [],
    "layers": None,
    "word": "a",
    "flag": True,
}


@given(
    st.builds(
        Whole,
        parts=st.dictionaries(st.text(), parts),
        pair=st.tuples(floats, st.integers()),
        many=st.lists(parts).map(tuple),
        layers=st.none() | st.lists(st.integers()).map(tuple),
        word=st.sampled_from(["a", "b"]),
        flag=st.booleans(),
        any=st.dictionaries(st.text(), st.none() | st.integers() | st.lists(st.booleans())),
    )
)
def test_a_round_trip_changes_nothing(whole):
    assert typed(Whole, json.loads(json.dumps(plain(whole)))) == whole


def test_arrays_come_back_with_dtype_and_values():
    arrays = Arrays(mean=np.array([[0.5, 2], [1, 3]]), mask=np.array([True, False]))
    read = typed(Arrays, json.loads(json.dumps(plain(arrays))))
    np.testing.assert_array_equal(read.mean, arrays.mean)
    np.testing.assert_array_equal(read.mask, arrays.mask)
    assert typed(Arrays, {"mean": [[1, 2], [3, 4]], "mask": [True, True]}).mean.dtype == np.float64


def test_fields_that_are_missing_take_their_defaults():
    assert typed(Whole, WHOLE).parts["p"] == Part(value=1.5, name="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {"p": {}}}, ".parts.p.value is missing, expected float"),
        ({"parts": {"p": {"value": "1"}}}, ".parts.p.value is '1', expected float"),
        ({"parts": {"p": {"value": 1, "new": 2}}}, ".parts.p.new is unknown, expected fields of"),
        ({"parts": []}, r".parts is \[\], expected dict"),
        ({"pair": [1, 2, 3]}, ".pair is"),
        ({"pair": [1, 2.5]}, r".pair\[1\] is 2.5, expected int"),
        ({"many": {"a": 1}}, ".many is"),
        ({"layers": "1,2"}, ".layers is '1,2'"),
        ({"word": "c"}, ".word is 'c'"),
        ({"flag": 1}, ".flag is 1, expected bool"),
        ({"any": 1}, ".any is 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change, message):
    with pytest.raises(DocumentError, match=message):
        typed(Whole, WHOLE | change)


@pytest.mark.parametrize(
    "mean", [[[1.0, 2.0]], [[1.0], [2.0, 3.0]], [["1"], ["2"]], [[True], [False]], 1.0, None]
)
def test_arrays_that_do_not_fit_are_refused(mean):
    with pytest.raises(DocumentError, match=r"\.mean is"):
        typed(Arrays, {"mean": mean, "mask": [True]})


@pytest.mark.parametrize("document", [None, [], 1, "x"])
def test_a_document_that_is_no_object_is_refused(document):
    with pytest.raises(DocumentError, match="the document is"):
        typed(Part, document)


@dataclass(frozen=True)
class Found:
    mean: np.ndarray
    name: str
    parts: tuple[int, ...]


def test_frozen_results_become_json(tmp_path):
    value = Found(np.array([1.5, 2.0]), "x", (1, 2))
    write_json(tmp_path / "s.json", {"found": value, "n": np.int64(3), "none": None})

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
