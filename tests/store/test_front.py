"""A store in a notebook: rows by their columns, a DataFrame, a table."""

import sys

import numpy as np
import pytest

from actcache.errors import ActcacheError, MismatchError
from actcache.store import open_store
from tests.support.stores import build, example


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    settings, values = example(n=11)
    settings["columns"]["split"] = ["train" if i % 2 else "test" for i in range(11)]
    return open_store(build(tmp_path_factory.mktemp("front") / "a<b>.zarr", settings, values))


def test_rows_are_chosen_by_one_value_or_several(store):
    splits = store["split"].tolist()
    behavior = store["behavior"][0]

    one = store.rows(split="train")
    several = store.rows(split=["train"], behavior=behavior)

    assert one.tolist() == [split == "train" for split in splits]
    assert several.tolist() == [
        split == "train" and name == behavior
        for split, name in zip(splits, store["behavior"], strict=True)
    ]
    assert store.rows().all()


def test_an_unknown_value_is_refused_and_the_known_ones_are_listed(store):
    with pytest.raises(
        MismatchError, match=r"has split 'tset'\. Did you mean 'test'\? Expected one of .*'train'"
    ):
        store.rows(split="tset")
    with pytest.raises(MismatchError, match=r"has no column 'splitt'\. Did you mean 'split'\?"):
        store.rows(splitt="train")


def test_residuals_is_the_same_as_the_shorter_name(store):
    position = store.positions[0]
    np.testing.assert_array_equal(store.residuals(position)[:], store.resid(position)[:])


def test_columns_become_a_data_frame(store):
    pandas = pytest.importorskip("pandas")
    frame = store.to_pandas()

    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == store.n
    assert frame["behavior"].tolist() == store["behavior"].tolist()
    assert "layer" not in frame  # an axis of the arrays, not of the rows


def test_without_pandas_one_line_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ActcacheError, match="pip install pandas"):
        store.to_pandas()


def test_a_notebook_shows_a_table_with_every_value_escaped(store):
    html = store._repr_html_()

    assert "a&lt;b&gt;.zarr" in html
    assert "a<b>" not in html
    assert f"{store.n:,}" in html


def test_arrays_and_columns_become_a_dataset(store):
    xarray = pytest.importorskip("xarray")
    data = store.to_xarray()

    assert isinstance(data, xarray.Dataset)
    assert data.sizes["sample"] == store.n
    assert data["behavior"].values.tolist() == store["behavior"].tolist()
    for name in store.arrays:
        variable, array = data[name.replace("/", "_")], store.array(name)
        expected = array[:][:, 0] if name.startswith("embed/") else array[:]
        np.testing.assert_array_equal(variable.values, expected)
        np.testing.assert_array_equal(variable[[3, 1], ..., 2:5].values, expected[[3, 1], ..., 2:5])
        np.testing.assert_array_equal(variable[-1].values, expected[-1])
        np.testing.assert_array_equal(variable[::-2].values, expected[::-2])
    name = next(name for name in store.arrays if not name.startswith("embed/"))
    layer = int(store.layers[-1])
    np.testing.assert_array_equal(
        data[name.replace("/", "_")].sel(layer=layer).values, store.array(name).layer(layer)
    )


def test_nothing_of_an_array_is_read_before_it_is_used(store, monkeypatch):
    pytest.importorskip("xarray")
    monkeypatch.setattr(type(store._maps), "take", lambda *_: pytest.fail("was read"))
    data = store.to_xarray()
    assert repr(data)
    part = data.isel(layer=1, sample=slice(2, 5))
    with pytest.raises(pytest.fail.Exception, match="was read"):
        part.load()


def test_without_xarray_one_line_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ActcacheError, match="pip install xarray"):
        store.to_xarray()
