"""The plan of a build: every row rendered, checked and split before the weights are loaded.

Needs only the tokenizer and the model's config. `run_build` fills a store from a plan; a dry run
stops after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from actcache.build.config import BuildConfig
from actcache.build.row_columns import RowColumns, row_columns
from actcache.conventions import (
    ATTENTION,
    ATTENTION_CONTROL,
    MASS_SITES,
    NO_PRESET,
    expand_positions,
    find_preset,
)
from actcache.data.samples import Sample
from actcache.data.splits import Leaks, assign_splits, count_leaks
from actcache.engine.batching import Heads
from actcache.engine.model import (
    check_device,
    context_length,
    load_config,
    load_tokenizer,
    pickled_weights,
    tokenizer_digest,
)
from actcache.engine.tree_capture import capture_head, tokens_run
from actcache.prompts.checks import CheckSummary, check_rows, first_ids
from actcache.prompts.positions import check_template, from_the_end, of_samples
from actcache.prompts.render import Rendered, Renderer, Rendering
from actcache.prompts.spans import random_span, require_spans
from actcache.store.schema import RowArray

N_NAMED = 10
"""How many of the rows that are left out a note names; the store lists all."""


@dataclass(frozen=True)
class BuildPlan:
    """A build whose rows have all been checked; no weights are loaded and nothing is written."""

    config: BuildConfig
    samples: Sequence[Sample]
    """The rows of the store, with their splits."""

    rendered: Sequence[Rendered]
    """Their tokens."""

    left_out: Sequence[dict[str, Any]]
    """The `id` and `reason` of each other row; of too long ones also `tokens` and `context`."""

    conditions: CheckSummary
    """Conditions of published codes that rows break."""

    positions: Sequence[str]
    """Those of the config's positions that such samples have."""

    tokenizer: dict[str, Any] = field(repr=False)
    """Digest, template and context length, for the provenance."""

    model_config: Any = field(repr=False)
    """The model's Hugging Face config."""

    row_columns: RowColumns = field(repr=False)
    """The columns that the rows bring themselves."""

    unknown: int | None = None
    """The token that stands for words that the tokenizer does not know; None if it has none."""

    reading_notes: Sequence[str] = ()
    """What reading the rows had to say."""

    @property
    def n(self) -> int:
        """Rows of the store."""
        return len(self.samples)

    @property
    def reading(self) -> dict[str, Any]:
        """What is read of each row: arguments of `capture` and its checks."""
        config = self.config
        return {"positions": self.positions, "sites": config.sites, "answer": config.answer}

    @cached_property
    def leaks(self) -> dict[str, Leaks]:
        """Leaked test prompts of each behavior, under its splits or under a plain shuffle."""
        splits = [sample.split for sample in self.samples]
        return count_leaks(self.samples, splits, seed=self.config.seed)

    @cached_property
    def costs(self) -> list[int]:
        """Tokens of each row in its pass, without padding."""
        return [
            tokens_run(row, positions=self.positions, answer=self.config.answer)
            for row in self.rendered
        ]

    @property
    def shares_beginnings(self) -> bool:
        """Whether the engine runs a beginning once for all rows of a pass; else one at a time."""
        return self.config.engine != "transformer-lens"

    def heads(self, rows: Sequence[int]) -> Heads:
        """Take the tokens of some rows that a pass may share; None if rows run one at a time."""
        if not self.shares_beginnings:
            return None
        return [capture_head(self.rendered[row], positions=self.positions) for row in rows]

    @property
    def arrays(self) -> list[RowArray]:
        """The row arrays of the store as the model's config says; half precision is float16."""
        shape = self.model_config
        n_layers, n_heads = shape.num_hidden_layers, shape.num_attention_heads
        d_model = shape.hidden_size
        d_head = getattr(shape, "head_dim", None) or d_model // n_heads
        widths = {"heads": n_heads * d_head, **dict.fromkeys(MASS_SITES, n_heads)}
        dtypes = (self.config.store_dtype, self.config.dtype, str(shape.dtype))
        dtype = next(dtype for dtype in dtypes if dtype != "auto").removeprefix("torch.")
        half = dtype in ("float16", "bfloat16")
        return [
            RowArray(
                f"{site}/{position}",
                n_layers=1 if site == "embed" else n_layers,
                width=widths.get(site, d_model),
                dtype="float16" if half and site not in MASS_SITES else "float32",
                dimension_names=("n", "layer", "head" if site in MASS_SITES else "d_model"),
            )
            for site in self.config.sites
            for position in self.positions
        ]

    @property
    def n_bytes(self) -> int:
        """Bytes of the store's residuals."""
        return self.n * sum(array.row_bytes for array in self.arrays)

    @property
    def notes(self) -> list[str]:
        """What a user should know before the build: model, rows left out, conditions, leaks."""
        return [
            *self.reading_notes,
            *self.row_columns.notes,
            *_model_notes(self.config),
            *_unknown_notes(self),
            *_left_out_notes(self.left_out),
            *_condition_notes(self),
            *_leak_notes(self.leaks),
            *_label_notes(self.samples),
        ]


