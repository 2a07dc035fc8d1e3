"""Tables of steered texts, in the form of Selective Steering's: what acts, and what it costs."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp

from actcache.analysis.generation.summary import (
    GenerationSummary,
    MethodScores,
    StrengthScores,
)
from actcache.analysis.names import STEERING_METHODS, strategy_label
from actcache.analysis.report.tables import Table

NONE = "-"
"""Shown where there is no number."""


EVERY_ANGLE = "every angle"
"""The window of a plane's turns that goes round."""


def generation_tables(summary: GenerationSummary) -> list[Table]:
    """Make all tables of a run; those that would be empty are left out."""
    tables = [
        effect_table(summary),
        coherence_table(summary),
        *strength_tables(summary),
        threshold_table(summary),
        selection_table(summary),
        norm_table(summary),
        choices_table(summary),
        *site_tables(summary),
    ]
    # What rounding alone changes belongs under every number.
    noise = noise_sentence(summary)
    return [replace(table, note=f"{table.note} {noise}") for table in tables if table.cells]


def effect_table(summary: GenerationSummary) -> Table:
    """Make the table of effects at the chosen strengths."""
    return Table(
        f"Effect on test rows at the strength chosen on validation rows ({summary.target})",
        [
            {
                "behavior": scores.behavior,
                "method": method_label(scores),
                "strength": choice.reason
                if choice.strength is None
                else strength_label(choice.strength, scores.unit),
                "effect": _effect(choice.test),
                "over controls": "; ".join(
                    f"{control_label(name)} {difference}"
                    for name, difference in choice.over_control.items()
                )
                or NONE,
                "shown": "yes" if choice.shown else "no",
                "best on test": NONE
                if choice.best_on_test is None
                else f"{strength_label(choice.best_on_test.strength, scores.unit)}: "
                f"{_effect(choice.best_on_test)}",
                "window of form": window_label(scores),
            }
            for scores in summary.methods
            if (choice := scores.choice) is not None
        ],
        "Effect: mean target minus that of the unsteered text of the same row, with its 95 % "
        "interval, rows resampled. Over controls: the same minus the effect of random vectors or "
        "planes of equal norm at that strength. Shown: both intervals are above 0. Best on test: "
        "what the test rows would choose for themselves, biased upwards. Window: strengths around "
        "the identity that keep form and ending.",
    )


def coherence_table(summary: GenerationSummary) -> Table:
    """Make the table of what texts are like: unsteered, at chosen strengths, and of controls."""
    rows = []
    for behavior, splits in summary.unsteered.items():
        if (unsteered := splits.get("test")) is not None:
            rows.append(_coherence(behavior, "unsteered", "", unsteered, reference=unsteered))
            rows += [
                _coherence(
                    behavior,
                    method_label(scores),
                    strength_label(at_strength.strength, scores.unit),
                    at_strength,
                    reference=unsteered,
                )
                for scores, at_strength in _shown_scores(summary, behavior)
            ]
    return Table(
        "Texts at these strengths (test rows)",
        rows,
        "nll: mean negative log-probability per token in nats, under the unsteered model, and "
        "under the one that wrote the text: a collapsed text is likely to the latter. Perplexity: "
        "under the unsteered model, as a multiple of the unsteered text's; a strength is chosen "
        f"within {summary.budget:g} ×. Repetition: share of 4-grams of words that occurred before, "
        "of texts with four words. Compression: zlib, bytes after over bytes before (mean length); "
        "short texts are above 1, so compare texts of one length. Script: share of letters of the "
        "expected scripts. Refusal: share of texts with a refusal phrase, also on benign prompts.",
    )


def _shown_scores(
    summary: GenerationSummary, behavior: str
) -> list[tuple[MethodScores, StrengthScores]]:
    """Each chosen method's test scores, followed by its controls' at the same strength."""
    shown = []
    controls = [s for s in summary.methods if s.control and s.behavior == behavior]
    for scores in summary.methods:
        choice = scores.choice
        if scores.behavior != behavior or choice is None or choice.test is None:
            continue
        shown.append((scores, choice.test))
        for control in controls:
            if control.unit == scores.unit:
                shown += [
                    (control, at_strength)
                    for at_strength in control.curves.get("test", ())
                    if at_strength.strength == choice.strength
                ]
    return list({(id(s), x.strength): (s, x) for s, x in shown}.values())


