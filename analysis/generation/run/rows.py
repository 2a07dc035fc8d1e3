"""The prompts that are continued: rows of a store that made no direction, or rows of the user's.

Everything is rendered and checked before weights are loaded; nothing is ever cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from actcache.build.replay import rendered_rows
from actcache.data.formats import read_samples
from actcache.data.samples import Sample, rows_digest
from actcache.data.splits import assign_splits
from actcache.errors import ActcacheError, MismatchError, RowError
from actcache.prompts.render import Rendered, Renderer
from actcache.store.store import Store

HeldOut = Literal["validation", "test"]
HELD_OUT: tuple[HeldOut, ...] = get_args(HeldOut)
"""Splits whose rows are continued: a strength is chosen on the first and tested on the second."""

VALIDATION_SHARE = 1 / 3
"""Of the user's rows that bring no split."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt, and whose directions steer its texts."""

    id: str
    behavior: str
    split: HeldOut
    tokens: tuple[int, ...]
    digest: str
    """Of the sample's texts."""

    prompt: str = ""
    label: str = ""

    number: int | None = None
    """Its place in the store; None of rows that are not in one."""

    completions: tuple[str, str] | None = None
    """The positive and the negative completion; None of a row without."""

    choices: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Their tokens, after the prompt."""


def store_rows(
    store: Store,
    behaviors: Sequence[str],
    *,
    labels: tuple[str, str] | None = None,
    limit: int | None = None,
) -> list[PromptRow]:
    """Take a store's validation and test rows of some behaviors, unframed prompts alone.

    Args:
        store: with the tokens of its rows.
        behaviors: whose rows; with `labels`, the one name of the direction between them.
        labels: of labelled prompts, which rows to take.
        limit: first so many rows of each behavior and split.

    Raises:
        MismatchError: the store has no such rows.
    """
    rendered = rendered_rows(store)
    columns = {
        name: store[name].tolist()
        for name in ("id", "behavior", "variant", "split", "label", "digest", "prompt")
    }
    texts = list(zip(store["positive"].tolist(), store["negative"].tolist(), strict=True))
    rows = []
    for number, row in enumerate(rendered):
        facts = {name: values[number] for name, values in columns.items()}
        selected = facts["label"] in labels if labels else facts["behavior"] in behaviors
        if not selected or facts.pop("variant") != "base" or facts["split"] not in HELD_OUT:
            continue
        if labels:
            facts["behavior"] = behaviors[0]
        choices = _choices(row)
        rows.append(
            PromptRow(
                **facts,
                tokens=row.prompt,
                number=number,
                completions=texts[number] if choices else None,
                choices=choices,
            )
        )
    for behavior in behaviors:
        if not any(row.behavior == behavior for row in rows):
            raise MismatchError(
                f"'{store.path}' has no row of '{behavior}' in the splits validation and test, "
                "expected rows that made no direction. Pass prompts with --data or --prompt, or "
                "build a store with splits."
            )
    return _limited(rows, limit)


def data_rows(
    paths: Sequence[str | Path],
    behaviors: Sequence[str],
    renderer: Renderer,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> list[PromptRow]:
    """Read rows of files; a third validates where the rows bring no split.

    A row is steered by the direction of its own behavior; where there is one direction, all rows
    are steered by it.

    Raises:
        RowError: a row cannot be used, or is of a behavior that has no direction.
    """
    samples = read_samples(list(paths))
    shares = (0.0, VALIDATION_SHARE, 1 - VALIDATION_SHARE)
    splits = assign_splits(samples, fractions=shares, seed=seed)
    rows = []
    for sample, split in zip(samples, splits, strict=True):
        if split not in HELD_OUT:
            continue
        behavior = behaviors[0] if len(behaviors) == 1 else sample.behavior
        if behavior not in behaviors:
            raise RowError(
                f"row '{sample.id}' is of behavior '{behavior}', expected one of "
                f"{', '.join(behaviors)}. Name the one that steers all rows with --behavior."
            )
        rows.append(_rendered(replace(sample, behavior=behavior, split=split), renderer))
    if not rows:
        raise RowError(
            f"all {len(samples)} rows are of the split train, expected rows of validation and "
            "test. Give them other splits, or none."
        )
    return _limited(rows, limit)


def prompt_rows(
    prompts: Sequence[str], behaviors: Sequence[str], renderer: Renderer
) -> list[PromptRow]:
    """Make a test row of each prompt and behavior.

    Raises:
        RowError: a prompt is empty.
    """
    rows = []
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RowError(
                f"prompt {number} is empty, expected text to continue. Pass --prompt TEXT."
            )
        for behavior in behaviors:
            sample = Sample(
                id=f"prompt/{number}" + (f"@{behavior}" if len(behaviors) > 1 else ""),
                behavior=behavior,
                prompt=prompt,
                positive=None,
                negative=None,
                label="",
                letter="",
                split="test",
            )
            rows.append(_rendered(sample, renderer))
    return rows


def require_fit(
    rows: Iterable[PromptRow], *, max_new: int, context: int | None, front: int = 0
) -> None:
    """Refuse rows that are longer than the context, or shorter than what `front` steers.

    Raises:
        ActcacheError: names the row.
    """
    longest = max(rows, key=lambda row: len(row.tokens))
    if context is not None and len(longest.tokens) + max_new > context:
        raise ActcacheError(
            f"row '{longest.id}' has {len(longest.tokens)} tokens, with {max_new} new ones more "
            f"than the model's context of {context}; nothing is cut. Pass --max-new "
            f"{max(context - len(longest.tokens), 1)} or less, or shorter prompts."
        )
    shortest = min(rows, key=lambda row: len(row.tokens))
    if front > len(shortest.tokens):
        raise ActcacheError(
            f"front steers the first {front} tokens of a prompt, row '{shortest.id}' has "
            f"{len(shortest.tokens)}, expected {front} or more. Leave the row out, or use vectors "
            "of a shorter text."
        )


def digest_of_rows(rows: Iterable[PromptRow]) -> str:
    """Hash what decides the texts of rows: ids, behaviors, splits, texts and tokens."""
    return rows_digest(
        (f"{row.behavior} {row.id}", row.split, f"{row.digest} {list(row.tokens)}") for row in rows
    )


def _rendered(sample: Sample, renderer: Renderer) -> PromptRow:
    rendered = renderer(sample)
    if not rendered.prompt:
        raise RowError(f"row '{sample.id}' has no token, expected a prompt. Give it text.")
    return PromptRow(
        id=sample.id,
        behavior=sample.behavior,
        split=cast("HeldOut", sample.split),
        tokens=rendered.prompt,
        digest=sample.digest,
        prompt=sample.prompt,
        label=sample.label or "",
        completions=None
        if sample.positive is None or sample.negative is None
        else (sample.positive, sample.negative),
        choices=_choices(rendered),
    )


def _choices(row: Rendered) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if not row.positive or not row.negative:
        return None
    return row.shared + row.positive, row.shared + row.negative


def _limited(rows: list[PromptRow], limit: int | None) -> list[PromptRow]:
    if limit is None:
        return rows
    counts: dict[tuple[str, str], int] = {}
    taken = []
    for row in rows:
        place = counts.setdefault((row.behavior, row.split), 0)
        counts[row.behavior, row.split] = place + 1
        if place < limit:
            taken.append(row)
    return taken
