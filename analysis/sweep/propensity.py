"""A finished sweep, open for reading: propensities of every sample, and their slopes."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped

from actcache.analysis.names import METHOD
from actcache.analysis.stats.slopes import slopes
from actcache.analysis.sweep.strategies import SlopeTable, slope_table
from actcache.store.store import Store, open_store


class Sweep:
    """Propensities of every sample, layer and multiplier, for each direction set."""

    def __init__(self, store: Store) -> None:
        self.store = store
        """The sweep's own store: settings, provenance, columns."""

    @classmethod
    def open(cls, path: str | Path) -> "Sweep":
        """Open `sweep.zarr`."""
        return cls(open_store(path))

    @property
    def sets(self) -> Sequence[str]:
        """Names of the direction sets."""
        return [name.removesuffix("/propensity") for name in self.store.arrays]

    @property
    def ids(self) -> Shaped[np.ndarray, " n"]:
        """Id of each sample."""
        return np.asarray(self.store["id"], dtype=str)

    @property
    def layers(self) -> Int64[np.ndarray, " layer"]:
        """Numbers of the layers that were steered."""
        return np.asarray(self.store["layer"])

    @property
    def multipliers(self) -> Float64[np.ndarray, " m"]:
        """Factors on the directions."""
        return np.asarray(self.store["multiplier"])

    @cached_property
    def propensity(self) -> Float32[np.ndarray, "n layer m"]:
        """Propensity with the behaviors' own directions (or the first set that there is)."""
        return self.of(METHOD if METHOD in self.sets else self.sets[0])

    def of(self, name: str) -> Float32[np.ndarray, "n layer m"]:
        """Read the propensity of one direction set."""
        return np.asarray(self.store.array(f"{name}/propensity")[:])

    def slopes(self, name: str = METHOD) -> Float64[np.ndarray, "n layer"]:
        """Fit the slope of every sample at every layer: its steerability."""
        return slopes(self.of(name), self.multipliers)

    def slope_table(self, name: str) -> SlopeTable:
        """Fit the slopes on the whole grid and on its halves."""
        return slope_table(self.of(name), self.multipliers)
