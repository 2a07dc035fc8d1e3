"""What report.html shows of concepts: attention on the span by token and layer, notes, tables."""

from typing import Any

import altair as alt

from actcache.analysis.concepts.summary import ConceptScores, ConceptSummary
from actcache.analysis.report.concept_pages import blind_notes, concept_notes, concept_tables
from actcache.analysis.report.html.marks import BLUE, Spec, layer_axis, specification, table, tips
from actcache.analysis.report.html.result_rows import Rows

PANELS = 24
"""Concepts that are drawn, to keep the page small; the table has all."""


def drawn_concepts(summary: ConceptSummary) -> dict[str, ConceptScores]:
    """Choose the concepts that are drawn: the first."""
    return dict(list(summary.concepts.items())[:PANELS])


def concept_rows(summary: ConceptSummary) -> Rows:
    """Mass of each drawn concept's tokens by layer; no token is chosen in a blind layer."""
    return [
        {
            "concept": name,
            "token": token,
            "layer": layer,
            "mass": masses[place],
            "random_span": scores.random_span_mass[token][place]
            if scores.random_span_mass
            else None,
            "chosen": scores.tokens[place] == token and layer not in scores.blind,
        }
        for name, scores in drawn_concepts(summary).items()
        for token, masses in scores.mass.items()
        for place, layer in enumerate(summary.layers)
    ]


def concept_content(concepts: ConceptSummary) -> dict[str, Any]:
    """Give the values that the template of the section takes."""
    return {
        "notes": concept_notes(concepts),
        "left_out": concepts.left_out,
        "blind": blind_notes(concepts),
        "n": len(concepts.concepts),
        "n_layers": len(concepts.layers),
        "drawn": list(drawn_concepts(concepts)),
        "tables": concept_tables(concepts),
    }


def concept_charts(summary: ConceptSummary) -> dict[str, Spec]:
    """Make the chart, whose color scale is one for all concepts, by name."""
    drawn = drawn_concepts(summary).values()
    if not drawn:
        return {}
    largest = max(max(masses) for scores in drawn for masses in scores.mass.values())
    controlled = any(scores.random_span_mass for scores in drawn)
    return {"masses": _masses(largest or 1.0, controlled=controlled)}


def _masses(largest: float, *, controlled: bool) -> Spec:
    """Draw the mass by token and layer; a dot is the token that attention chose."""
    cells = alt.Chart(table("masses")).encode(
        alt.X("layer:O", title="layer", axis=layer_axis()),
        alt.Y("token:N", title=None, sort=None, axis=alt.Axis(labelLimit=110)),
    )
    color = alt.Color(
        "mass:Q",
        title=None,
        scale=alt.Scale(range=["#F4F4F4", BLUE], domain=[0, largest]),
        legend=alt.Legend(gradientLength=50, gradientThickness=9, tickCount=3),
    )
    facts = tips("token:N", "layer:O", "mass", *(["random_span"] if controlled else []))
    chosen = cells.transform_filter("datum.chosen")
    return specification(
        alt.layer(
            cells.mark_rect().encode(color, tooltip=facts),
            chosen.mark_point(
                size=34, filled=True, color="white", stroke="black", strokeWidth=1, opacity=1
            ).encode(tooltip=facts),
        ),
        height=20,
        per=("token",),
    )
