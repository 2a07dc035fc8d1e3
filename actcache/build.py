"""The build: samples and a model in, a finished store out.

`plan_build` needs the tokenizer alone and finds what is wrong with any row before a weight is read;
`run_build` fills the store shard by shard. The two are apart so that a dry run is the real plan.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from actcache.batches import plan_batches
from actcache.capture import capture, capture_alone, tokens_run
from actcache.config import BuildConfig
from actcache.errors import RenderError
from actcache.model import (
    DTYPES,
    LanguageModel,
    context_of,
    load_config,
    load_model,
    load_tokenizer,
    tokenizer_digest,
)
from actcache.provenance import MODE, model_identity, versions
from actcache.render import Rendered, Renderer, longest_that_fit
from actcache.samples import Sample, samples_digest
from actcache.schema import Dtype, Ragged, RowArray
from actcache.splits import assign_splits
from actcache.store import Store, open_store
from actcache.writer import Writer

TEXT_COLUMNS = (
    *("id", "behavior", "variant", "split", "label", "letter"),
    *("prompt", "positive", "negative", "system", "digest"),
)
"""What the store keeps of each sample in words; empty where a sample has no such thing."""

SHARD_ROWS: int | None = None
"""Rows of a shard, for tests; by default as `schema.shard_rows` chooses."""

CERTIFICATE_ROWS = 8
"""How many rows are run again, alone and unpadded, when a build ends."""


@dataclass(frozen=True)
class Plan:
    """A build that has been checked down to the last row, and not begun."""

    config: BuildConfig
    samples: Sequence[Sample]
    """Those that will be in the store, with their splits."""

    rendered: Sequence[Rendered]
    """Their tokens."""

    left_out: Sequence[dict[str, Any]]
    """Rows longer than the model's context: id, tokens, and the context's length."""

    positions: Sequence[str]
    """Of the config's positions those that such samples have."""

    tokenizer: dict[str, Any] = field(repr=False)
    """Digest, template and what it is called; goes into the provenance."""

    @property
    def n(self) -> int:
        """Rows of the store."""
        return len(self.samples)

    @property
    def tokens(self) -> int:
        """Tokens that the passes run, padding not counted."""
        return sum(self.costs)

    @property
    def costs(self) -> list[int]:
        """Tokens of each row."""
        return [
            tokens_run(row, positions=self.positions, answer=self.config.answer)
            for row in self.rendered
        ]


def plan_build(samples: Sequence[Sample], config: BuildConfig) -> Plan:
    """Render every sample, assign splits, and set apart what the model's context cannot hold.

    Args:
        samples: as `read_samples` and `expand_variants` give them.
        config: the settings.

    Raises:
        RenderError: a row does not part cleanly into tokens, or no row fits into the context.
        ModelError: tokenizer or config cannot be loaded.
    """
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    context = context_of(load_config(config.model, revision=config.revision))
    renderer = Renderer(tokenizer, config.rendering)
    rendered = [renderer(sample) for sample in samples]
    fit, too_long = longest_that_fit(rendered, context)
    left_out: list[dict[str, Any]] = [
        {"id": samples[i].id, "tokens": rendered[i].length, "context": context} for i in too_long
    ]
    if not fit:
        shortest = min(left_out, key=lambda row: row["tokens"])
        raise RenderError(
            f"all {len(samples)} rows are longer than the model's context of {context} tokens; the "
            f"shortest, '{shortest['id']}', has {shortest['tokens']}. Use a model with a longer "
            "context, or shorter prompts."
        )
    kept = [samples[i] for i in fit]
    splits = assign_splits(kept, seed=config.seed)
    paired = kept[0].positive is not None
    return Plan(
        config,
        [replace(sample, split=split) for sample, split in zip(kept, splits, strict=True)],
        [rendered[i] for i in fit],
        left_out,
        [p for p in config.positions if paired or p == "prompt"],
        {
            "sha256": tokenizer_digest(tokenizer),
            "template": renderer.template,
            "context": context,
        },
    )


