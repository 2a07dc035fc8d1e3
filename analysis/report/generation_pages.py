"""The report on steered texts: what was found, in sentences, and the tables behind it."""

from actcache.analysis.generation.summary import Choice, GenerationSummary, MethodScores
from actcache.analysis.report.generation_tables import (
    EVERY_ANGLE,
    control_label,
    effect_table,
    generation_tables,
    method_label,
    strength_label,
    window_label,
)
from actcache.analysis.report.tables import Table, markdown

_TARGETS = {
    "read_back": "the projection of the text, as the unsteered model reads it, on the train "
    "direction (mean residual of its tokens at the behavior's fixed layer)",
    "answer": "the share of answers that are the row's positive completion, among texts that are "
    "one of its two",
    "form": "the share of texts in which the expression matches",
    "words": "the share of texts with one of the file's phrases",
    "refusal": "the share of texts with a refusal phrase",
    "judge": "the judge's verdict",
}


def generation_page(summary: GenerationSummary) -> str:
    """Write tables.md of GEN: findings first, then what was measured, then every table."""
    about = [
        f"Target: {summary.target}, {_TARGETS[summary.target.partition(':')[0]]}.",
        (
            f"Model: {summary.model} ({summary.dtype}), texts of at most {summary.max_new} tokens, "
            f"{summary.samples} a prompt and configuration. Directions: {summary.source}."
        ),
        *([f"Judge: {summary.judge}."] if summary.judge else []),
        *(f"Left out: {reason}." for reason in summary.left_out),
        *(
            f"{scores.behavior}, {method_label(scores)}: {note}."
            for scores in summary.methods
            for note in scores.notes
        ),
    ]
    lines = "".join(f"- {line}\n" for line in findings(summary))
    facts = "".join(f"- {line}\n" for line in dict.fromkeys(about))
    tables = markdown(generation_tables(summary))
    return f"# Steered texts\n\n{lines}\n## What was measured\n\n{facts}\n{tables}"


def short_tables(summary: GenerationSummary) -> list[Table]:
    """Make the tables that a terminal and a notebook show."""
    # What is over controls stands in the findings; it is wide.
    table = effect_table(summary).without("best on test").without("over controls")
    return [table] if table.cells else []


def findings(summary: GenerationSummary) -> list[str]:
    """Say for each behavior and method what its texts show, and what they do not."""
    return [
        f"{scores.behavior}: {_finding(scores, choice, summary.budget)}"
        for scores in summary.methods
        if (choice := scores.choice) is not None
    ]


def _finding(scores: MethodScores, choice: Choice, budget: float) -> str:
    method = method_label(scores)
    label = window_label(scores)
    window = f"Texts keep their form and ending {'at' if label == EVERY_ANGLE else 'from'} {label}"
    if choice.window is None:
        window = "No strength keeps form and ending"
    grid = [s.strength for curve in scores.curves.values() for s in curve]
    tried = (
        f" (tried: {strength_label(min(grid), scores.unit)} to "
        f"{strength_label(max(grid), scores.unit)})."
        if grid
        else "."
    )
    if choice.strength is None:
        return f"{method} cannot be used: {choice.reason}. {window}{tried}"
    strength = strength_label(choice.strength, scores.unit)
    test = choice.test
    if test is None or test.effect is None:
        return f"{method} at {strength} is not tested: no test row has a target. {window}{tried}"
    beside = "; ".join(
        f"over {control_phrase(name)}: {difference}"
        for name, difference in choice.over_control.items()
    )
    over = f" ({beside})" if beside else ""
    cost = ""
    if test.perplexity_ratio is not None:
        cost = f" To the unsteered model the texts are {test.perplexity_ratio:.3g} × as perplexing"
        cost += "." if test.perplexity_ratio <= budget else f", over the budget of {budget:g} ×."
    if choice.shown:
        return f"{method} at {strength} has an effect of {test.effect}{over}.{cost} {window}{tried}"
    return (
        f"no effect of {method} is shown. At {strength} it is {test.effect}{over}; "
        f"{_why_not(choice)}.{cost} {window}{tried}"
    )


def control_phrase(name: str) -> str:
    """Name a control within a sentence: `a random vector`."""
    label = control_label(name)
    return f"a {label}" if name.startswith("random") else label


def _why_not(choice: Choice) -> str:
    assert choice.test is not None
    assert choice.test.effect is not None
    if choice.test.effect.low <= 0:
        return "its interval is not above 0"
    unclear = [name for name, over in choice.over_control.items() if over.low <= 0]
    if unclear:
        controls = " and ".join(dict.fromkeys(map(control_phrase, unclear)))
        return f"the difference to {controls} has an interval that is not above 0"
    return "there are too few test rows, or a control was not run at this strength"
