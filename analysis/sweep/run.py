"""The sweep of a whole store: every layer, multiplier and direction set, into `sweep.zarr`.

Plans which rows run together and writes the propensities; the passes themselves are
`actcache.engine.steered_scores`. It runs a model and imports torch: reading a finished sweep needs
`open_sweep` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.row_directions import AnyDirections, RowDirections, row_directions
from actcache.build.provenance import versions
from actcache.build.replay import load_store_model, rendered_pairs, require_store_model
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, can_move, score_grid, sweep_head
from actcache.errors import MismatchError, ModelError
from actcache.identity import IDENTITY, require_same
from actcache.progress import SILENT, Progress
from actcache.prompts.beginnings import group_by_beginning
from actcache.prompts.render import Rendered
from actcache.store.contents import StoreContents
from actcache.store.copies.selection import require_all_layers
from actcache.store.partial import require_room
from actcache.store.schema import RowArray, shard_rows
from actcache.store.store import Store, open_store
from actcache.store.writer import Writer

NAIVE_BOUND = 1e-3
"""Largest error, absolute or relative, of a cell in float32; measured ones are below 1e-5."""


def run_sweep(
    store: Store,
    sets: Mapping[str, AnyDirections],
    *,
    multipliers: Sequence[float | int],
    out: str | Path,
    model: LanguageModel | Callable[[], LanguageModel] | None = None,
    first_steered: str = "fork",
    score: str = "letter",
    layers: Sequence[int] | None = None,
    batch_tokens: int = 2048,
    shard_rows: int | None = None,
    progress: Progress = SILENT,
    title: str = "sweep",
) -> Sweep:
    """Steer every sample at every layer with every multiplier; keep the propensities.

    An interrupted run of the same settings is resumed, a finished one is opened as it is.

    Args:
        store: pairs, with their tokens.
        sets: directions by name of the set: one `[layer, d_model]` for all samples, one for each
            sample, or the `difference_of_means` of a store. All sets share one pass.
        multipliers: factors λ, each once.
        out: where `sweep.zarr` will be.
        model: the model that the store was built with, or a function that loads it, which is not
            called for a finished sweep; by default it is loaded as the store names it.
        first_steered: first steered token; see `SteeringRule`.
        score: what propensity is made of; see `SteeringRule`.
        layers: layers to steer; by default all.
        batch_tokens: tokens in a pass, joined rows included.
        shard_rows: samples in a shard, after each of which the sweep can be resumed.
        progress: shows the samples that are done.
        title: of the progress bar.

    Returns:
        The results, open for reading: `<set>/propensity` `[n, layer, multiplier]` float32.

    Raises:
        MismatchError: the model is not the store's, or a sweep of other settings lies at `out`.
        ActcacheError: the disk has no room for the results.
    """
    path, rule = Path(out), SteeringRule(first_steered=first_steered, score=score)
    require_all_layers(store)
    layers = list(range(store.n_layers)) if layers is None else sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < store.n_layers:
        raise MismatchError(
            f"layers to steer are {layers}, but the store has layers 0 to {store.n_layers - 1}. "
            "Pass some of them."
        )
    factors = [float(x) for x in multipliers]
    rows = rendered_pairs(store)
    if n_unmoved := sum(not can_move(row, rule) for row in rows):
        raise MismatchError(
            f"the completions of {n_unmoved} of {store.n} samples have no token before the one "
            f"that is scored: with --first-steered {first_steered} and --score {score} it is read "
            "before anything is steered, and every slope is 0; expected a steered token that can "
            "move it. Pass --first-steered fork, or a --score of whole completions."
        )
    directions = {name: row_directions(store, given, name=name) for name, given in sets.items()}
    config = {
        "rule": asdict(rule),
        "layers": layers,
        "multipliers": factors,
        "sets": {name: chosen.digest for name, chosen in directions.items()},
        "batch_tokens": batch_tokens,
    }
    identity = store.provenance["model"]
    source = {
        "store": {"data_sha256": store.provenance["data_sha256"], "n": store.n},
        "model": {name: identity[name] for name in IDENTITY},
    }
    with progress.steps(title, store.n) as on_rows:
        if path.exists():
            finished = open_store(path, check=True)
            _require_same_settings(path, finished, config, source)
            on_rows(finished.n)
            return Sweep(finished)
        require_room(path, 4 * store.n * len(sets) * len(layers) * len(factors))
        grid = _Grid(
            model=_loaded(store, model),
            rows=rows,
            sets=directions,
            multipliers=factors,
            rule=rule,
            layers=layers,
        )
        resume = path.with_name(path.name + ".partial").exists()
        with (Writer.resume if resume else Writer.create)(
            path,
            StoreContents(
                kind="sweep",
                n=store.n,
                arrays=grid.arrays,
                columns={
                    **{name: list(store[name]) for name in ("id", "behavior", "letter", "split")},
                    "layer": np.array(layers, np.int64),
                    "multiplier": np.array(factors, np.float64),
                },
                config=config,
                provenance={**source, "device": str(grid.model.device), "versions": versions()},
                shard_rows=shard_rows,
            ),
        ) as writer:
            on_rows(writer.committed)
            certificate = _self_check(grid)
            budget = Budget(batch_tokens)
            while writer.committed < store.n:
                shard = writer.next_rows
                writer.commit(grid.sweep_rows(shard, budget))
                on_rows(shard.stop - shard.start)
            writer.finish(certificate)
    return Sweep(open_store(path, check=True))


def sweep_costs(rows: Sequence[Rendered], rule: SteeringRule, *, n_cells: int) -> list[int]:
    """Tokens that each sample costs in a pass of `n_cells` cells: its own and those that join."""
    return [row.length + n_cells * nodes_added(row, rule) for row in rows]


def sweep_shard_rows(n: int, n_layers: int, n_multipliers: int) -> int:
    """Count the samples of a shard, whose passes hold no others."""
    return shard_rows([_array("set", n_layers, n_multipliers)], n)[0]


def _array(name: str, n_layers: int, n_multipliers: int) -> RowArray:
    dims = ("n", "layer", "multiplier")
    return RowArray(f"{name}/propensity", n_layers, n_multipliers, "float32", dims)


def nodes_added(row: Rendered, rule: SteeringRule) -> int:
    """Count the tokens that one cell of a sample replaces, at most."""
    branches = len(row.positive) + len(row.negative) if rule.whole else 0
    return 1 + (len(row.shared) if rule.first_steered != "fork" else 0) + branches


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The cells of a sweep, and the model that they run through."""

    model: LanguageModel
    rows: Sequence[Rendered]
    sets: Mapping[str, RowDirections]
    multipliers: Sequence[float]
    rule: SteeringRule
    layers: Sequence[int]

    @property
    def arrays(self) -> list[RowArray]:
        """One array of propensities for each direction set."""
        return [_array(name, len(self.layers), len(self.multipliers)) for name in self.sets]

    def sweep_rows(self, shard: slice, budget: Budget) -> dict[str, np.ndarray]:
        """Propensities of one shard's rows, by name of the array."""
        rows = self.rows[shard]
        propensity = {
            array.name: np.empty((len(rows), array.n_layers, array.width), np.float32)
            for array in self.arrays
        }
        n_cells = len(self.sets) * len(self.layers) * sum(x != 0 for x in self.multipliers)
        costs = sweep_costs(rows, self.rule, n_cells=n_cells)

        def run(batch: Int64[np.ndarray, " b"]) -> None:
            row_numbers = batch + shard.start
            directions = np.stack([chosen.rows(row_numbers) for chosen in self.sets.values()])
            scores = self.score([rows[i] for i in batch], directions, self.multipliers)
            for i, name in enumerate(self.sets):
                propensity[f"{name}/propensity"][batch] = scores[:, i]

        heads = [sweep_head(row, self.rule) for row in rows]
        shares = bool(group_by_beginning(heads)) and self.model.can_share_beginnings
        run_batches(costs, budget=budget, run=run, heads=heads if shares else None)
        return propensity

    def score(
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


def _loaded(
    store: Store, model: LanguageModel | Callable[[], LanguageModel] | None
) -> LanguageModel:
    if model is None:
        return load_store_model(store)
    loaded = model if isinstance(model, LanguageModel) else model()
    require_store_model(store, loaded)
    return loaded


def _require_same_settings(
    path: Path, finished: Store, config: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
    """Refuse a finished sweep of other settings; how rows were batched is rounding alone."""
    provenance = {name: finished.provenance.get(name) for name in source}
    require_same(
        {"config": {**config, "batch_tokens": None}, "provenance": source},
        {"config": {**finished.config, "batch_tokens": None}, "provenance": provenance},
        what=f"the settings of '{path}' and of this sweep",
        remedy="Choose another folder with -o, or pass --overwrite.",
    )


def _self_check(grid: _Grid) -> dict[str, float]:
    """Before a long run: a few cells against two full passes each, and how far λ = 0 spreads.

    Returns:
        `naive_error`: largest absolute difference over the first, middle and last layer, in the
        score's unit; `noise_floor`: the same of cells that add nothing, against the unsteered pass.

    Raises:
        ModelError: in float32 or float64 a cell is not what two full passes give.
    """
    model, layers = grid.model, grid.layers
    shortest = min(grid.rows, key=lambda row: row.length)
    multiplier = max(grid.multipliers, key=abs)
    values = next(iter(grid.sets.values())).rows(np.zeros(1, np.int64))  # [1, layer, d_model]
    few = [*grid.rows[:4], shortest]
    still = grid.score(few, np.zeros((1, *values.shape[1:]), np.float32), [0.0, 1.0])
    fast = grid.score(few, values, [multiplier])
    places = sorted({0, len(layers) // 2, len(layers) - 1})
    slow = [
        reference_cell(
            model,
            shortest,
            torch.from_numpy(values[0, layers[i]]),
            multiplier,
            layers[i],
            grid.rule,
        )
        for i in places
    ]
    naive_error = float(np.abs(fast[-1, 0, places, 0] - np.array(slow)).max())
    bound = NAIVE_BOUND * max(1.0, float(np.abs(slow).max()))
    # In half precision both results are off by their own rounding, so it is only recorded.
    if model.dtype in ("float32", "float64") and naive_error > bound:
        raise ModelError(
            f"on '{model.name}' ({model.hf.config.model_type}) a steered cell is off by "
            f"{naive_error:.2g} from two full passes, expected at most {bound:.2g}: the sweep does "
            "not handle this family or attention. Use a family of the README's list."
        )
    return {
        "naive_error": naive_error,
        "noise_floor": float(np.abs(still[..., 1] - still[..., 0]).max()),
    }
