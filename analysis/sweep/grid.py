"""The cells of a sweep: every layer, multiplier and direction set of some rows, through a model.

A grid computes a shard wherever it is called: it can be pickled, and loads the model when it first
needs it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from actcache.analysis.sweep.sets import SweepSet
from actcache.build.workers import require_begun
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, score_grid, sweep_head
from actcache.errors import ModelError
from actcache.prompts.beginnings import group_by_beginning
from actcache.prompts.render import Rendered
from actcache.store.layout import Layout
from actcache.store.schema import RowArray
from actcache.store.storage.atomic import os_errors_explained
from actcache.store.writing.receipts import Receipt, Receipts, write_shard

Result = TypeVar("Result")

NAIVE_BOUND = 1e-3
"""Largest error, absolute or relative, of a cell in float32; measured ones are below 1e-5."""


@dataclass(frozen=True, kw_only=True)
class SweepCheck:
    """What the check before a sweep found."""

    device: str
    """That the model runs on."""

    certificate: Mapping[str, float]
    """`naive_error`: largest absolute difference over the first, middle and last layer, in the
    score's unit; `noise_floor`: the same of cells that add nothing, against the unsteered pass."""


Blocks = dict[str, np.ndarray]
"""Propensities by name of the array `[n, layer, multiplier]`; NaN where a set has no row."""


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """The cells of a sweep, and the model that they run through.

    Called with work that is to be done with it.
    """

    load: Callable[[], LanguageModel]
    """Gives the model; called once, when it is first needed."""

    sets: Mapping[str, SweepSet]
    multipliers: Sequence[float]
    rule: SteeringRule
    layers: Sequence[int]
    batch_tokens: int

    @cached_property
    def model(self) -> LanguageModel:
        """The model of the store."""
        return self.load()

    @cached_property
    def _budget(self) -> Budget:
        return Budget(self.batch_tokens)

    def __getstate__(self) -> dict[str, Any]:
        # For workers: each loads the model for itself.
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __call__(self, work: "Callable[[SweepGrid], Result]") -> Result:
        """Do some work, such as `SweepShard`."""
        return work(self)

    def absent(self, rows: range) -> dict[str, Bool[np.ndarray, " n"]]:
        """Say for each array which of some rows it does not have."""
        part = slice(rows.start, rows.stop)
        return {f"{name}/propensity": ~steered.rows[part] for name, steered in self.sets.items()}

    def sweep(self, numbers: range, rows: Sequence[Rendered]) -> Blocks:
        """Propensities of one shard's rows, by their numbers in the store.

        Batches begin afresh, so that a lack of memory in one shard changes no other.
        """
        budget = self._budget.renewed()
        shape = len(rows), len(self.layers), len(self.multipliers)
        propensity = {
            f"{name}/propensity": np.full(shape, np.nan, np.float32) for name in self.sets
        }
        for names, places in self._groups(numbers):
            chosen = [rows[place] for place in places]
            n_steps = sum(x != 0 for x in self.multipliers)
            n_cells = len(names) * len(self.layers) * n_steps

            def run(
                batch: Int64[np.ndarray, " b"],
                names: Sequence[str] = names,
                places: Int64[np.ndarray, " _"] = places,
                chosen: Sequence[Rendered] = chosen,
            ) -> None:
                row_numbers = places[batch] + numbers.start
                directions = np.stack(
                    [self.sets[name].directions.rows(row_numbers) for name in names]
                )
                scores = self._score([chosen[i] for i in batch], directions, self.multipliers)
                for i, name in enumerate(names):
                    propensity[f"{name}/propensity"][places[batch]] = scores[:, i]

            heads = [sweep_head(row, self.rule) for row in chosen]
            shares = bool(group_by_beginning(heads)) and self.model.can_share_beginnings
            run_batches(
                sweep_costs(chosen, self.rule, n_cells=n_cells),
                budget=budget,
                run=run,
                heads=heads if shares else None,
            )
        return propensity

    def _groups(self, shard: range) -> Iterator[tuple[list[str], Int64[np.ndarray, " place"]]]:
        """The rows of a shard by the sets that steer them; not those that none steers."""
        part = slice(shard.start, shard.stop)
        steered = np.column_stack([sweep_set.rows[part] for sweep_set in self.sets.values()])
        for pattern in np.unique(steered, axis=0):
            if pattern.any():
                names = [name for name, yes in zip(self.sets, pattern, strict=True) if yes]
                yield names, np.flatnonzero((steered == pattern).all(1))

    def _score(
        self,
        rows: Sequence[Rendered],
        directions: Float32[np.ndarray, "set *rows layer d_model"],
        multipliers: Sequence[float],
    ) -> Float32[np.ndarray, "b set steered multiplier"]:
        """Propensity of some rows in every cell, in one pass."""
        return score_grid(
            self.model,
            rows,
            directions=torch.from_numpy(directions),
            multipliers=multipliers,
            rule=self.rule,
            layers=self.layers,
        )

    def check(self, few: Sequence[Rendered], shortest: Rendered) -> SweepCheck:
        """Before a long run: a few cells against two full passes each, and how far λ = 0 spreads.

        Raises:
            ModelError: in float32 or float64 a cell is not what two full passes give.
        """
        model, layers = self.model, self.layers
        multiplier = max(self.multipliers, key=abs)
        first = next(iter(self.sets.values())).directions
        values = first.rows(np.zeros(1, np.int64))  # [1, layer, d_model]
        few = [*few, shortest]
        still = self._score(few, np.zeros((1, *values.shape[1:]), np.float32), [0.0, 1.0])
        fast = self._score(few, values, [multiplier])
        places = sorted({0, len(layers) // 2, len(layers) - 1})
        slow = [
            reference_cell(
                model,
                shortest,
                torch.from_numpy(values[0, layers[i]]),
                multiplier,
                layers[i],
                self.rule,
            )
            for i in places
        ]
        naive_error = float(np.abs(fast[-1, 0, places, 0] - np.array(slow)).max())
        bound = NAIVE_BOUND * max(1.0, float(np.abs(slow).max()))
        # In half precision both results are off by their own rounding, so it is only recorded.
        if model.dtype in ("float32", "float64") and naive_error > bound:
            raise ModelError(
                f"on '{model.name}' ({model.hf.config.model_type}) a steered cell is off by "
                f"{naive_error:.2g} from two full passes, expected at most {bound:.2g}: the sweep "
                "does not handle this family or attention. Use a family of the README's list."
            )
        return SweepCheck(
            device=str(model.device),
            certificate={
                "naive_error": naive_error,
                "noise_floor": float(np.abs(still[..., 1] - still[..., 0]).max()),
            },
        )


@dataclass(frozen=True, kw_only=True)
class CheckRows:
    """Checks a grid on a few rows."""

    few: Sequence[Rendered]
    shortest: Rendered

    def __call__(self, grid: SweepGrid) -> SweepCheck:
        """Check it."""
        return grid.check(self.few, self.shortest)


@dataclass(frozen=True, kw_only=True)
class SweepShard:
    """Sweeps the rows of one shard."""

    numbers: range
    """Of the rows, in the store."""

    rows: Sequence[Rendered]

    def __call__(self, grid: SweepGrid) -> Blocks:
        """Give their propensities."""
        return grid.sweep(self.numbers, self.rows)


@dataclass(frozen=True, kw_only=True)
class WriteShard:
    """Sweeps the rows of one shard, writes it, and leaves a receipt."""

    shard: SweepShard
    layout: Layout
    """Of the sweep's store."""

    def __call__(self, grid: SweepGrid) -> Receipt:
        """Give the receipt."""
        numbers, layout = self.shard.numbers, self.layout
        require_begun(layout)
        with os_errors_explained(
            f"'{layout.storage.location}' cannot be written", committed="written"
        ):
            receipt = write_shard(
                layout,
                numbers.start // layout.root.shard_rows,
                self.shard(grid),
                absent=grid.absent(numbers),
            )
            Receipts(layout).write(receipt)
        return receipt


def propensity_array(name: str, n_layers: int, n_multipliers: int) -> RowArray:
    """Describe the array of a direction set."""
    dims = ("n", "layer", "multiplier")
    return RowArray(f"{name}/propensity", n_layers, n_multipliers, "float32", dims)


def sweep_costs(rows: Sequence[Rendered], rule: SteeringRule, *, n_cells: int) -> list[int]:
    """Tokens that each sample costs in a pass of `n_cells` cells: its own and those that join."""
    return [row.length + n_cells * nodes_added(row, rule) for row in rows]


def nodes_added(row: Rendered, rule: SteeringRule) -> int:
    """Count the tokens that one cell of a sample replaces, at most."""
    branches = len(row.positive) + len(row.negative) if rule.whole else 0
    return 1 + (len(row.shared) if rule.first_steered != "fork" else 0) + branches
