"""The sweep of a whole store: each layer, multiplier and direction set, into `sweep.zarr`.

Decides which rows run together and keeps the results; the passes themselves are
`actcache.engine.steered_scores`. The one module of the analyses that runs a model, so the only one
that torch comes in with: import it where a model is at hand.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from actcache.build.provenance import versions
from actcache.build.replay import rendered_pairs, require_store_model
from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import LanguageModel
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.errors import MismatchError, ModelError
from actcache.identity import IDENTITY, require_same
from actcache.prompts.render import Rendered
from actcache.store.copies.selection import require_all_layers
from actcache.store.partial import committed_bytes
from actcache.store.schema import RowArray
from actcache.store.storage.room import require_room
from actcache.store.store import Store, open_store
from actcache.store.writer import Writer

NAIVE_BOUND = 1e-3
"""Largest error, absolute or relative, of a cell in float32; measured ones are below 1e-5."""

SHARD_ROWS: int | None = None
"""Rows of a shard, for tests; by default as `schema.shard_rows` chooses."""


@dataclass(frozen=True)
class DirectionSet:
    """Which direction each sample is steered with, given for some samples at a time.

    Directions of their own for every sample (an oracle's, a network's) are gigabytes at a real
    model's size, so a set is asked for those of a batch and never for all.
    """

    rows: Callable[[Int64[np.ndarray, " b"]], Float32[np.ndarray, "b layer d_model"]]
    """Directions of the samples with these row numbers, at all layers of the model."""

    digest: str
    """Names the directions for good: what makes a kept sweep one of these or of others."""


def shared_directions(
    values: Float32[np.ndarray, "k layer d_model"], of: Int64[np.ndarray, " n"]
) -> DirectionSet:
    """A few directions, for example one for each behavior.

    Args:
        values: the directions.
        of: row of `values` that belongs to each sample of the store.
    """
    parts = (np.ascontiguousarray(values), np.ascontiguousarray(of))
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    return DirectionSet(lambda rows: values[of[rows]], digest)


def run_sweep(
    store: Store,
    path: str | Path,
    *,
    model: Callable[[], LanguageModel],
    sets: Mapping[str, DirectionSet],
    multipliers: Sequence[float],
    rule: SteeringRule,
    layers: Sequence[int] | None = None,
    batch_tokens: int = 2048,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Steer every sample at every layer with every multiplier; keep the propensities.

    Goes on where an earlier run of the same settings was interrupted, and returns a finished one
    as it is.

    Args:
        store: pairs, with their tokens.
        path: where `sweep.zarr` will be.
        model: loads the model that the store was built with; not called for a finished sweep.
        sets: direction sets by name; the prefix is computed once for all.
        multipliers: factors λ, each once.
        rule: first steered token and score.
        layers: layers to steer; by default all.
        batch_tokens: tokens in a pass, joined rows included.
        on_rows: told how many rows were committed, each time.

    Returns:
        The results, open for reading: `<set>/propensity` `[n, layer, multiplier]` float32.

    Raises:
        MismatchError: the model is not the store's, or what lies at `path` has other settings.
        ActcacheError: there is no room for the results.
    """
    path = Path(path)
    require_all_layers(store)
    layers = list(range(store.n_layers)) if layers is None else sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < store.n_layers:
        raise MismatchError(
            f"layers to steer are {layers}, but the store has layers 0 to {store.n_layers - 1}. "
            "Pass some of them."
        )
    rows = rendered_pairs(store)
    config = {
        "rule": asdict(rule),
        "layers": layers,
        "multipliers": [float(x) for x in multipliers],
        "sets": {name: each.digest for name, each in sets.items()},
        "batch_tokens": batch_tokens,
    }
    kept = store.provenance["model"]
    source = {
        "store": {"data_sha256": store.provenance["data_sha256"], "n": store.n},
        "model": {name: kept[name] for name in IDENTITY},
    }
    if path.exists():
        done = open_store(path)
        before = {name: done.provenance.get(name) for name in source}
        require_same(
            # How rows were cut into passes touches nothing but rounding.
            {"config": {**config, "batch_tokens": None}, "provenance": source},
            {"config": {**done.config, "batch_tokens": None}, "provenance": before},
            what=f"the settings of '{path}' and of this sweep",
            remedy="Choose another folder with -o, or pass --overwrite.",
        )
        on_rows(done.n)
        return done

    n_bytes = 4 * store.n * len(sets) * len(layers) * len(multipliers)
    require_room(path, n_bytes - committed_bytes(path))
    loaded = model()
    require_store_model(store, loaded)
    provenance = {**source, "device": str(loaded.device), "versions": versions()}

    settings: dict[str, Any] = {
        "kind": "sweep",
        "n": store.n,
        "arrays": [
            RowArray(
                f"{name}/propensity",
                len(layers),
                len(multipliers),
                "float32",
                ("n", "layer", "multiplier"),
            )
            for name in sets
        ],
        "columns": {
            **{name: list(store[name]) for name in ("id", "behavior", "letter", "split")},
            "layer": np.array(layers, np.int64),
            "multiplier": np.array(multipliers, np.float64),
        },
        "config": config,
        "provenance": provenance,
        "shard_rows": SHARD_ROWS,
    }
    resume = path.with_name(path.name + ".partial").exists()
    with (Writer.resume if resume else Writer.create)(path, **settings) as writer:
        on_rows(writer.committed)
        check = _self_check(loaded, rows, sets, rule, layers, multipliers)
        budget = Budget(batch_tokens)
        while writer.committed < store.n:
            shard = writer.next_rows
            here = rows[shard]
            found = {
                array.name: np.empty((len(here), array.n_layers, array.width), np.float32)
                for array in settings["arrays"]
            }
            n_cells = len(sets) * len(layers) * sum(x != 0 for x in multipliers)
            costs = sweep_costs(here, rule, n_cells=n_cells)
            run = partial(
                _fill, found, shard.start, loaded, rows, sets, list(multipliers), rule, layers
            )
            run_batches(costs, budget=budget, run=run)
            writer.commit(found)
            on_rows(len(here))
        writer.finish(check)
    return open_store(path)


