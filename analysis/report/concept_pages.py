"""The report on concept directions: a table of all concepts, one for each, and the masses drawn."""

from pathlib import Path

import numpy as np

from actcache.analysis.concepts.summary import (
    ATTENDED,
    ConceptScores,
    ConceptSummary,
)
from actcache.analysis.report.plots import new_figure, save_figure, shown_name
from actcache.analysis.report.tables import Table, markdown, markdown_text
from actcache.analysis.stats.bootstrap import Interval

PANELS = 6
"""Concepts that the picture and the tables of layers show."""

_DESIGNS = {
    "same": "each text stands on both sides, so that the sides differ by the concept alone",
    "published": "two pools of statements, one for each side, as in the published code; the pools "
    "alone, without any prefix, are told apart as far as the column says",
    "other": "the two sides have texts of their own, and their difference is in the directions too",
}
NO_VERDICT = (
    "AUC on held-out rows is no verdict: where the concept is the largest variance of the rows, "
    "shuffled labels and random directions reach it too, with either sign. A verdict needs a "
    "steering slope: sweep the directions on pairs with analyze --directions."
)


def concepts_page(summary: ConceptSummary) -> str:
    """Write the part of tables.md on concepts."""
    left_out = (f"Left out: {reason}" for reason in summary.left_out)
    lines = [*concept_notes(summary), *blind_notes(summary), *left_out]
    text = "".join(f"- {markdown_text(line)}\n" for line in lines)
    return f"# Concepts\n\n{text}\n{markdown(concept_tables(summary))}"


def concept_notes(summary: ConceptSummary) -> list[str]:
    """Say what the scores of concepts can tell, and of which rows they are."""
    return [
        NO_VERDICT,
        f"Rows: {_DESIGNS[summary.design]}.",
        *([_CHOSEN_ON_VALIDATION] if _on_validation(summary) else []),
    ]


def blind_notes(summary: ConceptSummary) -> list[str]:
    """Name the blind layers of each concept that has some."""
    return [
        f"{name}: no token sees the span in layers {', '.join(map(str, scores.blind))}; they take "
        "the last token and have no soft labels."
        for name, scores in summary.concepts.items()
        if scores.blind
    ]


_CHOSEN_ON_VALIDATION = (
    "Scores are of validation rows, which also chose settings: the rows have no test split."
)


def _on_validation(summary: ConceptSummary) -> bool:
    return any(scores.held_out == "validation" for scores in summary.concepts.values())


def concept_tables(summary: ConceptSummary) -> list[Table]:
    """Make the table of all concepts, and those of the first, layer by layer."""
    first = dict(list(summary.concepts.items())[:PANELS])
    return [
        overview_table(summary),
        *(layer_table(name, scores, summary) for name, scores in first.items()),
    ]


def overview_table(summary: ConceptSummary) -> Table:
    """Make the table of all concepts, each at the layer of the largest mass."""
    method = summary.methods[0]
    cells = []
    for name, scores in summary.concepts.items():
        place = summary.layers.index(scores.layers_by_mass[0])
        fixed = {p: scores.sets[f"{method}-hard-{p}"].auc[place] for p in summary.positions}
        best = max(fixed, key=lambda position: fixed[position].value)
        row = {
            "concept": name,
            "layer": str(scores.layers_by_mass[0]),
            "token": scores.tokens[place],
            "mass": f"{scores.mass[scores.tokens[place]][place]:.3f}",
            "random span": _random_mass(scores, place),
            "AUC attended": str(scores.sets[f"{method}-hard-{ATTENDED}"].auc[place]),
            "last token": str(fixed[summary.positions[-1]]),
            "best fixed": f"{best} {fixed[best]}",
            "shuffled labels": str(scores.controls.shuffled[place]),
            "random directions": str(scores.controls.random[place]),
        }
        if scores.pools:
            row["pools alone"] = str(scores.pools.auc[place])
        cells.append(row)
    return Table(
        f"Concepts, each at its layer of the largest mass ({method}, hard labels)",
        cells,
        "mass: share of the token's attention on the span, mean over heads and train rows; random "
        "span: the same of as many other tokens of the prompt, '-' where the store has none. AUC "
        "with 95 % intervals; of shuffled labels and random directions the median and the middle "
        f"95 % of {_draws(summary)} draws, signed.",
    )