def _coherence(
    behavior: str,
    method: str,
    strength: str,
    scores: StrengthScores,
    *,
    reference: StrengthScores,
) -> dict[str, str]:
    return {
        "behavior": behavior,
        "method": method,
        "strength": strength or NONE,
        "target": _number(scores.target),
        "nll unsteered": _number(scores.nll_unsteered),
        "nll steered": _number(scores.nll_steered),
        "perplexity": NONE
        if scores is reference or scores.perplexity_ratio is None
        else f"{scores.perplexity_ratio:.3g} ×",
        "repetition": _number(scores.repetition),
        "compression": f"{_number(scores.compression)} ({scores.n_bytes:.0f} bytes)",
        "script": _number(scores.script),
        "form": f"{scores.form:.0%}",
        "ended": f"{scores.ended:.0%}",
        "refusal": f"{scores.refusal:.0%}",
        "tokens": f"{scores.tokens:.3g}",
    }


def strength_tables(summary: GenerationSummary) -> list[Table]:
    """Make for each grid of strengths the table of form and effect over it."""
    grids: dict[tuple[str, tuple[float, ...]], list[MethodScores]] = {}
    for scores in summary.methods:
        if curve := curve_on_test(scores):
            grid = tuple(at_strength.strength for at_strength in curve)
            grids.setdefault((scores.unit, grid), []).append(scores)
    return [
        Table(
            "Form and effect by strength (test rows)",
            [
                {
                    "texts of": f"{scores.behavior}, {method_label(scores)}",
                    **{
                        strength_label(x.strength, unit): f"{x.form:.0%} / {_value(x)}"
                        for x in curve_on_test(scores)
                    },
                }
                for scores in of_grid
            ],
            "Share of texts that are not empty and well-formed / mean effect.",
        )
        for (unit, _), of_grid in grids.items()
    ]


def threshold_table(summary: GenerationSummary) -> Table:
    """Make the table of strengths whose texts are over the budget, by both perplexities."""

    def row(scores: MethodScores) -> dict[str, str]:
        curve = [s for s in curve_on_test(scores) if s.strength != scores.identity]
        unsteered = summary.unsteered[scores.behavior]["test"]
        by_writer = [
            exp(min(s.nll_steered - unsteered.nll_steered, 700.0))
            for s in curve
            if s.nll_steered is not None and unsteered.nll_steered is not None
        ]
        by_reader = [s.perplexity_ratio for s in curve if s.perplexity_ratio is not None]
        return {
            "behavior": scores.behavior,
            "method": method_label(scores),
            **{
                f"over, {name}": f"{sum(r > summary.budget for r in ratios)} of {len(ratios)}"
                for name, ratios in (("unsteered model", by_reader), ("steered model", by_writer))
            },
            **{
                f"largest, {name}": f"{max(ratios):.3g} ×" if ratios else NONE
                for name, ratios in (("unsteered model", by_reader), ("steered model", by_writer))
            },
        }

    return Table(
        f"Strengths above the threshold: perplexity over {summary.budget:g} × the unsteered text's",
        [
            row(scores)
            for scores in summary.methods
            if curve_on_test(scores) and "test" in summary.unsteered.get(scores.behavior, {})
        ],
        "Of all strengths but the identity, on test rows. By the unsteered model's perplexity, "
        "and by that of the model that wrote the text, which hides collapse.",
    )


def selection_table(summary: GenerationSummary) -> Table:
    """Make the table of methods that ran with several selections of layers or sites."""
    by_method: dict[tuple[str, str], list[MethodScores]] = {}
    for scores in summary.methods:
        if scores.choice is not None:
            by_method.setdefault((scores.behavior, scores.method), []).append(scores)
    several = {key: group for key, group in by_method.items() if len(group) > 1}
    selections = list(dict.fromkeys(s.selection for group in several.values() for s in group))

    def cell(scores: MethodScores | None) -> str:
        choice = None if scores is None else scores.choice
        if scores is None or choice is None:
            return NONE
        if choice.strength is None:
            return "none chosen"
        return f"{_effect(choice.test)} ({strength_label(choice.strength, scores.unit)})"

    return Table(
        "Operator and selection of sites: effect on test rows",
        [
            {
                "behavior": behavior,
                "method": STEERING_METHODS.get(method, method),
                **{
                    strategy_label(selection): cell(
                        next((s for s in group if s.selection == selection), None)
                    )
                    for selection in selections
                },
            }
            for (behavior, method), group in several.items()
        ],
        "Each at the strength that its own validation rows chose.",
    )


