"""Random splits: of the store's shares, without leaks, each with directions of its own."""

import json

import numpy as np
import pytest

import actcache
from actcache import analysis
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.difference_of_means import pair_directions
from actcache.analysis.sweep.sets import sets_of_analysis
from actcache.analysis.sweep.splits import splits_of
from actcache.errors import MismatchError
from tests.support.tiny import save

pytestmark = pytest.mark.model


def build(folder, n, n_prompts):
    rows = [
        {
            "prompt": f"{i % n_prompts}?",
            "positive": " (A)" if i % 2 else " (B)",
            "negative": " (B)" if i % 2 else " (A)",
        }
        for i in range(n)
    ]
    (folder / "tidy.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return actcache.build_store(
        folder / "tidy.jsonl", folder / "s.zarr", model=save(folder / "model")
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("splits"), 40, 32)


def test_the_first_is_the_stores_own_and_others_have_its_shares_without_leaks(store):
    first, *others = splits_of(store, AnalyzeConfig(splits=4))

    np.testing.assert_array_equal(first.train, store["split"] == "train")
    np.testing.assert_array_equal(first.test, store["split"] == "test")
    assert len({split.train.tobytes() for split in [first, *others]}) == 4
    for split in others:
        assert abs(int(split.train.sum()) - 16) <= 1
        assert abs(int(split.test.sum()) - 20) <= 1
        assert not set(store["prompt"][split.train]) & set(store["prompt"][split.test])
        assert abs((store["letter"][split.test] == "A").sum() - 10) <= 1
    again = splits_of(store, AnalyzeConfig(splits=4))
    assert all((a.train == b.train).all() for a, b in zip(others, again[1:], strict=True))


def test_each_split_is_one_more_set_with_directions_of_its_own_train_rows(store):
    config = AnalyzeConfig(splits=3, controls=0)
    _, *others = splits_of(store, config)

    sets = sets_of_analysis(store, analysis.difference_of_means(store), config=config)

    assert list(sets) == ["difference_of_means", "split_1", "split_2"]
    for number, split in enumerate(others, start=1):
        steered = sets[f"split_{number}"]
        np.testing.assert_array_equal(steered.rows, split.train | split.test)
        expected = pair_directions(store, rows=split.train).values[0]
        np.testing.assert_array_equal(steered.directions.rows(np.array([3]))[0], expected)


def test_a_behavior_that_cannot_be_split_anew_is_refused_before_anything_runs(tmp_path):
    store = build(tmp_path, 20, 1)

    with pytest.raises(MismatchError, match=r"'tidy' has no .* rows.*--splits 1"):
        analysis.analyze(store, tmp_path / "out", splits=2, stages=("vectors", "sweep"))
    assert not (tmp_path / "out").exists()
