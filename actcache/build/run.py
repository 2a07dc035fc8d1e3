"""The build: a plan and a model in, a finished store out, shard by shard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from actcache.build.certify import certify
from actcache.build.config import BuildConfig
from actcache.build.place import require_place
from actcache.build.plan import BuildPlan
from actcache.build.provenance import MODE, columns, model_identity, provenance
from actcache.build.reuse import Reusable, find_reusable, first_equal_rows
from actcache.conventions import MASS_SITES
from actcache.engine.batching import Budget, Heads, run_batches
from actcache.engine.model import DTYPES, LanguageModel, load_model
from actcache.engine.self_check import CaptureFunction, check_capture
from actcache.engine.tree_capture import capture
from actcache.progress import SILENT, Progress
from actcache.prompts.beginnings import group_by_beginning
from actcache.store.contents import StoreContents
from actcache.store.copies.copy import open_source
from actcache.store.partial import require_room
from actcache.store.schema import Dtype, RowArray
from actcache.store.store import Store, open_store
from actcache.store.writer import Writer


def run_build(
    plan: BuildPlan,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reuse: Sequence[str | Path] = (),
    model: LanguageModel | None = None,
    progress: Progress = SILENT,
    shard_rows: int | None = None,
    read: CaptureFunction | None = None,
) -> Store:
    """Build a store as planned, and certify it.

    Args:
        plan: from `plan_build`.
        path: where the store will be; until it is complete it is `PATH.partial`.
        resume: continue an interrupted build of the same plan.
        overwrite: replace a finished store at `path`.
        reuse: stores of the same model whose rows of equal tokens are copied instead of run. They
            equal rows that are run up to rounding: the rows that share a pass decide the last bits.
        model: an already loaded model; by default the config's is loaded.
        progress: shows how many rows are committed.
        shard_rows: rows of a shard; by default as `schema.shard_rows` chooses.
        read: reads the residuals of a batch; by default what the config's engine names.

    Raises:
        StoreExistsError: a store, or an interrupted one, is at `path`.
        MismatchError: `resume`, and the interrupted build had other settings, data or weights; or a
            store to `reuse` has another model, or lacks what is read.
        NotFiniteError: a residual is not finite in the store's dtype.
        ModelError: the family is not handled, or the first rows differ from a plain forward pass.
        ActcacheError: the disk has no room for the store.
    """
    config = plan.config
    # Everything that can fail without the model comes before it is loaded.
    require_place(path, resume=resume, overwrite=overwrite)
    require_room(path, plan.n_bytes)
    reused_stores = [open_source(store) for store in reuse]
    with progress.steps("build", plan.n) as advance:
        model = model or load_planned(config)
        read = read or reader(config)
        check = check_capture(model, plan.rendered, read=read, **plan.reading)
        arrays = _arrays(plan, model)
        recorded = provenance(plan, model)
        reused: Reusable | None = None
        if reused_stores:
            reused = find_reusable(
                reused_stores,
                rows=plan.rendered,
                arrays=arrays,
                model=model_identity(model),
                mode=MODE,
                answer=config.answer,
            )
            recorded["reused"] = reused.recorded()
        begin = Writer.resume if resume else Writer.create
        with (
            begin(
                path,
                StoreContents(
                    kind="residuals",
                    n=plan.n,
                    arrays=arrays,
                    columns=columns(plan),
                    config=config.recorded(),
                    provenance=recorded,
                    shard_rows=shard_rows,
                ),
                overwrite=overwrite and not resume,
            ) as writer,
            ThreadPoolExecutor(1) as committer,
        ):
            advance(writer.committed)
            pending: Future[None] | None = None

            def written() -> Store:
                """The shards so far, all of them on disk."""
                if pending is not None:
                    pending.result()
                return open_store(path, partial=True)

            first = first_equal_rows(plan.rendered, arrays)
            shards = _Shards(plan, model, read, arrays, reused, first, written)
            for rows, blocks in shards.rest(writer):
                # The last shard is written while the next one is computed.
                if pending is not None:
                    pending.result()
                pending = committer.submit(writer.commit, blocks)
                advance(len(rows))
            if pending is not None:
                pending.result()
            certificate = certify(
                open_store(path, partial=True),
                model,
                plan.rendered,
                **plan.reading,
                seed=config.seed,
            )
            writer.finish({**certificate, "self_check": check})
    return open_store(path)


def reader(config: BuildConfig) -> CaptureFunction:
    """Choose the function that reads residuals: `capture`, or its slow reference."""
    if config.engine == "transformer-lens":
        from actcache.engine.reference import BridgeCapture

        return BridgeCapture(load_planned(config).hf)
    return capture


def load_planned(config: BuildConfig) -> LanguageModel:
    """Load the model that the settings name."""
    return load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
    )


def as_stored(residuals: Tensor, dtype: str) -> np.ndarray:
    """Convert a tensor to the store's dtype in NumPy; bfloat16 as its bits, uint16."""
    converted = residuals.to(DTYPES[dtype]).cpu()
    return converted.view(torch.uint16).numpy() if dtype == "bfloat16" else converted.numpy()


