"""A finished sweep, open: its sets, slopes and words, and what is refused."""

from typing import Any

import numpy as np
import pytest

from actcache.analysis.stats.slopes import slopes
from actcache.analysis.sweep.open_sweep import Sweep, open_sweep
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer

MULTIPLIERS = np.array([-1.0, 0.0, 1.0])
VALUES = np.random.default_rng(0).standard_normal((2, 5, 3, 3)).astype(np.float32)


def write(path, *names, kind="sweep"):
    arrays = [
        RowArray(f"{x}/propensity", 3, 3, "float32", ("n", "layer", "multiplier")) for x in names
    ]
    columns: dict[str, Any] = {
        "id": [f"r{i}" for i in range(5)],
        "layer": np.array([0, 2, 5], np.int64),
        "multiplier": MULTIPLIERS,
    }
    contents = StoreContents(
        kind=kind, n=5, arrays=arrays, columns=columns, config={}, provenance={}
    )
    with Writer.create(path, contents) as writer:
        writer.commit({array.name: VALUES[i] for i, array in enumerate(arrays)})
        writer.finish({"naive_error": 0.0, "noise_floor": 0.0})
    return path


def test_gives_sets_layers_multipliers_ids_and_slopes(tmp_path):
    sweep = open_sweep(write(tmp_path / "s.zarr", "caa", "difference_of_means"))

    assert sweep.names == ["caa", "difference_of_means"]
    assert sweep.n == 5
    assert sweep.ids.tolist() == ["r0", "r1", "r2", "r3", "r4"]
    assert sweep.layers.tolist() == [0, 2, 5]
    assert sweep.multipliers.tolist() == [-1.0, 0.0, 1.0]
    assert sweep.certificate == {"naive_error": 0.0, "noise_floor": 0.0}
    np.testing.assert_array_equal(sweep.propensity_of("caa"), VALUES[0])
    np.testing.assert_array_equal(sweep.propensity, VALUES[1])
    np.testing.assert_array_equal(sweep.slopes("caa"), slopes(VALUES[0], MULTIPLIERS))
    np.testing.assert_array_equal(sweep.slopes(), slopes(VALUES[1], MULTIPLIERS))


def test_the_only_set_needs_no_name(tmp_path):
    sweep = open_sweep(write(tmp_path / "s.zarr", "caa"))

    np.testing.assert_array_equal(sweep.propensity, VALUES[0])
    np.testing.assert_array_equal(sweep.slopes(), sweep.slopes("caa"))


def test_one_of_several_sets_must_be_named(tmp_path):
    sweep = open_sweep(write(tmp_path / "s.zarr", "caa", "l2s"))

    with pytest.raises(MismatchError, match=r"holds the direction sets caa, l2s, .* Pass one"):
        sweep.slopes()
    with pytest.raises(MismatchError, match=r"no direction set 'random', expected caa, l2s"):
        sweep.propensity_of("random")


def test_a_store_of_residuals_is_no_sweep(tmp_path):
    write(tmp_path / "s.zarr", "caa", kind="residuals")

    with pytest.raises(MismatchError, match="holds residuals, expected a sweep"):
        Sweep(open_store(tmp_path / "s.zarr"))


def test_a_notebook_shows_names_escaped(tmp_path):
    sweep = open_sweep(write(tmp_path / "a&b.zarr", "caa"))

    assert "caa" in repr(sweep)
    assert "naive_error" in sweep._repr_html_()
    assert "a&amp;b" in sweep._repr_html_()
    assert "a&b" not in sweep._repr_html_()
