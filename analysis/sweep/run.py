"""The sweep of a whole store: every layer, multiplier and direction set, into `sweep.zarr`.

Writes the propensities, shard by shard; `grid` computes those of a shard. It runs a model and
imports torch: reading a finished sweep needs `open_sweep` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from actcache.analysis.stats.units import MapUnits
from actcache.analysis.sweep.grid import (
    CheckRows,
    SweepGrid,
    SweepShard,
    WriteShard,
    propensity_array,
)
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.reuse import SweepRequest
from actcache.analysis.sweep.row_directions import AnyDirections, row_directions
from actcache.analysis.sweep.sets import SweepSet
from actcache.build.place import require_place
from actcache.build.provenance import versions
from actcache.build.replay import load_store_model, rendered_pairs, require_store_model
from actcache.engine.model import LanguageModel
from actcache.engine.steered_scores import SteeringRule, can_move
from actcache.errors import MismatchError
from actcache.progress import AUTOMATIC, Progress
from actcache.prompts.render import Rendered
from actcache.store.schema import shard_rows
from actcache.store.store import Store
from actcache.store.writing.contents import SWEPT, StoreContents
from actcache.store.writing.partial import destination_of, require_room
from actcache.store.writing.writer import Writer


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
    map_units: MapUnits = map,
    shared: bool = False,
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
        out: where `sweep.zarr` will be: a folder, or `s3://bucket/sweep.zarr`.
        model: the model that the store was built with, or a function that loads it, which is not
            called for a finished sweep; by default it is loaded as the store names it.
        first_steered: first steered token; see `SteeringRule`.
        score: what propensity is made of; see `SteeringRule`.
        layers: layers to steer; by default all.
        batch_tokens: tokens in a pass, joined rows included.
        shard_rows: samples in a shard, after each of which the sweep can be resumed.
        progress: shows the samples that are done.
        title: of the progress bar.
        map_units: runs the check before the sweep, and then the shards.
        shared: whoever sweeps a shard writes it too, and leaves a receipt; by default this process
            writes all.

    Returns:
        The results, open for reading: `<set>/propensity` `[n, layer, multiplier]` float32, NaN of
        samples that the set does not steer.

    Raises:
        MismatchError: the model is not the store's, or a sweep of other settings lies at `out`.
        ActcacheError: the disk has no room for the results; or the bucket cannot be written.
    """
    rule = SteeringRule(first_steered=first_steered, score=score)
    steered = {name: _sweep_set(store, given, name) for name, given in sets.items()}
    request = SweepRequest.of(
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
        if destination_of(out).finished():
            sweep = request.open(out)
            on_rows(sweep.n)
            return sweep
        n_values = store.n * len(request.config["layers"]) * len(request.config["multipliers"])
        require_place(out, resume=True, overwrite=False)
        require_room(out, 4 * len(steered) * n_values)
        contents = partial(
            _contents, store, request, steered, batch_tokens=batch_tokens, shard_rows=shard_rows
        )
        contents(device="cuda:0").encode()  # what cannot be stored, before the model is loaded
        grid = SweepGrid(
            load=partial(_loaded, store, model),
            sets=steered,
            multipliers=request.config["multipliers"],
            rule=rule,
            layers=request.config["layers"],
            batch_tokens=batch_tokens,
        )
        shortest = min(rows, key=lambda row: row.length)
        [check] = map_units(grid, [CheckRows(few=rows[:4], shortest=shortest)])
        recorded = contents(device=check.device)
        with Writer.resume(out, recorded, shared=shared) as writer:
            on_rows(writer.committed)
            _write_shards(writer, grid, rows, shared=shared, map_units=map_units, on_rows=on_rows)
            writer.finish(check.certificate)
    return request.open(out)


def _sweep_set(store: Store, given: SweepSet | AnyDirections, name: str) -> SweepSet:
    if isinstance(given, SweepSet):
        return given
    directions = row_directions(store, given, name=name)
    return SweepSet(directions=directions, rows=np.ones(store.n, bool))


def sweep_shard_rows(n: int, n_layers: int, n_multipliers: int) -> int:
    """Count the samples of a shard, whose passes hold no others."""
    return shard_rows([propensity_array("set", n_layers, n_multipliers)], n)[0]


def _contents(
    store: Store,
    request: SweepRequest,
    sets: Mapping[str, SweepSet],
    *,
    batch_tokens: int,
    shard_rows: int | None,
    device: str,
) -> StoreContents:
    """Collect all of a sweep's store but the propensities: one array of them for each set."""
    layers, multipliers = request.config["layers"], request.config["multipliers"]
    arrays = [propensity_array(name, len(layers), len(multipliers)) for name in sets]
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
        config={**request.config, "batch_tokens": batch_tokens},
        provenance={**request.source, "device": device, "versions": versions()},
        shard_rows=shard_rows,
    )


def _write_shards(
    writer: Writer,
    grid: SweepGrid,
    rows: Sequence[Rendered],
    *,
    shared: bool,
    map_units: MapUnits,
    on_rows: Callable[[int], object],
) -> None:
    """Sweep the shards that are missing, and commit each in its turn.

    With `shared` those who sweep them write them too, and a shard with a receipt is not missing.
    """
    root = writer.layout.root
    numbers = range(writer.committed // root.shard_rows, root.n_shards)
    receipts = writer.receipts.read() if shared else {}
    # The checksums of what is committed would travel with each shard, and none needs them.
    layout = replace(writer.layout, checksums=(), last_record=writer.layout.first_record)
    shards = (_shard(writer, rows, number) for number in numbers if number not in receipts)
    if shared:
        written = map_units(grid, (WriteShard(shard=shard, layout=layout) for shard in shards))
        for number in numbers:
            writer.accept(receipts[number] if number in receipts else next(written))
            on_rows(len(root.rows_of(number)))
        return
    for number, blocks in zip(numbers, map_units(grid, shards), strict=True):
        part = root.rows_of(number)
        writer.commit(blocks, absent=grid.absent(part))
        on_rows(len(part))


def _shard(writer: Writer, rows: Sequence[Rendered], number: int) -> SweepShard:
    numbers = writer.layout.root.rows_of(number)
    return SweepShard(numbers=numbers, rows=rows[numbers.start : numbers.stop])


def _loaded(
    store: Store, model: LanguageModel | Callable[[], LanguageModel] | None
) -> LanguageModel:
    if model is None:
        return load_store_model(store)
    loaded = model if isinstance(model, LanguageModel) else model()
    require_store_model(store, loaded)
    return loaded
