"""A finished sweep, open for reading: propensity and slopes of every sample and layer. NumPy only.

`run` writes it, `steerability` and the predictors read it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from actcache.analysis.names import METHOD
from actcache.analysis.stats.slopes import among, slopes
from actcache.errors import MismatchError
from actcache.notebook import facts_table
from actcache.store.store import Store, open_store
from actcache.store.writing.contents import SWEPT

_ARRAY = "/propensity"


class Sweep:
    """Propensity of samples at every layer and multiplier, for one or more direction sets.

    A set need not have all samples: `rows` says which it has, and the others are NaN in its arrays.
    """

    def __init__(
        self, store: Store, *, rows: Mapping[str, Bool[np.ndarray, " n"]] | None = None
    ) -> None:
        if store.kind != "sweep":
            raise MismatchError(
                f"'{store.path}' holds {store.kind}, expected a sweep. Pass what run_sweep or "
                "actcache analyze wrote: OUT/sweep.zarr."
            )
        self.store = store
        """The store that it is read from: columns, config and provenance."""
        self._rows = _swept_rows(store) if rows is None else dict(rows)

    @property
    def names(self) -> list[str]:
        """Names of the direction sets."""
        return list(self._rows)

    def rows(self, name: str | None = None) -> Bool[np.ndarray, " n"]:
        """Samples that were swept with a direction set, by default with `main_set`.

        Raises:
            MismatchError: there is no such set.
        """
        return self._rows[self._known(self.main_set if name is None else name)]

    @property
    def n(self) -> int:
        """Samples."""
        return self.store.n

    @property
    def ids(self) -> np.ndarray:
        """Id of each sample, `[n]`, in the order of the residuals' store."""
        return self.store["id"]

    @property
    def layers(self) -> Int64[np.ndarray, " layer"]:
        """Number of each steered layer, rising."""
        return np.asarray(self.store["layer"], np.int64)

    @property
    def multipliers(self) -> Float64[np.ndarray, " multiplier"]:
        """The factors λ on the directions."""
        return np.asarray(self.store["multiplier"], np.float64)

    @property
    def certificate(self) -> dict[str, float]:
        """The check made before the sweep, in units of the score: `naive_error`, `noise_floor`."""
        certificate: dict[str, float] = self.store.certificate
        return certificate

    @property
    def propensity(self) -> Float32[np.ndarray, "n layer multiplier"]:
        """Propensity under the `main_set`."""
        return self.propensity_of(self.main_set)

    @property
    def main_set(self) -> str:
        """The set that is meant when none is named: `difference_of_means`, or the only one.

        Raises:
            MismatchError: there are several sets, and none of that name.
        """
        names = self.names
        if METHOD in names:
            return METHOD
        if len(names) != 1:
            raise MismatchError(
                f"'{self.store.path}' holds the direction sets {', '.join(names)}, expected a "
                "name where there are several. Pass one of them."
            )
        return names[0]

    def propensity_of(self, name: str) -> Float32[np.ndarray, "n layer multiplier"]:
        """Propensity under one direction set: score of the positive minus the negative completion.

        NaN for samples that are not among its `rows`.

        Raises:
            MismatchError: there is no such set.
        """
        propensity = np.array(self.store.array(self._known(name) + _ARRAY)[:])
        propensity[~self._rows[name]] = np.nan
        return propensity

    def slopes(self, name: str | None = None) -> Float64[np.ndarray, "n layer"]:
        """Steerability of every sample at every layer: least-squares slope of propensity over λ.

        NaN for samples that are not among the set's `rows`.

        Args:
            name: the direction set; by default `main_set`.

        Raises:
            MismatchError: there is no such set, or only one multiplier was swept.
        """
        name = self.main_set if name is None else name
        rows = self.rows(name)
        return among(rows, slopes(self.propensity_of(name)[rows], self.multipliers))

    def _known(self, name: str) -> str:
        if name not in self._rows:
            raise MismatchError(
                f"'{self.store.path}' has no direction set '{name}', expected "
                f"{', '.join(self.names)}. Pass one of them."
            )
        return name

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._facts().items())
        return f"Sweep({str(self.store.path)!r}, {facts})"

    def _repr_html_(self) -> str:
        facts = {**self._facts(), **(self.certificate or {})}
        return facts_table(f"{self.store.path}: sweep", facts)

    def _facts(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "sets": self.names,
            "rows": [int(rows.sum()) for rows in self._rows.values()],
            "layers": self.layers.tolist(),
            "multipliers": self.multipliers.tolist(),
        }


def _swept_rows(store: Store) -> dict[str, Bool[np.ndarray, " n"]]:
    """The rows of each set; all of them where the store does not say, as in earlier versions."""
    arrays = sorted(name for name in store.arrays if name.endswith(_ARRAY))
    swept = store[SWEPT] if SWEPT in store.columns else np.ones((store.n, len(arrays)), bool)
    return {
        name.removesuffix(_ARRAY): np.asarray(swept[:, arrays.index(name)])
        for name in store.arrays
        if name.endswith(_ARRAY)
    }


def open_sweep(path: str | Path) -> Sweep:
    """Open a finished sweep, such as `OUT/sweep.zarr` or `s3://bucket/sweep.zarr`.

    Raises:
        StoreNotFoundError: there is none.
        IncompleteStoreError: it was interrupted; run it again to finish it.
        MismatchError: a store of another kind lies there.
    """
    return Sweep(open_store(path, check=True))
