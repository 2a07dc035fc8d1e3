"""The sweep of a whole store: every layer, multiplier and direction set, into `sweep.zarr`.

Plans which rows run together and writes the propensities; the passes themselves are
`actcache.engine.steered_scores`. It runs a model and imports torch: reading a finished sweep needs
`open_sweep` alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.reuse import WantedSweep
from actcache.analysis.sweep.row_directions import AnyDirections, row_directions
from actcache.analysis.sweep.sets import SweepSet
from actcache.build.provenance import versions
from actcache.build.replay import load_store_model, rendered_pairs, require_store_model
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, can_move, score_grid, sweep_head
from actcache.errors import MismatchError, ModelError
from actcache.progress import AUTOMATIC, Progress
from actcache.prompts.beginnings import group_by_beginning
from actcache.prompts.render import Rendered
from actcache.store.contents import SWEPT, StoreContents
from actcache.store.partial import require_room
from actcache.store.schema import RowArray, shard_rows
from actcache.store.store import Store
from actcache.store.writer import Writer

NAIVE_BOUND = 1e-3
"""Largest error, absolute or relative, of a cell in float32; measured ones are below 1e-5."""


def run_sweep(
    store: Store,
    sets: Mapping[str, SweepSet | AnyDirections],
    *,
    multipliers: Sequence[float | int],
    out: str | Path,
    model: LanguageModel | Callable[[], LanguageModel] | None = None,
    first_steered: str = "fork",
    score: str = "letter",
    layers: Sequence[int] | None = None,
    batch_tokens: int = 2048,
    shard_rows: int | None = None,
    progress: Progress = AUTOMATIC,
    title: str = "sweep",
) -> Sweep:
    """Steer samples at every layer with every multiplier; keep the propensities.

    An interrupted run of the same settings is resumed. A finished one is opened as it is, if it has
    these sets and rows, whatever it has beside them.

    Args:
        store: pairs, with their tokens.
        sets: directions by name of the set: one `[layer, d_model]` for all samples, one for each
            sample, or the `difference_of_means` of a store; a `SweepSet` steers some samples alone.
            All sets share one pass.
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
        The results, open for reading: `<set>/propensity` `[n, layer, multiplier]` float32, NaN of
        samples that the set does not steer.

    Raises:
        MismatchError: the model is not the store's, or a sweep of other settings lies at `out`.
        ActcacheError: the disk has no room for the results.
    """
    path, rule = Path(out), SteeringRule(first_steered=first_steered, score=score)
    steered = {name: _sweep_set(store, given, name) for name, given in sets.items()}
    wanted = WantedSweep.of(
        store, steered, multipliers=multipliers, rule=asdict(rule), layers=layers
    )
    rows = rendered_pairs(store)
    if n_unmoved := sum(not can_move(row, rule) for row in rows):
        raise MismatchError(
            f"the completions of {n_unmoved} of {store.n} samples have no token before the one "
            f"that is scored: with --first-steered {first_steered} and --score {score} it is read "
            "before anything is steered, and every slope is 0; expected a steered token that can "
            "move it. Pass --first-steered fork, or a --score of whole completions."
        )
    with progress.steps(title, store.n) as on_rows:
        if path.exists():
            sweep = wanted.open(path)
            on_rows(sweep.n)
            return sweep
        n_values = store.n * len(wanted.config["layers"]) * len(wanted.config["multipliers"])
        require_room(path, 4 * len(steered) * n_values)
        contents = partial(
            _contents, store, wanted, steered, batch_tokens=batch_tokens, shard_rows=shard_rows
        )
        contents(device="cuda:0").encode()  # what cannot be stored, before the model is loaded
        grid = _Grid(
            model=_loaded(store, model),
            rows=rows,
            sets=steered,
            multipliers=wanted.config["multipliers"],
            rule=rule,
            layers=wanted.config["layers"],
        )
        recorded = contents(device=str(grid.model.device))
        resume = path.with_name(path.name + ".partial").exists()
        with (Writer.resume if resume else Writer.create)(path, recorded) as writer:
            on_rows(writer.committed)
            certificate = _self_check(grid)
            budget = Budget(batch_tokens)
            while writer.committed < store.n:
                shard = writer.next_rows
                values = grid.sweep_rows(shard, budget.renewed())
                writer.commit(values, absent=recorded.absent(shard))
                on_rows(shard.stop - shard.start)
            writer.finish(certificate)
    return wanted.open(path)


def _sweep_set(store: Store, given: SweepSet | AnyDirections, name: str) -> SweepSet:
    if isinstance(given, SweepSet):
        return given
    directions = row_directions(store, given, name=name)
    return SweepSet(directions=directions, rows=np.ones(store.n, bool))


def sweep_costs(rows: Sequence[Rendered], rule: SteeringRule, *, n_cells: int) -> list[int]:
    """Tokens that each sample costs in a pass of `n_cells` cells: its own and those that join."""
    return [row.length + n_cells * nodes_added(row, rule) for row in rows]


def sweep_shard_rows(n: int, n_layers: int, n_multipliers: int) -> int:
    """Count the samples of a shard, whose passes hold no others."""
    return shard_rows([_array("set", n_layers, n_multipliers)], n)[0]


def _contents(
    store: Store,
    wanted: WantedSweep,
    sets: Mapping[str, SweepSet],
    *,
    batch_tokens: int,
    shard_rows: int | None,
    device: str,
) -> StoreContents:
    """Collect all of a sweep's store but the propensities: one array of them for each set."""
    layers, multipliers = wanted.config["layers"], wanted.config["multipliers"]
    arrays = [_array(name, len(layers), len(multipliers)) for name in sets]
    return StoreContents(
        kind="sweep",
        n=store.n,
        arrays=arrays,
        columns={
            **{name: list(store[name]) for name in ("id", "behavior", "letter", "split")},
            "layer": np.array(layers, np.int64),
            "multiplier": np.array(multipliers, np.float64),
            SWEPT: np.column_stack(
                [sets[name].rows for name in sorted(sets, key=lambda name: f"{name}/propensity")]
            ),
        },
        config={**wanted.config, "batch_tokens": batch_tokens},
        provenance={**wanted.source, "device": device, "versions": versions()},
        shard_rows=shard_rows,
    )


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
    sets: Mapping[str, SweepSet]
    multipliers: Sequence[float]
    rule: SteeringRule
    layers: Sequence[int]

    def sweep_rows(self, shard: slice, budget: Budget) -> dict[str, np.ndarray]:
        """Propensities of one shard's rows, by name of the array; NaN where a set has none."""
        rows = self.rows[shard]
        shape = (len(rows), len(self.layers), len(self.multipliers))
        propensity = {
            f"{name}/propensity": np.full(shape, np.nan, np.float32) for name in self.sets
        }
        for names, places in self._groups(shard):
            chosen = [rows[place] for place in places]
            n_steps = sum(x != 0 for x in self.multipliers)
            n_cells = len(names) * len(self.layers) * n_steps

            def run(
                batch: Int64[np.ndarray, " b"],
                names: Sequence[str] = names,
                places: Int64[np.ndarray, " _"] = places,
                chosen: Sequence[Rendered] = chosen,
            ) -> None:
                row_numbers = places[batch] + shard.start
                directions = np.stack(
                    [self.sets[name].directions.rows(row_numbers) for name in names]
                )
                scores = self.score([chosen[i] for i in batch], directions, self.multipliers)
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

    def _groups(self, shard: slice) -> Iterator[tuple[list[str], Int64[np.ndarray, " place"]]]:
        """The rows of a shard by the sets that steer them; not those that none steers."""
        steered = np.column_stack([each.rows[shard] for each in self.sets.values()])
        for pattern in np.unique(steered, axis=0):
            if pattern.any():
                names = [name for name, yes in zip(self.sets, pattern, strict=True) if yes]
                yield names, np.flatnonzero((steered == pattern).all(1))

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
    first = next(iter(grid.sets.values())).directions
    values = first.rows(np.zeros(1, np.int64))  # [1, layer, d_model]
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
