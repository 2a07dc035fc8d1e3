"""What a sweep will cost before it runs: rows that join, passes that it replaces, bytes, and time.

The counts need the store alone; for the time the model runs one real batch with random directions,
so this imports torch.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.sweep.given import given_names
from actcache.analysis.sweep.grid import nodes_added
from actcache.analysis.sweep.run import sweep_shard_rows
from actcache.analysis.sweep.sets import rows_of_sets
from actcache.build.forecast import TimeEstimate, scaled
from actcache.build.replay import rendered_pairs
from actcache.engine.batching import n_shared, plan_batches
from actcache.engine.model import LanguageModel
from actcache.engine.steered_scores import SteeringRule, score_grid, sweep_head
from actcache.errors import IncompleteStoreError, MismatchError, StoreNotFoundError
from actcache.prompts.render import Rendered
from actcache.store.store import Store, open_store


def forecast_analysis(
    store: Store,
    path: str | Path | None,
    *,
    config: AnalyzeConfig,
    model: Callable[[], LanguageModel] | str,
    learned: Sequence[str] = (),
) -> dict[str, Any]:
    """Estimate the cost of an analysis; all stages but the sweep read the store, in seconds.

    Args:
        store: of residuals.
        path: where the sweep's store will be; rows that are done there need not run again. None if
            one that lies there would be removed first. Its settings are not compared.
        config: the settings. λ = 0 costs nothing.
        model: loads the model that the store was built with; or a sentence on why it cannot.
        learned: names of the direction sets that are learned before the sweep; those of other
            methods and of files, which the settings name, are counted too.

    Returns:
        `rows`, `bytes to read` and `passes`; with a sweep also `rows done`; `cells`, one a row,
        direction set, layer and multiplier; `cells saved`, those that no figure reads, of rows or
        of controls, which are not run; `joined rows`, the tokens that cells replace, at most;
        `tokens shared`, which a pass need not run, since another of its rows begins with them;
        `token-layers` of prefixes and joined rows, padding not counted; `full passes that it
        replaces`, two a cell (both completions); `bytes of sweep.zarr`, without its columns;
        `estimated seconds` of the rows that are not done, or None, and the basis of that as
        `estimate`.

    Raises:
        MismatchError: the store is no store of residuals, or a file of directions is not for it.
        ModelError: the model cannot be loaded.
    """
    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals. Pass what build wrote."
        )
    facts = {"rows": store.n, "bytes to read": store.n_bytes}
    if not {"sweep", "predictors"} & set(config.stages) or any(store["label"].tolist()):
        return {**facts, "passes": 0}
    rule = SteeringRule(first_steered=config.first_steered, score=config.score)
    all_rows = rendered_pairs(store)
    sets = rows_of_sets(store, config, [*learned, *given_names(store, config)])
    n_sets = np.sum(list(sets.values()), axis=0)  # of each row
    layers = list(range(store.n_layers)) if config.layers is None else sorted(set(config.layers))
    done = 0 if path is None else _rows_done(path)
    rows = all_rows[done:]
    n_steps = sum(x != 0 for x in config.multipliers)
    # A cell at layer l runs through the blocks above it.
    blocks = sum(store.n_layers - 1 - layer for layer in layers)
    nodes = np.array([nodes_added(row, rule) for row in all_rows])
    lengths = np.array([row.length for row in all_rows])
    costs = (lengths + n_sets * len(layers) * n_steps * nodes)[done:]
    work = store.n_layers * lengths * (n_sets > 0) + n_sets * n_steps * blocks * nodes
    a_set = len(layers) * len(config.multipliers)
    cells = int(n_sets.sum()) * a_set
    heads = [sweep_head(row, rule) for row in rows]
    shard = sweep_shard_rows(store.n, len(layers), len(config.multipliers))
    # Rows of a shard that have equally many sets run together.
    to_run = [
        start + np.flatnonzero(n_sets[done:][start : start + shard] == count)
        for start in range(0, len(rows), shard)
        for count in np.unique(n_sets[done:][start : start + shard])
        if count
    ]
    shares = True
    if isinstance(model, str):
        estimate = TimeEstimate(None, model)
    elif not to_run:
        estimate = TimeEstimate(0.0, "every row is done")
    else:
        start_loading = time.perf_counter()
        loaded = model()
        loading = time.perf_counter() - start_loading
        shares = loaded.can_share_beginnings
        steered = np.concatenate(to_run)
        estimate = scaled(
            costs[steered].tolist(),
            work[done:][steered].tolist(),
            budget=config.batch_tokens,
            run=_runner(
                loaded,
                [rows[row] for row in steered],
                n_sets[done:][steered],
                rule=rule,
                layers=layers,
                config=config,
            ),
            place=str(loaded.device),
            loading=loading,
            heads=[heads[row] for row in steered] if shares else None,
            a_token=store.n_layers,
        )
    batches = [
        group[batch]
        for group in to_run
        for batch in plan_batches(
            costs[group].tolist(),
            budget=config.batch_tokens,
            heads=[heads[row] for row in group] if shares else None,
        )
    ]
    tokens_shared = sum(n_shared(batch, heads if shares else None) for batch in batches)
    return {
        **facts,
        "rows done": done,
        "cells": cells,
        "cells saved": store.n * len(sets) * a_set - cells,
        "joined rows": int((nodes * n_sets).sum()) * len(layers) * n_steps,
        "tokens shared": tokens_shared,
        "passes": len(batches),
        "token-layers": int(work.sum()) - store.n_layers * tokens_shared,
        "full passes that it replaces": 2 * cells,
        "bytes of sweep.zarr": 4 * store.n * len(sets) * a_set,
        "estimated seconds": estimate.seconds,
        "estimate": estimate.basis,
    }


def _runner(
    model: LanguageModel,
    rows: Sequence[Rendered],
    n_sets: Int64[np.ndarray, " row"],
    *,
    rule: SteeringRule,
    layers: Sequence[int],
    config: AnalyzeConfig,
) -> Callable[[Int64[np.ndarray, " _"]], None]:
    """Make a function that sweeps some of the rows, with random directions."""
    shape = (int(n_sets.max()), model.n_layers, model.d_model)
    directions = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def run(chosen: Int64[np.ndarray, " _"]) -> None:
        for count in np.unique(n_sets[chosen]):
            score_grid(
                model,
                [rows[row] for row in chosen[n_sets[chosen] == count]],
                directions=directions[:count],
                multipliers=config.multipliers,
                rule=rule,
                layers=layers,
            )

    return run


def _rows_done(path: str | Path) -> int:
    try:
        return open_store(path, partial=True).n
    except (StoreNotFoundError, IncompleteStoreError):
        return 0