def plan_build(
    samples: Sequence[Sample], config: BuildConfig, *, reading_notes: Sequence[str] = ()
) -> BuildPlan:
    """Render and check every sample, leave out what cannot be used, and assign splits.

    `reading_notes` are what `read_samples` had to say; they come first among the plan's notes.

    Raises:
        RenderError: a row cannot be rendered or breaks what the preset needs, and bad rows are not
            skipped; or no row fits into the context.
        ModelError: tokenizer or config cannot be loaded.
    """
    source: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    check_device(config.device, config.device_map)
    tokenizer = load_tokenizer(config.model, **source)
    model_config = load_config(config.model, **source)
    context = context_length(model_config)
    rendering = Rendering(
        template=config.template, system=config.system, space=config.space, bos=config.bos
    )
    renderer = Renderer(tokenizer, rendering)
    checked = check_rows(
        samples, renderer, context=context, preset=config.preset, skip_bad=config.skip_bad_rows
    )
    usable = [samples[i] for i in checked.row_numbers]
    splits = assign_splits(usable, seed=config.seed)
    paired = usable[0].positive is not None
    positions = of_samples(expand_positions(config.positions), paired=paired)
    check_template(checked.rendered, positions)
    rendered = checked.rendered
    if ATTENTION in config.sites:
        require_spans([row.span for row in rendered], [sample.id for sample in usable])
    if ATTENTION_CONTROL in config.sites:
        n_read = max(from_the_end(position) or 1 for position in positions)
        rendered = tuple(
            replace(row, control_span=random_span(row.prompt, row.span or (0, 0), n_read=n_read))
            for row in rendered
        )
    return BuildPlan(
        config=config,
        samples=[
            replace(sample, split=split) for sample, split in zip(usable, splits, strict=True)
        ],
        rendered=rendered,
        left_out=checked.left_out,
        conditions=checked.conditions,
        positions=positions,
        tokenizer={
            "sha256": tokenizer_digest(tokenizer),
            "template": renderer.template,
            "context": context,
        },
        model_config=model_config,
        row_columns=row_columns(usable, config.sites),
        unknown=_unknown_token(tokenizer),
        reading_notes=tuple(reading_notes),
    )


def _model_notes(config: BuildConfig) -> list[str]:
    notes = []
    folder = Path(config.model)
    if config.revision is not None and folder.is_dir():
        notes.append(f"--revision {config.revision} is ignored: '{folder}' is a local folder")
    if pickled := pickled_weights(folder):
        notes.append(
            f"note: the weights of '{folder}' are {pickled}, a pickle: it is read with "
            "weights_only, which runs no code of it; safetensors are read faster"
        )
    return notes


def _unknown_token(tokenizer: Any) -> int | None:
    """The token of unknown words, if it has no other use: GPT-2's is its end of text."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    token: int | None = tokenizer.unk_token_id
    return None if token in others else token


def _unknown_notes(plan: BuildPlan) -> list[str]:
    spans = [row.prompt[slice(*row.span)] for row in plan.rendered if row.span is not None]
    n = sum(plan.unknown in span for span in spans)
    note = (
        f"warning: {n} of {len(spans)} spans hold words that the tokenizer does not know. All such "
        "words are one token to the model, which may not see the concept. Use words that it knows."
    )
    return [note] if n else []


def _left_out_notes(left_out: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    if too_long := [f"{row['id']} ({row['tokens']} tokens)" for row in left_out if "tokens" in row]:
        context = next(row["context"] for row in left_out if "tokens" in row)
        notes.append(
            f"{_n_rows(too_long)} left out, longer than the model's context of {context} tokens "
            f"(prompts are never truncated): {_some(too_long)}"
        )
    if unusable := [f"{row['id']} ({row['reason']})" for row in left_out if "tokens" not in row]:
        notes.append(f"{_n_rows(unusable)} left out, unusable: {_some(unusable)}")
    return notes


def _condition_notes(plan: BuildPlan) -> list[str]:
    n, preset = plan.conditions.n, plan.config.preset
    notes = [
        f"note: {finding.n} of {n} rows {'breaks' if finding.n == 1 else 'break'} the condition "
        f"{finding.condition} ({first_ids(finding.ids, finding.n)}): {finding.why}"
        for finding in plan.conditions.findings
    ]
    if preset != NO_PRESET and n:
        conditions = ", ".join(find_preset(preset).conditions)
        notes.append(f"preset {preset}: every row in the store meets {conditions}")
    return notes


def _leak_notes(leaks: dict[str, Leaks]) -> list[str]:
    notes = []
    for behavior, counts in leaks.items():
        if counts.n_leaked:
            notes.append(
                f"warning: '{behavior}' has splits of its own, and {counts.n_leaked} of its "
                f"{counts.n_test} test prompts are also in train. Remove the key split, and equal "
                "prompts stay together."
            )
        else:
            notes.append(
                f"note: '{behavior}' repeats prompts; a plain shuffle would have put "
                f"{counts.n_leaked_plain} of its {counts.n_test} test prompts into train as well, "
                "these splits put none there"
            )
    return notes


def _label_notes(samples: Sequence[Sample]) -> list[str]:
    labels = {sample.label for sample in samples}
    if len(labels) > 1 or None in labels:
        return []
    note = f"note: all rows have the label '{labels.pop()}', and analyze compares two; actcache "
    return [note + "merge joins this store with one of another label"]


def _n_rows(names: Sequence[str]) -> str:
    return f"{len(names)} row" if len(names) == 1 else f"{len(names)} rows"


def _some(names: Sequence[str]) -> str:
    more = f", … (all {len(names)} are listed in the store)" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
