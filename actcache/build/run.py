"""The build: a plan and a model in, a finished store out, shard by shard.

Refuses to know what rows are and what could be wrong with them: that is `plan`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from actcache.build.certify import certify
from actcache.build.config import BuildConfig
from actcache.build.plan import BuildPlan, columns, provenance
from actcache.build.provenance import MODE, model_identity
from actcache.build.reuse import Reusable, find_reusable
from actcache.conventions import ATTENTION
from actcache.engine.batching import Budget, run_batches
from actcache.engine.capture import capture
from actcache.engine.model import DTYPES, LanguageModel, load_model
from actcache.engine.self_check import Read, check_capture
from actcache.store.schema import Dtype, RowArray
from actcache.store.store import Store, open_store
from actcache.store.writer import Writer

SHARD_ROWS: int | None = None
"""Rows of a shard, for tests; by default as `schema.shard_rows` chooses."""


def run_build(
    plan: BuildPlan,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    model: LanguageModel | None = None,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Fill a store as planned, and certify it.

    Args:
        plan: from `plan_build`.
        path: where the store will be; until it is complete it is `PATH.partial`.
        resume: go on with an interrupted build of the same plan.
        overwrite: replace a finished store that lies at `path`.
        reuse: stores of the same model whose rows of equal tokens are copied instead of run. They
            equal rows that are run to rounding: which rows share a pass decides the last bits.
        model: an already loaded model; by default the config's is loaded.
        on_rows: told how many rows were committed, each time.

    Returns:
        The finished store, open for reading.

    Raises:
        StoreExistsError: a store, or the rest of one, lies at `path`.
        MismatchError: `resume`, and the rest was begun with other settings, data or weights; or a
            store to `reuse` is of another model, or lacks what is read.
        NotFiniteError: a residual is not finite in the store's dtype.
        ModelError: the family is not handled, or the first rows differ from a plain forward pass.
    """
    config = plan.config
    if model is None:
        model = load_planned(config)
    read = reader(config)
    check = check_capture(
        model,
        plan.rendered,
        read=read,
        positions=plan.positions,
        sites=config.sites,
        answer=config.answer,
    )
    store_dtype = model.dtype if config.store_dtype == "auto" else config.store_dtype
    arrays = [
        RowArray(
            f"{site}/{position}",
            n_layers=1 if site == "embed" else model.n_layers,
            width=model.width_of(site),
            dtype=cast("Dtype", "float32" if site == ATTENTION else store_dtype),  # it checks them
            dimension_names=("n", "layer", "head" if site == ATTENTION else "d_model"),
        )
        for site in config.sites
        for position in plan.positions
    ]  # fmt: skip
    reused: Reusable | None = None
    recorded = provenance(plan, model)
    if reuse:
        reused = find_reusable(
            reuse,
            rows=plan.rendered,
            arrays=arrays,
            model=model_identity(model),
            mode=MODE,
            answer=config.answer,
        )
        recorded["reused"] = reused.recorded()
    start = Writer.resume if resume else Writer.create
    with (
        start(
            path,
            kind="residuals",
            n=plan.n,
            arrays=arrays,
            columns=columns(plan),
            config=config.recorded(),
            provenance=recorded,
            shard_rows=SHARD_ROWS,
            overwrite=overwrite and not resume,
        ) as writer,
        ThreadPoolExecutor(1) as committer,
    ):
        on_rows(writer.committed)
        pending: Future[None] | None = None
        for rows, blocks in _shards(plan, model, read, arrays, writer, reused):
            # The last shard is written while the next one is computed.
            if pending is not None:
                pending.result()
            pending = committer.submit(writer.commit, blocks)
            on_rows(len(rows))
        if pending is not None:
            pending.result()
        certificate = certify(
            open_store(path, partial=True),
            model,
            plan.rendered,
            positions=plan.positions,
            sites=config.sites,
            answer=config.answer,
            seed=config.seed,
        )
        writer.finish({**certificate, "self_check": check})
    return open_store(path)


def reader(config: BuildConfig) -> Read:
    """What reads residuals under these settings: `capture`, or its slow reference."""
    if config.engine == "transformer-lens":
        from actcache.engine.reference import BridgeCapture

        return BridgeCapture(load_planned(config).hf)
    return capture


def load_planned(config: BuildConfig) -> LanguageModel:
    """Load the model that the settings name.

    Raises:
        ModelError: it cannot be loaded.
    """
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
    )


def _shards(
    plan: BuildPlan,
    model: LanguageModel,
    read: Read,
    arrays: Sequence[RowArray],
    writer: Writer,
    reused: Reusable | None,
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """The shards that are still to be written, each with its rows."""
    costs, budget = plan.costs, Budget(plan.config.batch_tokens)
    for start in range(writer.committed, plan.n, writer.shard_rows):
        rows = range(start, min(start + writer.shard_rows, plan.n))
        # Layer-major, as a shard lies on disk, so that writing it copies nothing.
        blocks = {
            array.name: np.empty((array.n_layers, len(rows), array.width), array.stored)
            for array in arrays
        }
        left = np.arange(len(rows)) if reused is None else reused.fill(blocks, start)
        run = partial(_fill, blocks, start, plan, model, read, arrays, left)
        run_batches([costs[start + i] for i in left], budget=budget, run=run)
        yield rows, {name: block.swapaxes(0, 1) for name, block in blocks.items()}


def _fill(
    blocks: Mapping[str, np.ndarray],
    start: int,
    plan: BuildPlan,
    model: LanguageModel,
    read: Read,
    arrays: Sequence[RowArray],
    left: Int64[np.ndarray, " _"],
    batch: Int64[np.ndarray, " _"],
) -> None:
    """Capture the rows `left[batch]` of the shard that begins at `start`, into `blocks`."""
    batch = left[batch]
    found = read(
        model,
        [plan.rendered[start + i] for i in batch],
        positions=plan.positions,
        answer=plan.config.answer,
        sites=plan.config.sites,
    )
    for array in arrays:
        site, position = array.name.split("/")
        at = found[site][:, :, list(plan.positions).index(position)]
        blocks[array.name][:, batch] = as_stored(at, array.dtype).swapaxes(0, 1)


def as_stored(residuals: Tensor, dtype: str) -> np.ndarray:
    """A tensor in the store's dtype as NumPy holds it: bfloat16 as its bits, uint16."""
    cast = residuals.to(DTYPES[dtype]).cpu()
    return cast.view(torch.uint16).numpy() if dtype == "bfloat16" else cast.numpy()