def _arrays(plan: BuildPlan, model: LanguageModel) -> list[RowArray]:
    """List the row arrays of the store: one per site and position."""
    config = plan.config
    store_dtype = model.dtype if config.store_dtype == "auto" else config.store_dtype
    return [
        RowArray(
            f"{site}/{position}",
            n_layers=1 if site == "embed" else model.n_layers,
            width=model.width_of(site),
            dtype=cast("Dtype", "float32" if site in MASS_SITES else store_dtype),  # it checks them
            dimension_names=("n", "layer", "head" if site in MASS_SITES else "d_model"),
        )
        for site in config.sites
        for position in plan.positions
    ]


@dataclass(frozen=True)
class _Shards:
    """Computes the shards of a store, from rows that are run and rows that are reused."""

    plan: BuildPlan
    model: LanguageModel
    read: CaptureFunction
    arrays: Sequence[RowArray]
    reused: Reusable | None

    first: Int64[np.ndarray, " n"]
    """For each row the first one with the same tokens, which is run for both."""

    written: Callable[[], Store]
    """Opens the shards that have been committed."""

    def rest(self, writer: Writer) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """Compute the shards that are not committed yet: row numbers, and `[n, layer, width]`."""
        n, costs = self.plan.n, self.plan.costs
        budget = Budget(self.plan.config.batch_tokens)
        for start in range(writer.committed, n, writer.shard_rows):
            rows = range(start, min(start + writer.shard_rows, n))
            # Layer-major, as a shard lies on disk, so that writing it copies nothing.
            blocks = {
                array.name: np.empty((array.n_layers, len(rows), array.width), array.stored)
                for array in self.arrays
            }
            to_run = (
                np.arange(len(rows)) if self.reused is None else self.reused.fill(blocks, start)
            )

            to_run, repeated = self._without_repeats(to_run, start)
            run_batches(
                [costs[start + i] for i in to_run],
                budget=budget,
                run=partial(self._run_batch, blocks, start, to_run),
                heads=self._heads((start + to_run).tolist()),
            )
            self._copy_repeats(blocks, repeated, start)
            yield rows, {name: block.swapaxes(0, 1) for name, block in blocks.items()}

    def _heads(self, rows: Sequence[int]) -> Heads:
        """What these rows may share; None where nothing would be run once."""
        heads = self.plan.heads(rows)
        shares = heads is not None and group_by_beginning(heads) and self.model.can_share_beginnings
        return heads if shares else None

    def _without_repeats(
        self, to_run: Int64[np.ndarray, " _"], start: int
    ) -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
        """Part the places of a shard into those to run and those that repeat an earlier row."""
        repeats = self.first[start + to_run] < start + to_run
        return to_run[~repeats], to_run[repeats]

    def _copy_repeats(
        self, blocks: Mapping[str, np.ndarray], repeated: Int64[np.ndarray, " _"], start: int
    ) -> None:
        """Copy rows that repeat one of this shard, or of a shard that is on disk."""
        source = self.first[start + repeated]
        earlier = source < start
        for name, block in blocks.items():
            block[:, repeated[~earlier]] = block[:, source[~earlier] - start]
            if earlier.any():
                values = self.written().array(name).stored[source[earlier]]
                block[:, repeated[earlier]] = values.swapaxes(0, 1)

    def _run_batch(
        self,
        blocks: Mapping[str, np.ndarray],
        start: int,
        to_run: Int64[np.ndarray, " _"],
        batch: Int64[np.ndarray, " _"],
    ) -> None:
        """Run the rows `to_run[batch]` of the shard that begins at row `start`, into `blocks`."""
        rows = to_run[batch]
        tokens = [self.plan.rendered[start + i] for i in rows]
        residuals = self.read(self.model, tokens, **self.plan.reading)
        positions = list(self.plan.positions)
        for array in self.arrays:
            site, position = array.name.split("/")
            values = residuals[site][:, :, positions.index(position)]
            blocks[array.name][:, rows] = as_stored(values, array.dtype).swapaxes(0, 1)
