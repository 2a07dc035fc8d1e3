"""The plan of a build: every row rendered, checked and put into a split, before a weight is read.

Also what a store keeps of its rows and of where they come from. Needs the tokenizer and the model's
config alone; `build` fills a store as planned here, and a dry run is this very plan.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from actcache.build.config import BuildConfig
from actcache.build.provenance import MODE, model_identity, versions
from actcache.conventions import ATTENTION, expand_positions
from actcache.data.samples import TEXT_COLUMNS, Sample, samples_digest
from actcache.data.spans import SPAN
from actcache.data.splits import Leaks, assign_splits, count_leaks
from actcache.engine.capture import tokens_run
from actcache.engine.model import (
    LanguageModel,
    context_of,
    load_config,
    load_tokenizer,
    tokenizer_digest,
)
from actcache.prompts.checks import CheckSummary, select_rows
from actcache.prompts.positions import check_template, of_samples
from actcache.prompts.render import Rendered, Renderer, Rendering
from actcache.prompts.spans import require_spans
from actcache.store.schema import Ragged


@dataclass(frozen=True)
class BuildPlan:
    """A build that has been checked down to the last row, and not begun."""

    config: BuildConfig
    samples: Sequence[Sample]
    """Those that will be in the store, with their splits."""

    rendered: Sequence[Rendered]
    """Their tokens."""

    left_out: Sequence[dict[str, Any]]
    """The other rows: id and reason, and of those longer than the model's context their tokens and
    its length."""

    conditions: CheckSummary
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


def plan_build(samples: Sequence[Sample], config: BuildConfig) -> BuildPlan:
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
    rendering = Rendering(
        template=config.template, system=config.system, space=config.space, bos=config.bos
    )
    renderer = Renderer(tokenizer, rendering)
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
    return BuildPlan(
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


def columns(plan: BuildPlan) -> dict[str, Any]:
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


def provenance(plan: BuildPlan, model: LanguageModel) -> dict[str, Any]:
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
