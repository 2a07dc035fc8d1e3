"""`steerability` on an open sweep: the numbers of `summarize`, with the sweep's random sets as controls."""

from typing import Any

import numpy as np
import pytest

from actcache.analysis.sweep.open_sweep import open_sweep
from actcache.analysis.sweep.steerability import steerability, summarize
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer

MULTIPLIERS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
SETS = ("caa", "random", "random_1", "randomly_named")
N, LAYERS = 24, (0, 2, 5)
TRAIN = np.arange(N) < 12


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("front") / "s.zarr"
    dimensions = ("n", "layer", "multiplier")
    arrays = [RowArray(f"{name}/propensity", 3, 5, "float32", dimensions) for name in SETS]
    columns: dict[str, Any] = {
        "id": [f"r{i}" for i in range(N)],
        "behavior": ["tidy"] * N,
        "letter": ["A", "B"] * (N // 2),
        "split": ["train" if train else "test" for train in TRAIN],
        "layer": np.array(LAYERS, np.int64),
        "multiplier": MULTIPLIERS,
    }
    contents = StoreContents(
        kind="sweep", n=N, arrays=arrays, columns=columns, config={}, provenance={}
    )
    rng = np.random.default_rng(0)
    with Writer.create(path, contents) as writer:
        writer.commit({a.name: rng.normal(size=(N, 3, 5)).astype(np.float32) for a in arrays})
        writer.finish({"naive_error": 0.0, "noise_floor": 0.0})
    return open_sweep(path)


def test_it_is_summarize_with_the_random_sets_as_controls(sweep):
    expected = summarize(
        sweep.propensity_of("caa"),
        MULTIPLIERS,
        train=TRAIN,
        test=~TRAIN,
        rng=np.random.default_rng(3),
        letters=["A", "B"] * (N // 2),
        control=np.stack([sweep.propensity_of("random"), sweep.propensity_of("random_1")]),
        layers=LAYERS,
        draws=50,
    )

    scored = steerability(sweep, "caa", train=TRAIN, test=~TRAIN, seed=3, draws=50)

    assert len(scored.scores.control) == 2
    assert repr(scored.scores) == repr(expected.scores)
    np.testing.assert_array_equal(scored.slope, expected.slope)


def test_a_set_that_the_sweep_lacks_is_refused(sweep):
    with pytest.raises(MismatchError, match="no direction set 'l2s'"):
        steerability(sweep, "l2s", train=TRAIN, test=~TRAIN)
