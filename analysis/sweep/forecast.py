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
from actcache.analysis.sweep.run import nodes_added, sweep_costs, sweep_shard_rows
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
) -> dict[str, Any]:
    """Estimate the cost of an analysis; all stages but the sweep read the store, in seconds.

    Args:
        store: of residuals.
        path: where `sweep.zarr` will be; rows that are done there need not run again. None if one
            that lies there would be removed first. Its settings are not compared.
        config: the settings. λ = 0 costs nothing.
        model: loads the model that the store was built with; or a sentence on why it cannot.

    Returns:
        `rows`, `bytes to read` and `passes`; with the stage `sweep` also `rows done`; `cells`, one
        a row, direction set, layer and multiplier; `joined rows`, the tokens that cells replace, at
        most; `tokens shared`, which a pass need not run, since another of its rows begins with
        them; `token-layers` of prefixes and joined rows, padding not counted; `full passes that it
        replaces`, two a cell (both completions); `bytes of sweep.zarr`, without its columns;
        `estimated seconds` of the rows that are not done, or None, and the basis of that as
        `estimate`.

    Raises:
        MismatchError: the store is no store of residuals.
        ModelError: the model cannot be loaded.
    """
    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals. Pass what build wrote."
        )
    facts = {"rows": store.n, "bytes to read": store.n_bytes}
    if "sweep" not in config.stages or any(store["label"].tolist()):
        return {**facts, "passes": 0}
    rule = SteeringRule(first_steered=config.first_steered, score=config.score)
    all_rows = rendered_pairs(store)
    n_sets = 1 + config.controls  # the directions, and random ones of the same length
    layers = list(range(store.n_layers)) if config.layers is None else sorted(set(config.layers))
    done = 0 if path is None else _rows_done(Path(path))
    rows = all_rows[done:]
    n_steps = sum(x != 0 for x in config.multipliers)
    # A cell at layer l runs through the blocks above it.
    blocks = sum(store.n_layers - 1 - layer for layer in layers)
    nodes = np.array([nodes_added(row, rule) for row in all_rows])
    costs = sweep_costs(rows, rule, n_cells=n_sets * len(layers) * n_steps)
    work = [
        store.n_layers * row.length + n_sets * n_steps * blocks * int(n)
        for row, n in zip(all_rows, nodes, strict=True)
    ]
    cells = store.n * n_sets * len(layers) * len(config.multipliers)
    batching: dict[str, Any] = {
        "budget": config.batch_tokens,
        "heads": [sweep_head(row, rule) for row in rows],
        "shard_rows": sweep_shard_rows(store.n, len(layers), len(config.multipliers)),
    }
    if isinstance(model, str):
        estimate = TimeEstimate(None, model)
    elif not rows:
        estimate = TimeEstimate(0.0, "every row is done")
    else:
        start = time.perf_counter()
        loaded = model()
        loading = time.perf_counter() - start
        if not loaded.can_share_beginnings:
            batching["heads"] = None
        run = _runner(loaded, rows, rule, layers, config)
        estimate = scaled(
            costs,
            work[done:],
            run=run,
            place=str(loaded.device),
            loading=loading,
            a_token=store.n_layers,
            **batching,
        )
    batches = plan_batches(costs, **batching)
    tokens_shared = sum(n_shared(batch, batching["heads"]) for batch in batches)
    return {
        **facts,
        "rows done": done,
        "cells": cells,
        "joined rows": int(nodes.sum()) * n_sets * len(layers) * n_steps,
        "tokens shared": tokens_shared,
        "passes": len(batches),
        "token-layers": sum(work) - store.n_layers * tokens_shared,
        "full passes that it replaces": 2 * cells,
        "bytes of sweep.zarr": 4 * cells,
        "estimated seconds": estimate.seconds,
        "estimate": estimate.basis,
    }


def _runner(
    model: LanguageModel,
    rows: Sequence[Rendered],
    rule: SteeringRule,
    layers: Sequence[int],
    config: AnalyzeConfig,
) -> Callable[[Int64[np.ndarray, " _"]], None]:
    """Make a function that sweeps some of the rows, with random directions."""
    shape = (1 + config.controls, model.n_layers, model.d_model)
    directions = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def run(chosen: Int64[np.ndarray, " _"]) -> None:
        score_grid(
            model,
            [rows[row] for row in chosen],
            directions=directions,
            multipliers=config.multipliers,
            rule=rule,
            layers=layers,
        )

    return run


def _rows_done(path: Path) -> int:
    try:
        return open_store(path, partial=True).n
    except (StoreNotFoundError, IncompleteStoreError):
        return 0
