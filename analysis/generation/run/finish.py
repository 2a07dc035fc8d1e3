"""The end of a run: what the chosen strength keeps, and the files that say so."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actcache.analysis.files import write_text
from actcache.analysis.generation.folder import (
    STEERING,
    STEERINGS,
    SUMMARY,
    TABLES,
    Generations,
)
from actcache.analysis.generation.report_files import write_generation_report, write_prompts
from actcache.analysis.generation.run.plan import GenerationPlan, Steers
from actcache.analysis.generation.run.rows import PromptRow
from actcache.analysis.generation.run.summarize import summarize_texts
from actcache.analysis.generation.summary import GenerationSummary, MethodScores
from actcache.analysis.generation.texts import GeneratedText
from actcache.analysis.names import slugs
from actcache.analysis.report.generation_pages import generation_page
from actcache.engine.model import LanguageModel
from actcache.steering.checks import PLANE_OPERATORS
from actcache.steering.operators import apply_operator, coefficients_of
from actcache.steering.scoring import score_choices
from actcache.steering.source import Calibration, SteeringSource
from actcache.steering.steering import AnySteering, Steering, SteeringSum

OTHER_ROWS = 48
"""Rows of other behaviors whose choices are compared with and without steering, at most."""

NORM_VALUES = 256
"""Random values whose norms are compared before and after a rotation."""


def finish(
    out: Path,
    model: LanguageModel,
    plan: GenerationPlan,
    texts: Sequence[GeneratedText],
    *,
    save: str | Path | None,
) -> GenerationSummary:
    """Summarize a run whose texts are all written, and write everything else of GEN."""
    summary = summarize_texts(plan, texts, dtype=model.dtype)
    summary = replace(
        summary,
        methods=tuple(_with_model_facts(model, plan, method) for method in summary.methods),
    )
    chosen = chosen_steerings(plan, summary)
    files = slugs(chosen)
    for behavior, steering in chosen.items():
        if len(plan.behaviors) > 1:
            steering.save(out / STEERINGS / f"{files[behavior]}.safetensors")
    if chosen:
        first = next(iter(chosen.values()))
        first.save(out / STEERING)
        if save is not None:
            first.save(Path(save))
    write_text(out / TABLES, generation_page(summary))
    write_prompts(out, {row.id: row.prompt for row in plan.rows})
    summary.write(out / SUMMARY)
    write_generation_report(Generations(out), texts=texts)  # made again by `actcache report`
    return summary


def chosen_steerings(plan: GenerationPlan, summary: GenerationSummary) -> dict[str, AnySteering]:
    """Make the steering of each behavior whose effect on validation rows is largest.

    Methods with a vector or layer for each prompt have no single steering and are passed over.
    """
    chosen: dict[str, tuple[float, AnySteering]] = {}
    for method in summary.methods:
        choice = method.choice
        if choice is None or choice.strength is None or choice.validation is None:
            continue
        effect = choice.validation.effect
        steering = way_of(plan, method).steering(None, choice.strength)
        if effect is None or steering is None:
            continue
        best = chosen.get(method.behavior)
        if best is None or effect.value > best[0]:
            grid = tuple(scores.strength for scores in method.curves["validation"])
            calibration = Calibration(
                metric=summary.target, grid=grid, value=choice.strength, split="validation"
            )
            chosen[method.behavior] = effect.value, _calibrated(steering, plan, method, calibration)
    return {behavior: steering for behavior, (_, steering) in chosen.items()}


def way_of(plan: GenerationPlan, method: MethodScores) -> Steers:
    """Find the way of steering that scores are of."""
    [way] = [
        way
        for way in plan.ways
        if (way.behavior, way.method, way.selection, way.control)
        == (method.behavior, method.method, method.selection, method.control)
    ]
    return way


def _calibrated(
    steering: AnySteering, plan: GenerationPlan, method: MethodScores, calibration: Calibration
) -> AnySteering:
    """Write into each part which model it is for, and how its strength was chosen."""
    parts = []
    for part in steering.parts:
        source = part.source or SteeringSource(behavior=method.behavior, method=method.method)
        parts.append(
            replace(
                part,
                source=replace(
                    source, **_model_facts(plan), behavior=method.behavior, calibration=calibration
                ),
            )
        )
    return parts[0] if len(parts) == 1 else SteeringSum(tuple(parts))


def _model_facts(plan: GenerationPlan) -> dict[str, Any]:
    facts = {name: value for name, value in plan.model.identity.items() if value is not None}
    return {**facts, "model": plan.model.name, "revision": plan.model.revision}


def _with_model_facts(
    model: LanguageModel, plan: GenerationPlan, method: MethodScores
) -> MethodScores:
    way = way_of(plan, method)
    strength = None if method.choice is None else method.choice.strength
    if strength is None:
        return method
    of_behavior, others = choices_kept(model, plan, way, strength)
    return replace(
        method,
        choices_kept=of_behavior,
        others_kept=others,
        norm_error=norm_error(model, way, strength),
    )


def choices_kept(
    model: LanguageModel, plan: GenerationPlan, way: Steers, strength: float
) -> tuple[float | None, float | None]:
    """Compute the share of test rows whose likelier completion stays the unsteered model's.

    Returns:
        Of the behavior's own rows, which are meant to change; and of at most `OTHER_ROWS` rows of
        other behaviors, where one steering serves all prompts. None where there are no such rows.
    """
    tested = [row for row in plan.rows if row.split == "test" and row.choices is not None]
    of_behavior = [row for row in tested if row.behavior == way.behavior]
    others = [row for row in tested if row.behavior != way.behavior]
    others = others[:: max(1, -(-len(others) // OTHER_ROWS))]  # some of each behavior
    steering = way.steering(None, strength)
    return (
        _share_kept(
            model, plan, of_behavior, [way.steering(row.number, strength) for row in of_behavior]
        ),
        None if steering is None else _share_kept(model, plan, others, [steering] * len(others)),
    )


def _share_kept(
    model: LanguageModel,
    plan: GenerationPlan,
    rows: Sequence[PromptRow],
    steerings: Sequence[AnySteering | None],
) -> float | None:
    if not rows:
        return None
    likelier = [
        np.argmax(
            score_choices(
                model,
                [row.tokens for row in rows],
                [row.choices for row in rows if row.choices is not None],
                of_rows,
                batch_tokens=plan.config.batch_tokens,
            ),
            axis=-1,
        )
        for of_rows in (steerings, [None] * len(rows))
    ]
    return float(np.mean(likelier[0] == likelier[1]))


def norm_error(model: LanguageModel, way: Steers, strength: float) -> float | None:
    """Measure how much a rotation changes norms in the model's dtype; None of other operators."""
    steering = way.steering(None, strength)
    parts = [] if steering is None else [p for p in steering.parts if p.operator in PLANE_OPERATORS]
    if not parts:
        return None
    return max(_norm_error(part, model.hf.dtype) for part in parts)


def _norm_error(part: Steering, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, NORM_VALUES, part.d_model, generator=generator)
    values = drawn.to(dtype)
    plane = torch.from_numpy(np.array(part.vectors[0]))[None, None]
    coefficients = torch.tensor([coefficients_of(part.operator, part.strength)])
    steered = apply_operator(part.operator, values.float(), plane, coefficients).to(dtype)
    ratio = steered.double().norm(dim=-1) / values.double().norm(dim=-1)
    return float((ratio - 1).abs().max())
