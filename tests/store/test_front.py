"""What a notebook asks of a store: rows by their columns, a DataFrame, a table to look at."""

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


def test_a_value_that_no_row_has_is_refused_with_those_that_there_are(store):
    with pytest.raises(MismatchError, match=r"has split 'tset', expected one of .*'train'"):
        store.rows(split="tset")
    with pytest.raises(MismatchError, match="has no column 'splitt'"):
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
