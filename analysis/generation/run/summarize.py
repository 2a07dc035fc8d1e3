"""From the texts of a run to its summary, tables, picture and the chosen steering."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actcache.analysis.generation.choosing import ChoiceRules, choose
from actcache.analysis.generation.run.plan import GenerationPlan, PlannedConfiguration, Steers
from actcache.analysis.generation.strength_table import (
    Bootstrap,
    StrengthTable,
    score_strength,
    strength_table,
)
from actcache.analysis.generation.summary import (
    GenerationSummary,
    MethodScores,
    Noise,
    StrengthScores,
)
from actcache.analysis.generation.texts import UNSTEERED, UNSTEERED_AGAIN, GeneratedText
from actcache.analysis.generation.units import CONTROLS


@dataclass(frozen=True)
class _BehaviorTexts:
    """The texts of one behavior's rows, as tables."""

    rows: tuple[str, ...]
    validation: Bool[np.ndarray, " n"]
    unsteered: StrengthTable
    ways: Mapping[int, StrengthTable]
    """By the way's place in the plan."""


def summarize_texts(
    plan: GenerationPlan, texts: Sequence[GeneratedText], *, dtype: str
) -> GenerationSummary:
    """Summarize all texts of a finished run; strengths are chosen on validation rows alone.

    Fields that need the model, `choices_kept`, `others_kept` and `norm_error`, are left None.
    """
    config = plan.config
    bootstrap = Bootstrap(seed=config.seed, draws=config.draws)
    rules = ChoiceRules(budget=config.budget)
    of_configuration: dict[str, list[GeneratedText]] = defaultdict(list)
    for text in texts:
        of_configuration[text.configuration].append(text)
    methods: list[MethodScores] = []
    unsteered: dict[str, dict[str, StrengthScores]] = {}
    for behavior in plan.behaviors:
        tables = _tables(plan, behavior, of_configuration)
        splits = _splits(tables)
        unsteered[behavior] = {
            split: score_strength(
                tables.unsteered, tables.unsteered, 0, rows=rows, bootstrap=bootstrap
            )
            for split, rows in splits.items()
        }
        for place, table in tables.ways.items():
            way = plan.ways[place]
            controls = _controls(plan, tables, way)
            choosable = not way.control and "validation" in splits
            methods.append(
                MethodScores(
                    behavior=behavior,
                    method=way.method,
                    selection=way.selection,
                    control=way.control,
                    unit=way.unit,
                    identity=way.identity,
                    curves={
                        split: tuple(
                            score_strength(
                                table, tables.unsteered, i, rows=rows, bootstrap=bootstrap
                            )
                            for i in range(len(table.strengths))
                        )
                        for split, rows in splits.items()
                    },
                    choice=choose(
                        table,
                        tables.unsteered,
                        identity=way.identity,
                        validation=tables.validation,
                        unit=way.unit,
                        controls=controls,
                        rules=rules,
                        bootstrap=bootstrap,
                    )
                    if choosable
                    else None,
                    notes=way.notes,
                )
            )
    return GenerationSummary(
        model=plan.model.name,
        dtype=dtype,
        source=plan.source,
        target=config.target,
        budget=config.budget,
        tokens=config.tokens or "",
        max_new=config.max_new,
        samples=config.samples,
        unsteered=unsteered,
        methods=tuple(methods),
        noise=_noise(plan, of_configuration),
        sites=None if plan.sites is None else dict(plan.sites),
        judge=_judge(plan, texts),
        left_out=plan.left_out,
    )


def _tables(
    plan: GenerationPlan, behavior: str, texts: Mapping[str, Sequence[GeneratedText]]
) -> _BehaviorTexts:
    rows = [row for row in plan.rows if row.behavior == behavior]
    ids = [row.id for row in rows]
    of_behavior = [run for run in plan.configurations if run.about.behavior == behavior]

    def table(runs: Sequence[PlannedConfiguration]) -> StrengthTable:
        return strength_table({run.about.strength or 0.0: texts[run.digest] for run in runs}, ids)

    return _BehaviorTexts(
        rows=tuple(ids),
        validation=np.array([row.split == "validation" for row in rows]),
        unsteered=table([run for run in of_behavior if run.about.method == UNSTEERED]),
        ways={
            place: table([run for run in of_behavior if run.way is way])
            for place, way in enumerate(plan.ways)
            if way.behavior == behavior
        },
    )


def _splits(tables: _BehaviorTexts) -> dict[str, Bool[np.ndarray, " n"]]:
    masks = {"validation": tables.validation, "test": ~tables.validation}
    return {split: rows for split, rows in masks.items() if rows.any()}


def _controls(
    plan: GenerationPlan, tables: _BehaviorTexts, way: Steers
) -> dict[str, StrengthTable]:
    """The controls of a method, under names that tell them apart."""
    return {
        f"{other.method} ({other.selection})": tables.ways[i]
        for i, other in enumerate(plan.ways)
        if other.behavior == way.behavior and is_control_of(other, way)
    }


def is_control_of(control: Steers, way: Steers) -> bool:
    """Whether a control is one of this method: its variant, or random in what it steers by.

    The selection of a random control that was made for one method begins with its name and a colon.
    """
    if not control.control or control.unit != way.unit:
        return False
    made_for = control.selection.partition(":")[0] if ":" in control.selection else None
    return control.method == way.method or (
        control.method in CONTROLS and made_for in (None, way.method)
    )


def _noise(plan: GenerationPlan, texts: Mapping[str, Sequence[GeneratedText]]) -> Noise | None:
    """Compare both runs of the unsteered model, text by text."""
    runs: dict[str, dict[tuple[str, str, int], GeneratedText]] = {
        UNSTEERED: {},
        UNSTEERED_AGAIN: {},
    }
    for run in plan.configurations:
        if run.about.method in runs:
            for text in texts[run.digest]:
                runs[run.about.method][text.behavior, text.id, text.sample] = text
    pairs = [(text, runs[UNSTEERED_AGAIN][key]) for key, text in runs[UNSTEERED].items()]
    if not pairs:
        return None
    return Noise(
        n=len(pairs),
        equal=sum(first.tokens == second.tokens for first, second in pairs),
        target=_mean_difference([(a.target, b.target) for a, b in pairs]),
        nll_unsteered=_mean_difference([(a.nll_unsteered, b.nll_unsteered) for a, b in pairs]),
    )


def _mean_difference(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    known = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(known)) if known else None


def _judge(plan: GenerationPlan, texts: Sequence[GeneratedText]) -> str | None:
    if plan.config.judge is None:
        return None
    without = sum(text.target is None for text in texts)
    return f"{plan.config.judge}, {without} of {len(texts)} texts without a verdict"
