"""Whether a finished sweep holds what a run needs: its settings, direction sets and rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.sets import SweepSet
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, require_same
from actcache.store.copies.selection import require_all_layers
from actcache.store.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a sweep is to hold, in the words that are recorded with it."""

    config: dict[str, Any]
    """All settings but how rows are batched."""

    source: dict[str, Any]
    """The rows and the model."""

    sets: Mapping[str, SweepSet]

    @classmethod
    def of(
        cls,
        store: Store,
        sets: Mapping[str, SweepSet],
        *,
        multipliers: Sequence[float | int],
        rule: Mapping[str, str],
        layers: Sequence[int] | None,
    ) -> "SweepRequest":
        """Describe a sweep; `rule` has the fields of a `SteeringRule`."""
        require_all_layers(store)
        steered = list(range(store.n_layers)) if layers is None else sorted(set(layers))
        if not steered or not 0 <= steered[0] <= steered[-1] < store.n_layers:
            raise MismatchError(
                f"layers to steer are {steered}, but the store has layers 0 to "
                f"{store.n_layers - 1}. Pass some of them."
            )
        identity = store.provenance["model"]
        return cls(
            config={
                "rule": dict(rule),
                "layers": steered,
                "multipliers": [float(x) for x in multipliers],
                "sets": {name: steering.directions.digest for name, steering in sets.items()},
            },
            source={
                "store": {"data_sha256": store.provenance["data_sha256"], "n": store.n},
                "model": {name: identity[name] for name in IDENTITY},
            },
            sets=sets,
        )

    def open(self, path: str | Path) -> Sweep:
        """Open a finished sweep that holds all of this, and show nothing else of it.

        How rows were batched is rounding alone.

        Raises:
            MismatchError: it is of other settings, or lacks sets or rows: names them.
        """
        finished = open_store(path, check=True)
        swept, path = Sweep(finished), finished.path
        config, required = dict(finished.config), self.config
        remedy = "Choose another place with -o or --sweep-store, or pass --overwrite."
        if isinstance(path, str):  # an address: nothing is replaced in a bucket
            remedy = "Choose another place with --sweep-store."
        stored_sets = config.get("sets")
        if isinstance(stored_sets, dict):  # what else it holds does no harm
            absent = [name for name in required["sets"] if name not in stored_sets]
            if absent:
                raise MismatchError(
                    f"'{path}' holds the direction sets {', '.join(stored_sets)}, but this run "
                    f"needs {', '.join(absent)} too, and one sweep steers with all of them. "
                    f"{remedy}"
                )
            config["sets"] = {name: stored_sets[name] for name in required["sets"]}
        require_same(
            {"config": {**required, "batch_tokens": None}, "provenance": self.source},
            {
                "config": {**config, "batch_tokens": None},
                "provenance": {name: finished.provenance.get(name) for name in self.source},
            },
            what=f"the settings of '{path}' and of this sweep",
            remedy=remedy,
        )
        for name, steering in self.sets.items():
            n_absent = int((steering.rows & ~swept.rows(name)).sum())
            if n_absent:
                raise MismatchError(
                    f"'{path}' has no propensities of {n_absent} of the {steering.rows.sum()} rows "
                    f"that this run needs of the direction set '{name}'. {remedy}"
                )
        return Sweep(finished, rows={name: steering.rows for name, steering in self.sets.items()})