def layer_table(name: str, scores: ConceptScores, summary: ConceptSummary) -> Table:
    """Make the table of one concept: every layer, every set of directions."""
    cells = []
    for place, layer in enumerate(summary.layers):
        row = {
            "layer": str(layer) + (" (blind)" if layer in scores.blind else ""),
            "token": scores.tokens[place],
            "mass": f"{scores.mass[scores.tokens[place]][place]:.3f}",
            "random span": _random_mass(scores, place),
        }
        row |= {
            key: _auc(set_scores.auc[place])
            for key, set_scores in scores.sets.items()
            # Fixed positions of one method: a table of all would not be read; concepts.json has it.
            if key.endswith(f"-{ATTENDED}") or key.startswith(f"{summary.methods[0]}-hard-")
        }
        row["shuffled labels"] = _auc(scores.controls.shuffled[place])
        row["random directions"] = _auc(scores.controls.random[place])
        if scores.pools:
            row["pools alone"] = _auc(scores.pools.auc[place])
            row["cosine with pools"] = f"{scores.pools.cosine[place]:+.2f}"
        cells.append(row)
    counts = ", ".join(
        f"{split} {positive} + {negative}"
        for split, (positive, negative) in scores.counts.items()
        if positive + negative
    )
    by_mass, by_score = (
        ", ".join(map(str, order[:5])) for order in (scores.layers_by_mass, scores.layers_by_score)
    )
    return Table(
        f"{name}: AUC of {scores.held_out} rows by layer",
        cells,
        "Columns: method-labels-token; concepts.json has them all. "
        f"Rows {summary.classes[0]} + {summary.classes[1]}: {counts}. "
        f"Layers by mass: {by_mass}; by validation: {by_score}.",
    )


def plot_masses(path: Path, *, summary: ConceptSummary) -> None:
    """Draw the mass on the span by token and layer, one panel a concept; a dot is the choice."""
    shown = dict(list(summary.concepts.items())[:PANELS])
    tokens = list(next(iter(shown.values())).mass)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(1.2 + rows * (1.2 + 0.25 * len(tokens)))
    grid = figure.subplots(rows, columns, squeeze=False)
    most = max(max(map(max, scores.mass.values())) for scores in shown.values())
    image = None
    for axes, (name, scores) in zip(grid.flat, shown.items(), strict=False):
        values = np.array([scores.mass[token] for token in tokens])
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=most or 1)
        places = [i for i, layer in enumerate(summary.layers) if layer not in scores.blind]
        axes.plot(places, [tokens.index(scores.tokens[i]) for i in places], "o", color="white",
                  markeredgecolor="black", markersize=5)  # fmt: skip
        axes.set_title(shown_name(name), fontsize=10)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
        axes.set_xlabel("layer")
    for axes in list(grid.flat)[len(shown) :]:
        axes.remove()
    title = "Attention on the span by token and layer; dot: the token that is read"
    if len(shown) < len(summary.concepts):
        title += f" (first {len(shown)} of {len(summary.concepts)} concepts)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if image is not None:
        bar = figure.colorbar(image, ax=list(grid.flat)[: len(shown)], shrink=0.9, pad=0.015)
        bar.set_label("mass, mean over heads and train rows")
    save_figure(figure, path)


def _auc(value: Interval) -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _random_mass(scores: ConceptScores, place: int) -> str:
    if scores.random_span_mass is None or scores.random_span_tokens is None:
        return "-"
    return f"{scores.random_span_mass[scores.tokens[place]][place]:.3f}"


def _draws(summary: ConceptSummary) -> int:
    return next((scores.controls.draws for scores in summary.concepts.values()), 0)
