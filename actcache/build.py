"""The build: samples and a model in, a finished store out.

`plan_build` needs the tokenizer alone and finds what is wrong with any row before a weight is read;
`run_build` fills the store shard by shard. The two are apart so that a dry run is the real plan.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from actcache.capture import capture, tokens_run
from actcache.conditions import Summary, select_rows
from actcache.config import BuildConfig
from actcache.memory import Budget, run_batches
from actcache.model import (
    DTYPES,
    LanguageModel,
    context_of,
    load_config,
    load_model,
    load_tokenizer,
    tokenizer_digest,
)
from actcache.positions import ATTENTION, check_template, expand_positions, of_samples
from actcache.provenance import MODE, model_identity, versions
from actcache.render import Rendered, Renderer
from actcache.reuse import Reusable, find_reusable
from actcache.samples import Sample, samples_digest
from actcache.schema import Dtype, Ragged, RowArray
from actcache.self_check import Read, certify, check_capture
from actcache.spans import SPAN, require_spans
from actcache.splits import Leaks, assign_splits, count_leaks
from actcache.store import Store, open_store
from actcache.writer import Writer

TEXT_COLUMNS = (
    *("id", "behavior", "variant", "split", "label", "letter"),
    *("prompt", "positive", "negative", "system", "digest"),
)
"""What the store keeps of each sample in words; empty where a sample has no such thing."""

SHARD_ROWS: int | None = None
"""Rows of a shard, for tests; by default as `schema.shard_rows` chooses."""


@dataclass(frozen=True)
class Plan:
    """A build that has been checked down to the last row, and not begun."""

    config: BuildConfig
    samples: Sequence[Sample]
    """Those that will be in the store, with their splits."""

    rendered: Sequence[Rendered]
    """Their tokens."""

    left_out: Sequence[dict[str, Any]]
    """The other rows: id and reason, and of those longer than the model's context their tokens and
    its length."""

    conditions: Summary
    """What the check of all rows found."""

    positions: Sequence[str]
    """Of the config's positions those that such samples have."""

    tokenizer: dict[str, Any] = field(repr=False)
    """Digest, template and what it is called; goes into the provenance."""

    @property
    def n(self) -> int:
        """Rows of the store."""
        return len(self.samples)

    @property
    def leaks(self) -> dict[str, Leaks]:
        """Test prompts that are in train too, here or in a plain shuffle, by behavior."""
        splits = [sample.split for sample in self.samples]
        return count_leaks(self.samples, splits, seed=self.config.seed)

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
    """Render and check every sample, set apart what cannot be used, and assign splits.

    Args:
        samples: as `read_samples` and `expand_variants` give them.
        config: the settings.

    Raises:
        RenderError: a row does not part cleanly into tokens or breaks what the preset needs, and
            bad rows are not skipped; or no row fits into the context.
        ModelError: tokenizer or config cannot be loaded.
    """
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    context = context_of(
        load_config(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    )
    renderer = Renderer(tokenizer, config.rendering)
    chosen = select_rows(
        samples,
        renderer,
        context=context,
        preset=config.preset,
        skip_bad=config.skip_bad_rows,
    )
    kept = [samples[i] for i in chosen.kept]
    splits = assign_splits(kept, seed=config.seed)
    paired = kept[0].positive is not None
    positions = of_samples(expand_positions(config.positions), paired=paired)
    check_template(chosen.rendered, positions)
    if ATTENTION in config.sites:
        require_spans([row.span for row in chosen.rendered], [sample.id for sample in kept])
    return Plan(
        config,
        [replace(sample, split=split) for sample, split in zip(kept, splits, strict=True)],
        chosen.rendered,
        chosen.left_out,
        chosen.conditions,
        positions,
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
        from actcache.bridge import BridgeCapture

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
    plan: Plan,
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
    plan: Plan,
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


def columns(plan: Plan) -> dict[str, Any]:
    """What the store keeps of the samples, readable without model, tokenizer or data."""
    samples, rendered = plan.samples, plan.rendered
    text = {name: [str(getattr(sample, name) or "") for sample in samples] for name in TEXT_COLUMNS}
    tokens = {
        f"{part}_tokens": Ragged.of([getattr(row, part) for row in rendered])
        for part in ("prompt", "shared", "positive", "negative")
    }
    counts = {"n_tokens": np.array([row.length for row in rendered], np.int64)}
    marked = {}
    if ATTENTION in plan.config.sites:
        marked[SPAN] = np.array([row.span for row in rendered], np.int64)
    return {**text, **tokens, **counts, **marked}


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
        "leaks": {behavior: asdict(each) for behavior, each in plan.leaks.items()},
        "left_out": list(plan.left_out),
        "conditions": plan.conditions.recorded(),
        "mode": MODE,
        "device": str(model.device),
        "versions": versions(),
    }