def norm_table(summary: GenerationSummary) -> Table:
    """Make the table of how well rotations keep norms."""
    return Table(
        f"Norm error in {summary.dtype}",
        [
            {
                "behavior": scores.behavior,
                "method": method_label(scores),
                "largest relative error": f"{scores.norm_error:.2g}",
            }
            for scores in summary.methods
            if scores.norm_error is not None
        ],
        "Of values that are turned in a plane, which keeps norms but for rounding.",
    )


def choices_table(summary: GenerationSummary) -> Table:
    """Make the table of choices kept under steering."""
    return Table(
        "Choices kept at the chosen strength (test rows)",
        [
            {
                "behavior": scores.behavior,
                "method": method_label(scores),
                "strength": strength_label(scores.choice.strength, scores.unit),
                "kept": f"{scores.choices_kept:.0%}",
                "other behaviors": "-"
                if scores.others_kept is None
                else f"{scores.others_kept:.0%}",
            }
            for scores in summary.methods
            if scores.choices_kept is not None
            and scores.choice is not None
            and scores.choice.strength is not None
        ],
        "Share of rows whose likelier completion, by log-probability, is the unsteered model's. "
        "Rows of the behavior that is steered are meant to change; of others they are not.",
    )


def site_tables(summary: GenerationSummary) -> list[Table]:
    """Make the table of discriminative sites of each behavior."""
    return [
        Table(
            f"{behavior}: class means of train rows on the common direction, by site",
            [
                {
                    "site": f"{site.site}, layer {site.layer}",
                    "mean +": f"{site.mean_positive:.3g}",
                    "mean −": f"{site.mean_negative:.3g}",
                    "discriminative": "yes" if site.discriminative else "",
                }
                for site in sites
            ],
            "Discriminative: the two means lie on either side of 0 (Selective Steering).",
        )
        for behavior, sites in (summary.sites or {}).items()
    ]


def curve_on_test(scores: MethodScores) -> Sequence[StrengthScores]:
    """Return the scores of all strengths on test rows, ascending; empty without test rows."""
    return scores.curves.get("test", ())


def method_label(scores: MethodScores) -> str:
    """Name a method and its selection of layers."""
    label = STEERING_METHODS.get(scores.method, scores.method)
    return f"{label}, {strategy_label(scores.selection)}" if scores.selection else label


def control_label(name: str) -> str:
    """Name a control of `Choice.over_control`."""
    method, _, selection = name.removesuffix(")").partition(" (")
    label = STEERING_METHODS.get(method, method)
    return label if method.startswith("random") else f"{label}, {selection}"


def strength_label(strength: float, unit: str) -> str:
    """Write a strength in its unit: `λ 0.5`, `90°`."""
    match unit:
        case "multiplier":
            return f"λ {strength:g}"
        case "degrees":
            return f"{strength:g}°"
        case "share":
            return f"{strength:.0%} removed"
        case _:
            return f"{unit} {strength:g}"


def window_label(scores: MethodScores) -> str:
    """Write the window of strengths that keep form."""
    if scores.choice is None or scores.choice.window is None:
        return "none"
    low, high = scores.choice.window
    tried = sorted({at.strength for curve in scores.curves.values() for at in curve})
    if scores.unit == "degrees" and len(tried) > 1 and high - low + tried[1] - tried[0] >= 360:
        return EVERY_ANGLE
    return f"{strength_label(low, scores.unit)} to {strength_label(high, scores.unit)}"


def noise_sentence(summary: GenerationSummary) -> str:
    """Say what two runs of the unsteered model disagree in."""
    noise = summary.noise
    if noise is None:
        return "Noise: not measured."
    by_how_much = "".join(
        f", {name} differs by {value:.2g}"
        for name, value in (("target", noise.target), ("nll", noise.nll_unsteered))
        if value is not None
    )
    return (
        f"Noise: of the unsteered texts, written twice in batches of two sizes, {noise.equal} of "
        f"{noise.n} are the same{by_how_much} on average."
    )


def _effect(scores: StrengthScores | None) -> str:
    return NONE if scores is None or scores.effect is None else str(scores.effect)


def _value(scores: StrengthScores) -> str:
    return NONE if scores.effect is None else f"{round(scores.effect.value, 12) + 0.0:+.2g}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"