def _fill(
    found: Mapping[str, np.ndarray],
    start: int,
    model: LanguageModel,
    rows: Sequence[Rendered],
    sets: Mapping[str, DirectionSet],
    multipliers: Sequence[float],
    rule: SteeringRule,
    layers: Sequence[int],
    batch: Int64[np.ndarray, " _"],
) -> None:
    """Sweep the rows `batch` of the shard that begins at `start`, into `found`."""
    at = batch + start
    directions = np.stack([each.rows(at) for each in sets.values()])
    out = score_grid(
        model,
        [rows[i] for i in at],
        directions=torch.from_numpy(directions),
        multipliers=multipliers,
        rule=rule,
        layers=layers,
    )  # [b, set, layer, multiplier]
    for i, name in enumerate(sets):
        found[f"{name}/propensity"][batch] = out[:, i]


def sweep_costs(rows: Sequence[Rendered], rule: SteeringRule, *, n_cells: int) -> list[int]:
    """Tokens that each sample costs in a pass of `n_cells` cells: its own and those that join."""
    return [row.length + n_cells * nodes_added(row, rule) for row in rows]


def nodes_added(row: Rendered, rule: SteeringRule) -> int:
    """Tokens that one cell of a sample replaces, at most."""
    branches = len(row.positive) + len(row.negative) if rule.whole else 0
    return 1 + (len(row.shared) if rule.first_steered != "fork" else 0) + branches


def _self_check(
    model: LanguageModel,
    rows: Sequence[Rendered],
    sets: Mapping[str, DirectionSet],
    rule: SteeringRule,
    layers: Sequence[int],
    multipliers: Sequence[float],
) -> dict[str, float]:
    """Before a long run: a few cells against two full passes each, and how far λ = 0 spreads.

    Returns:
        `naive_error`: largest absolute difference over the first, middle and last layer, in the
        score's unit; `noise_floor`: the same of cells that add nothing, against the unsteered pass.

    Raises:
        ModelError: in float32 or float64 a cell is not what two full passes give.
    """
    row, width = min(rows, key=lambda each: each.length), max(multipliers, key=abs)
    values = next(iter(sets.values())).rows(np.zeros(1, np.int64))
    few = [*rows[:4], row]
    zero = torch.zeros((1, *values.shape[1:]))
    still = score_grid(
        model, few, directions=zero, multipliers=[0.0, 1.0], rule=rule, layers=layers
    )
    fast = score_grid(
        model,
        few,
        directions=torch.from_numpy(values),
        multipliers=[width],
        rule=rule,
        layers=layers,
    )
    chosen = sorted({0, len(layers) // 2, len(layers) - 1})
    slow = [
        reference_cell(model, row, torch.from_numpy(values[0, layers[i]]), width, layers[i], rule)
        for i in chosen
    ]
    naive_error = float(np.abs(fast[-1, 0, chosen, 0] - np.array(slow)).max())
    room = NAIVE_BOUND * max(1.0, float(np.abs(slow).max()))
    # In half precision both ways are off by their own rounding: it is recorded, no more.
    if model.dtype in ("float32", "float64") and naive_error > room:
        raise ModelError(
            f"on '{model.name}' ({model.hf.config.model_type}) a steered cell is off by "
            f"{naive_error:.2g} from two full passes, expected at most {room:.2g}: the sweep does "
            "not handle this family or attention. Use a family of the README's list."
        )
    return {
        "naive_error": naive_error,
        "noise_floor": float(np.abs(still[..., 1] - still[..., 0]).max()),
    }
