"""A store that is open for reading: needs NumPy only, and changes nothing on disk."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from actcache.errors import ActcacheError, MismatchError
from actcache.names import suggestion
from actcache.notebook import facts_table
from actcache.store.array import CONVERTED_BYTES, Residuals, lazy_array
from actcache.store.columns import Columns
from actcache.store.layout import Layout, open_layout
from actcache.store.schema import LEFT_OUT, Kind, Ragged, RowKind
from actcache.store.shard_maps import ShardMaps
from actcache.store.storage.block_cache import BlockCache
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.protocol import Storage
from actcache.store.verify import Problem, verify

__all__ = ["Columns", "Problem", "Residuals", "Store", "open_store", "verify"]


def open_store(
    path: str | Path | Storage, *, partial: bool = False, check: bool = False
) -> "Store":
    """Open a store for reading. It is finished if its log is sealed, wherever it is.

    Args:
        path: the folder that a build or a sweep wrote, `s3://bucket/…`, or a storage.
        partial: prefer the interrupted (or running) store `PATH.partial`, if there is one; only its
            committed rows are visible.
        check: compare each block with its checksum when it is first read.

    Raises:
        StoreNotFoundError: there is no store.
        IncompleteStoreError: the store is not finished, and `partial` is False.
        FormatError: it is damaged, of a newer format, or no store.
        ActcacheError: a bucket cannot be read, or the cache that ACTCACHE_CACHE names not be used.
    """
    layout = open_layout(path, partial=partial)
    cache = None if layout.storage.is_mapped else BlockCache.from_environment()
    return Store(layout, check=check, cache=cache)


class Store:
    """An open store. Columns by name: `store["behavior"] == "narcissism"`."""

    def __init__(self, layout: Layout, *, check: bool = False, cache: BlockCache | None = None):
        root, location = layout.root, layout.storage.location
        self._layout = layout
        self._cache = cache
        self._maps = ShardMaps(layout, check=check, cache=cache)
        self.path = Path(location) if isinstance(layout.storage, LocalStorage) else location
        """The folder; a store that is elsewhere has its address here, a text such as `s3://…`."""
        self.kind: Kind = root.kind
        """`residuals` or `sweep`."""
        self.n = layout.committed
        """Rows that can be read: all, or of a partial store the committed ones."""
        self.n_planned = root.n
        """Rows of the store when it is complete."""
        self.complete = layout.complete
        """Whether it is finished: its log is sealed."""
        self.config = root.config
        """The settings that it was made with."""
        self.provenance = root.provenance
        """Where the numbers come from."""
        self.certificate = root.certificate
        """Evidence that was recorded when the store was finished; None before."""
        self.shard_rows = root.shard_rows
        """Rows of a shard."""
        self.shard_reason = root.shard_reason
        """Why a shard has that many rows."""
        self.row_arrays = list(layout.arrays.values())
        """Name, layers, width and dtype of each row array."""
        self.arrays = [array.name for array in self.row_arrays]
        """Names of the row arrays."""
        self.columns = Columns(layout)
        """Columns by name; ragged ones through `ragged`."""
        rows = root.shard_rows
        if any(array.dtype == "bfloat16" for array in self.row_arrays):  # all arrays are cut alike
            largest = max(4 * array.n_layers * array.width for array in self.row_arrays)
            rows = max(min(rows, CONVERTED_BYTES // largest), 1)
        self._batch_rows = rows

    @property
    def sites(self) -> list[str]:
        """Where the model was read: `resid_post`, `embed`."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.arrays))

    @property
    def positions(self) -> list[str]:
        """Which tokens were read."""
        return list(dict.fromkeys(name.rpartition("/")[2] for name in self.arrays))

    @property
    def n_layers(self) -> int:
        """Layers of the deepest array."""
        return max(array.n_layers for array in self.row_arrays)

    @property
    def layers(self) -> Int64[np.ndarray, " layer"]:
        """The number of each layer: 0, 1, … unless the store holds only some of them."""
        numbers = self.columns.get("layer")
        if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            return np.arange(self.n_layers)
        return numbers.astype(np.int64)

    @property
    def digest(self) -> str:
        """Digest of everything but the certificate.

        It is the sha256 of the last shard's record, which chains to all values, columns, config and
        provenance.
        """
        return self._layout.last_record

    @property
    def d_model(self) -> int:
        """Width of the residuals."""
        if self.kind != "residuals":
            raise MismatchError(
                f"'{self.path}' holds a {self.kind}, expected residuals. Open the store that it "
                "was made from."
            )
        # All heads' outputs together may be wider than the residual stream.
        arrays = self.row_arrays
        widths = [array.width for array in arrays if not array.name.startswith("heads/")]
        return max(widths or [array.width for array in arrays])

    @property
    def row_kind(self) -> RowKind:
        """What its rows are: `pairs` of completions, prompts with `labels`, or `prompts` alone."""
        if any(self.columns.get("label", np.empty(0)).tolist()):
            return "labels"
        texts = self.columns.get("positive", np.empty(0)).tolist()
        of_pairs = {"fork", "positive", "negative"} & {*self.positions}
        return "pairs" if any(texts) or of_pairs else "prompts"

    @property
    def prompts(self) -> np.ndarray:
        """The prompts, `[n]`."""
        return self["prompt"]

    @property
    def n_bytes(self) -> int:
        """Bytes of the residuals that can be read."""
        return self.n * sum(array.row_bytes for array in self.row_arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, read-only."""
        if name not in self.columns:
            raise MismatchError(
                f"'{self.path}' has no column '{name}'. {suggestion(name, self.columns)}Expected "
                f"one of {', '.join(self.columns)}; ragged ones are read with .ragged."
            )
        return self.columns[name]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Rows of the data that are not in the store: `id`, `reason`; if too long also `tokens`."""
        recorded = self.provenance.get(LEFT_OUT)  # where earlier versions wrote them
        return recorded if isinstance(recorded, list) else self.columns.left_out

    def ragged(self, name: str) -> Ragged:
        """A column of integer arrays, such as `prompt_tokens`; reads like a list of them."""
        try:
            return self.columns.ragged(name)
        except KeyError:
            raise MismatchError(
                f"'{self.path}' has no ragged column '{name}', expected one of "
                f"{', '.join(self.columns.ragged_names)}. Read others with store['{name}']."
            ) from None

    def resid(self, position: str, *, site: str = "resid_post") -> Residuals:
        """Read `residuals`; the shorter name of earlier versions."""
        return self.residuals(position, site=site)

    def array(self, name: str) -> Residuals:
        """A row array by its full name, such as `resid_post/prompt`."""
        array = self._layout.arrays.get(name)
        if array is None:
            raise MismatchError(
                f"'{self.path}' has no array '{name}'. {suggestion(name, self.arrays)}Expected one "
                f"of {', '.join(self.arrays)}."
            )
        numbers = None
        if array.dimension_names[1] == "layer" and not name.startswith("embed/"):
            numbers = self.layers if self.layers.size == array.n_layers else None
        return Residuals(
            self._maps, array, n=self.n, batch_rows=self._batch_rows, layer_numbers=numbers
        )

    def rows(self, **values: str | Collection[str]) -> Bool[np.ndarray, " n"]:
        """Choose rows by their columns: `store.rows(behavior="tidy", split="train")`.

        Args:
            **values: for a column of text, the value that a row must have, or several of which it
                must have one. Without any, all rows.

        Returns:
            A mask, True for rows that fit every condition.
        """
        mask = np.ones(self.n, bool)
        for column, value in values.items():
            accepted = [value] if isinstance(value, str) else list(value)
            present = self[column]
            distinct = dict.fromkeys(present.tolist())
            missing = [name for name in accepted if name not in distinct]
            if missing:
                known = ", ".join(map(repr, [*distinct][:8])) + (", …" if len(distinct) > 8 else "")
                raise MismatchError(
                    f"no row of '{self.path}' has {column} {missing[0]!r}. "
                    f"{suggestion(missing[0], map(str, distinct))}Expected one of {known}. "
                    f"store['{column}'] holds the values of all rows."
                )
            mask &= np.isin(present, accepted)
        return mask

    def residuals(self, position: str, *, site: str = "resid_post") -> Residuals:
        """The residuals of one token; `.layer(13, rows=…)` reads `[n, d_model]` of one layer.

        Args:
            position: prompt, fork, positive or negative, or another that the build was asked for.
            site: resid_post, embed, or another that the build was asked for.

        Returns:
            `[n, layer, d_model]`, on disk until it is asked for.
        """
        return self.array(f"{site}/{position}")

    def to_pandas(self) -> Any:
        """The columns of all rows as a pandas DataFrame; residuals are not among them."""
        try:
            import pandas as pd
        except ImportError:
            raise ActcacheError(
                "pandas is not installed, expected it for to_pandas. Install it with: pip install "
                "pandas; or read single columns with store['behavior']."
            ) from None
        axes = ("layer", "multiplier")  # of the arrays, not of the rows
        return pd.DataFrame(
            {
                name: values if values.ndim == 1 else list(values)
                for name, values in self.columns.items()
                if name not in axes and values.shape[:1] == (self.n,)
            }
        )

    def to_xarray(self) -> Any:
        """Everything as an xarray Dataset, whose arrays are read from disk where they are used.

        Returns:
            A Dataset with a variable `<site>_<position>` of each row array, over the dimensions
            sample, layer and d_model (of a sweep, multiplier); bfloat16 as float32. Columns are
            coordinates of the samples, so that `data.where(data.behavior == "tidy", drop=True)`
            chooses rows.
        """
        try:
            import xarray as xr
        except ImportError:
            raise ActcacheError(
                "xarray is not installed, expected it for to_xarray. Install it with: pip install "
                "xarray; or read arrays with store.residuals('prompt')."
            ) from None
        variables: dict[str, Any] = {}
        sizes = {"sample": self.n, "layer": self.n_layers}
        for array in map(self.array, self.arrays):
            site, _, position = array.name.rpartition("/")
            names = ("sample", *array.dimension_names[1:])
            last = (
                names[2] if sizes.setdefault(names[2], array.shape[2]) == array.shape[2] else site
            )
            variable = xr.Variable((*names[:2], last), lazy_array(array))
            if array.shape[1] != self.n_layers:  # embed, the input of the first block
                variable = variable.isel({names[1]: 0})
            variables[f"{site}_{position}"] = variable
        coordinates: dict[str, Any] = {"layer": ("layer", self.layers)}
        for name, values in self.columns.items():
            if name in sizes:
                coordinates[name] = (name, values)
            elif values.shape[:1] == (self.n,):
                coordinates[name] = (("sample", f"{name}_part")[: values.ndim], values)
        return xr.Dataset(variables, coordinates)

    def _repr_html_(self) -> str:
        facts: dict[str, Any] = {
            "rows": self.n if self.complete else f"{self.n} of {self.n_planned}, not complete",
            **{
                f"{column}s": Counter(self[column].tolist())
                for column in ("behavior", "split")
                if column in self.columns
            },
            "layers": self.n_layers,
        }
        if self.kind == "residuals":
            facts |= {"d_model": self.d_model, "positions": self.positions, "sites": self.sites}
        model = self.provenance.get("model", {})
        facts |= {"model": model.get("name", "unknown"), "dtype": model.get("dtype", "unknown")}
        return facts_table(f"{Path(self.path).name}: {self.kind}", facts)

    def checked(self) -> "Store":
        """The same store, where each block is compared with its checksum when it is first read."""
        return Store(self._layout, check=True, cache=self._cache)

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid, and reading opens them again."""
        self._maps.clear()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, n={self.n}, arrays={self.arrays})"
