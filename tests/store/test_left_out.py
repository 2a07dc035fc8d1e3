"""Rows that a build left out: listed in the store, its copies and its exports."""

import json

import numpy as np
import pytest

from actcache.cli.main import main
from actcache.errors import FormatError, MismatchError
from actcache.exchange.formats import export, import_store
from actcache.store.copies.copy import subset
from actcache.store.copies.merge import merge
from actcache.store.copies.selection import Selection
from actcache.store.schema import DOCUMENT_LIMIT
from actcache.store.store import open_store
from actcache.store.verify import verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.stores import build, example

MANY = [
    {"id": f"müßig/{i}", "reason": "longer than the context", "tokens": 4000 + i, "context": 128}
    for i in range(20_000)
]


def store_of(path, left_out, provenance=None):
    settings, values = example()
    settings["columns"] |= {name: [""] * 11 for name in ("variant", "split", "letter", "digest")}
    settings["columns"]["label"] = ["yes", "no"] * 5 + ["no"]
    settings["provenance"] |= provenance or {}
    return build(path, {**settings, "left_out": left_out}, values)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("many") / "s.zarr", MANY)


def test_more_rows_are_listed_than_a_document_can_hold(many):
    store = open_store(many)

    assert len(json.dumps(MANY)) > DOCUMENT_LIMIT
    assert store.left_out == MANY
    assert "left_out" not in store.provenance
    assert verify(many) == []


def test_the_list_is_not_a_column_of_the_rows(many):
    store = open_store(many)

    assert "left_out" not in store.columns
    assert "left_out" not in store.to_pandas().columns
    assert "left_out" not in store.to_xarray().variables
    with pytest.raises(MismatchError, match="no column 'left_out'"):
        store["left_out"]


def test_zarr_reads_the_list_as_strings_with_their_own_dimension(many):
    zarr = pytest.importorskip("zarr")
    array = zarr.open_group(many, mode="r")["left_out"]

    assert array.metadata.dimension_names == ("left_out",)
    assert json.loads(str(array[19_999])) == MANY[19_999]


def test_a_store_that_leaves_nothing_out_has_no_list(tmp_path):
    path = store_of(tmp_path / "s.zarr", [])

    assert not (path / "left_out").exists()
    assert open_store(path).left_out == []


def test_subsets_copy_the_list_and_a_merge_joins_lists(tmp_path):
    one = store_of(tmp_path / "a.zarr", MANY[:2])
    part = subset(one, tmp_path / "p.zarr", selection=Selection(rows=np.arange(3)))
    rest = subset(one, tmp_path / "r.zarr", selection=Selection(rows=np.arange(3, 11)))

    assert part.left_out == MANY[:2]
    assert merge([part.path, rest.path], tmp_path / "m.zarr").store.left_out == [
        *MANY[:2],
        *MANY[:2],
    ]


def test_the_list_in_the_provenance_of_earlier_versions_is_read_and_copied(tmp_path):
    old = store_of(tmp_path / "old.zarr", [], {"left_out": MANY[:3]})

    assert open_store(old).left_out == MANY[:3]
    part = subset(old, tmp_path / "p.zarr", selection=Selection(rows=np.arange(3)))
    assert part.left_out == MANY[:3]
    assert "left_out" not in part.provenance


@pytest.mark.parametrize("name", ["s.h5", "s_archive.zarr"])
@pytest.mark.parametrize("old", [False, True])
def test_importing_an_export_restores_the_list(name, old, tmp_path):
    left_out = MANY[:40]
    # Earlier versions wrote it into the provenance, where it stays.
    recorded = ([], {"left_out": left_out}) if old else (left_out,)
    source = store_of(tmp_path / "s.zarr", *recorded)
    export(source, tmp_path / name)

    imported = import_store(tmp_path / name, tmp_path / "t.zarr")
    assert imported.left_out == left_out
    assert imported.digest == open_store(source).digest


@pytest.mark.parametrize("name", ["s.npz", "s.safetensors"])
def test_other_exports_hold_the_list_too(name, many, tmp_path):
    export(many, tmp_path / name)

    if name == "s.npz":
        texts = np.load(tmp_path / name)["left_out"].tolist()
    else:
        from safetensors import safe_open

        with safe_open(tmp_path / name, "np") as file:
            texts = json.loads(file.metadata()["left_out"])
    assert [json.loads(text) for text in texts] == MANY


def test_info_counts_rows_left_out(many, capsys):
    assert main(["info", str(many), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left out"] == 20_000


def test_resuming_with_other_rows_left_out_is_refused_and_names_the_first(tmp_path):
    settings, _ = example()
    with Writer.create(tmp_path / "s.zarr", StoreContents(**settings, left_out=MANY[:3])):
        pass
    other = [MANY[0], {**MANY[1], "tokens": 7}, MANY[2]]

    with pytest.raises(MismatchError, match=r"columns.left_out\[1\]"):
        Writer.resume(tmp_path / "s.zarr", StoreContents(**settings, left_out=other))


@pytest.mark.parametrize("values", [["no JSON"], ["[1]"], np.arange(3)])
def test_a_value_that_is_not_a_list_of_rows_is_refused(values, tmp_path, monkeypatch):
    from actcache.store.encoding import encode_numbers, encode_strings
    from actcache.store.schema import Column
    from actcache.store.writing import contents

    def forged(_rows):
        if isinstance(values, np.ndarray):
            return Column("left_out", "int64", (3,), ("left_out",)), encode_numbers(values)
        return Column("left_out", "string", (1,), ("left_out",)), encode_strings(values, "left_out")

    monkeypatch.setattr(contents, "_encode_left_out", forged)
    store = open_store(store_of(tmp_path / "s.zarr", MANY[:1]))

    with pytest.raises(FormatError, match="left_out"):
        _ = store.left_out
