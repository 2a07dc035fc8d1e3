"""report.html of steered texts: findings, numbers over strength, tables, the texts themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actcache.analysis.generation.summary import GenerationSummary, MethodScores, StrengthScores
from actcache.analysis.report.findings import Finding
from actcache.analysis.report.generation_pages import findings
from actcache.analysis.report.generation_tables import (
    generation_tables,
    method_label,
    strength_label,
)
from actcache.analysis.report.html.columns import coded, columns, rounded
from actcache.analysis.report.html.facts import flat_facts
from actcache.analysis.report.html.generation_charts import PANELS, generation_charts
from actcache.analysis.report.html.marks import COLORS
from actcache.analysis.report.html.page import render
from actcache.analysis.report.html.samples import shortened, spread

TEXT_BYTES = 1_200_000
"""How much of the page texts may take."""

LONGEST_TEXT = 600
"""Characters of a text that are shown."""

_OVERHEAD = 25  # characters of the numbers that stand beside each text

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One generated text, and what wrote it."""

    id: str
    """Of the prompt's row."""

    behavior: str
    split: str
    prompt: str

    method: str
    """As it is shown, with its selection of layers."""

    strength: str
    """As it is shown; empty of unsteered texts."""

    sample: int
    text: str
    target: float | None
    nll_unsteered: float | None


def generation_page(
    summary: GenerationSummary,
    texts: Sequence[TextRow],
    *,
    settings: Mapping[str, Any],
    commands: Sequence[str],
    again: str,
) -> str:
    """Write the page of generated texts.

    Args:
        summary: every number of the tables.
        texts: what was written; the page takes as many rows as it has room for.
        settings: of the run, as configurations.json has them.
        commands: the command line that repeats the run.
        again: the one that makes this page again.
    """
    rows = strength_rows(summary)
    behaviors = list(dict.fromkeys(row["behavior"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return render(
        "generation.html",
        charts=generation_charts(),
        tables={"strengths": columns(rows)},
        more={"texts": text_columns(texts)},
        title=f"Steered texts of {summary.source}",
        subtitle=f"{summary.model} ({summary.dtype}); at most {summary.max_new} tokens a text; "
        f"target: {summary.target}"
        + (f"; steered tokens: {summary.tokens}" if summary.tokens else ""),
        sections=[
            ("findings", "Findings"),
            *([("strengths", "Strengths")] if rows else []),
            ("tables", "Tables"),
            *([("texts", "Texts")] if texts else []),
            ("settings", "Settings"),
        ],
        findings=_findings(summary),
        notes=[
            *(f"Left out: {reason}" for reason in summary.left_out),
            *(
                f"{scores.behavior}, {method_label(scores)}: {note}."
                for scores in summary.methods
                for note in scores.notes
            ),
        ],
        behaviors=behaviors,
        methods=[(name, COLORS[i % len(COLORS)]) for i, name in enumerate(methods)],
        panels=PANELS,
        units=", ".join(dict.fromkeys(scores.unit for scores in summary.methods)),
        budget=f"{summary.budget:g}",
        tables_shown=generation_tables(summary),
        settings=flat_facts(settings),
        commands=commands,
        again=again,
    )


def strength_rows(summary: GenerationSummary) -> Rows:
    """Scores at every strength, on test rows; on validation rows where there are no others."""
    rows: Rows = []
    for scores in summary.methods:
        split = "test" if scores.curves.get("test") else "validation"
        curve = scores.curves.get(split, ())
        chosen = None if scores.choice is None else scores.choice.strength
        rows += [_strength_row(scores, split, at, chosen, summary.budget) for at in curve]
        if scores.identity is None or scores.identity in [at.strength for at in curve]:
            continue
        unsteered = summary.unsteered.get(scores.behavior, {}).get(split)
        if unsteered is not None:
            row = _strength_row(scores, split, unsteered, chosen, summary.budget)
            same = {"effect": 0.0, "low": 0.0, "high": 0.0, "perplexity": 1.0}
            label = f"{strength_label(scores.identity, scores.unit)}, unsteered"
            rows.append({**row, "strength": scores.identity, "label": label, **same})
    return rows


def _strength_row(
    scores: MethodScores, split: str, at: StrengthScores, chosen: float | None, budget: float
) -> dict[str, Any]:
    effect = at.effect
    return {
        "behavior": scores.behavior,
        "method": method_label(scores),
        "split": split,
        "strength": at.strength,
        "label": strength_label(at.strength, scores.unit),
        "n": at.n,
        "target": at.target,
        "effect": None if effect is None else effect.value,
        "low": None if effect is None else effect.low,
        "high": None if effect is None else effect.high,
        "perplexity": at.perplexity_ratio,
        "refusal": at.refusal,
        "form": at.form,
        "ended": at.ended,
        "repetition": at.repetition,
        "chosen": at.strength == chosen,
        "budget": budget,
    }


def text_columns(texts: Sequence[TextRow]) -> dict[str, Any] | None:
    """Write texts as columns: of as many prompts as there is room for, all that was written."""
    if not texts:
        return None
    size: dict[tuple[str, str], int] = {}
    for text in texts:
        size[text.behavior, text.id] = size.get((text.behavior, text.id), 0) + _OVERHEAD
        size[text.behavior, text.id] += min(len(text.text), LONGEST_TEXT)
    prompts = list(size)
    most = int(TEXT_BYTES / (sum(size.values()) / len(size)))
    chosen = [prompts[i] for i in spread([behavior for behavior, _ in prompts], most)]
    place = {prompt: i for i, prompt in enumerate(chosen)}
    first = {(t.behavior, t.id): t for t in reversed(texts)}
    ways = list(dict.fromkeys((text.method, text.strength) for text in texts))
    shown = [text for text in texts if (text.behavior, text.id) in place]
    return {
        "n_prompts": len(prompts),
        "id": [prompt_id for _, prompt_id in chosen],
        "behavior": coded([behavior for behavior, _ in chosen]),
        "split": coded([first[prompt].split for prompt in chosen]),
        "prompt": [shortened(first[prompt].prompt, LONGEST_TEXT) for prompt in chosen],
        "ways": {"method": [way[0] for way in ways], "strength": [way[1] for way in ways]},
        "of": [place[text.behavior, text.id] for text in shown],
        "way": [ways.index((text.method, text.strength)) for text in shown],
        "sample": [text.sample for text in shown],
        "text": coded([shortened(text.text, LONGEST_TEXT) for text in shown]),
        "target": [rounded(text.target) for text in shown],
        "nll": [rounded(text.nll_unsteered) for text in shown],
    }


def _findings(summary: GenerationSummary) -> list[Finding]:
    """The sentences of tables.md, with whether the effect was shown."""
    judged = [scores for scores in summary.methods if scores.choice is not None]
    return [
        Finding(
            about=scores.behavior,
            text=sentence.removeprefix(f"{scores.behavior}: "),
            mood="good" if scores.choice and scores.choice.shown else "bad",
        )
        for scores, sentence in zip(judged, findings(summary), strict=True)
    ]