def run_build(
    plan: Plan,
    path: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    model: LanguageModel | None = None,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Store:
    """Fill a store as planned, and certify it.

    Args:
        plan: from `plan_build`.
        path: where the store will be; until it is complete it is `PATH.partial`.
        resume: go on with an interrupted build of the same plan.
        overwrite: replace a finished store that lies at `path`.
        model: an already loaded model; by default the config's is loaded.
        on_rows: told how many rows were committed, each time.

    Returns:
        The finished store, open for reading.

    Raises:
        StoreExistsError: a store, or the rest of one, lies at `path`.
        MismatchError: `resume`, and the rest was begun with other settings, data or weights.
        NotFiniteError: a residual is not finite in the store's dtype.
    """
    config = plan.config
    if model is None:
        model = load_model(
            config.model, revision=config.revision, dtype=config.dtype, device=config.device
        )
    store_dtype = model.dtype if config.store_dtype == "auto" else config.store_dtype
    arrays = [
        RowArray(
            f"{site}/{position}",
            n_layers=1 if site == "embed" else model.n_layers,
            width=model.d_model,
            dtype=cast("Dtype", store_dtype),  # RowArray checks it
        )
        for site in config.sites
        for position in plan.positions
    ]  # fmt: skip
    start = Writer.resume if resume else Writer.create
    with (
        start(
            path,
            kind="residuals",
            n=plan.n,
            arrays=arrays,
            columns=columns(plan),
            config=config.recorded(),
            provenance=provenance(plan, model),
            shard_rows=SHARD_ROWS,
            **({} if resume else {"overwrite": overwrite}),
        ) as writer,
        ThreadPoolExecutor(1) as committer,
    ):
        on_rows(writer.committed)
        pending: Future[None] | None = None
        for rows, blocks in _shards(plan, model, arrays, writer):
            # The last shard is written while the next one is computed.
            if pending is not None:
                pending.result()
            pending = committer.submit(writer.commit, blocks)
            on_rows(len(rows))
        if pending is not None:
            pending.result()
        writer.finish(certify(plan, model, path))
    return open_store(path)


def _shards(
    plan: Plan, model: LanguageModel, arrays: Sequence[RowArray], writer: Writer
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """The shards that are still to be written, each with its rows."""
    costs = plan.costs
    for start in range(writer.committed, plan.n, writer.shard_rows):
        rows = range(start, min(start + writer.shard_rows, plan.n))
        # Layer-major, as a shard lies on disk, so that writing it copies nothing.
        blocks = {
            array.name: np.empty((array.n_layers, len(rows), array.width), array.stored)
            for array in arrays
        }
        batches = plan_batches([costs[row] for row in rows], budget=plan.config.batch_tokens)
        for batch in batches:
            residuals, embed = capture(
                model,
                [plan.rendered[start + i] for i in batch],
                positions=plan.positions,
                answer=plan.config.answer,
            )
            for array in arrays:
                site, position = array.name.split("/")
                at = list(plan.positions).index(position)
                read = embed[:, None, at] if site == "embed" else residuals[:, :, at]
                blocks[array.name][:, batch] = as_stored(read, array.dtype).swapaxes(0, 1)
        yield rows, {name: block.swapaxes(0, 1) for name, block in blocks.items()}


def as_stored(residuals: Tensor, dtype: str) -> np.ndarray:
    """A tensor in the store's dtype as NumPy holds it: bfloat16 as its bits, uint16."""
    cast = residuals.to(DTYPES[dtype]).cpu()
    return cast.view(torch.uint16).numpy() if dtype == "bfloat16" else cast.numpy()


def columns(plan: Plan) -> dict[str, Any]:
    """What the store keeps of the samples, readable without model, tokenizer or data."""
    samples, rendered = plan.samples, plan.rendered
    text = {name: [str(getattr(sample, name) or "") for sample in samples] for name in TEXT_COLUMNS}
    tokens = {
        f"{part}_tokens": Ragged.of([getattr(row, part) for row in rendered])
        for part in ("prompt", "shared", "positive", "negative")
    }
    counts = {"n_tokens": np.array([row.length for row in rendered], np.int64)}
    return {**text, **tokens, **counts}


def provenance(plan: Plan, model: LanguageModel) -> dict[str, Any]:
    """Where the store's numbers come from."""
    return {
        "model": {
            **model_identity(model),
            "name": plan.config.model,
            "commit": getattr(model.hf.config, "_commit_hash", None),
            "attention": model.hf.config._attn_implementation,
        },
        "tokenizer": plan.tokenizer,
        "data_sha256": samples_digest(plan.samples),
        "left_out": list(plan.left_out),
        "mode": MODE,
        "device": str(model.device),
        "versions": versions(),
    }


def certify(plan: Plan, model: LanguageModel, path: str | Path) -> dict[str, Any]:
    """Run a few rows again, alone and unpadded, and compare with what is on disk.

    Returns:
        `rows`, `positions`, and `largest_relative_error` of each layer: the largest difference of
        any value over the largest absolute value of that residual.
    """
    store = open_store(path, partial=True)
    rng = np.random.default_rng(plan.config.seed)
    rows = np.sort(rng.permutation(plan.n)[:CERTIFICATE_ROWS])
    worst = np.zeros(model.n_layers)
    if "resid_post" in plan.config.sites:
        for row in rows:
            for position in plan.positions:
                kept = store.resid(position)[int(row)]
                alone = capture_alone(
                    model, plan.rendered[row], position=position, answer=plan.config.answer
                )
                true = alone.float().cpu().numpy()
                error = np.abs(kept - true).max(-1) / np.abs(true).max(-1)
                worst = np.maximum(worst, error)
    return {
        "rows": [plan.samples[row].id for row in rows],
        "positions": list(plan.positions),
        "largest_relative_error": [float(error) for error in worst],
    }
