"""The charts of steered texts, as Vega-Lite: a number of the texts over strength."""

import altair as alt

from actcache.analysis.report.html.marks import (
    COLORS,
    GREY,
    SHAPES,
    Spec,
    specification,
    table,
    tips,
    zero_line,
)

PANELS = {
    "effect": "effect on the target",
    "perplexity": "perplexity, ratio",
    "refusal": "refusal",
    "form": "form kept",
}
"""A chart each, by the column that it draws."""


def generation_charts() -> dict[str, Spec]:
    """Make every chart, by name."""
    return {field: _over_strength(field) for field in PANELS}


def _over_strength(field: str) -> Spec:
    base = alt.Chart(table("strengths")).transform_filter(f"isValid(datum.{field})")
    x = alt.X("strength:Q", title="strength")
    axis = alt.Axis(format="%", tickCount=4) if field in ("refusal", "form") else alt.Axis()
    scale = alt.Scale(domain=[0, 1]) if field in ("refusal", "form") else alt.Scale()
    y = alt.Y(f"{field}:Q", title=PANELS[field], axis=axis, scale=scale)
    color = alt.Color("method:N", sort=None, legend=None, scale=alt.Scale(range=list(COLORS)))
    shape = alt.Shape("method:N", sort=None, legend=None, scale=alt.Scale(range=list(SHAPES)))
    facts = [*tips("method:N", "label:N", "n", field), *tips("target", "perplexity")]
    layers: list[alt.Chart] = []
    if field == "effect":
        facts += tips("low", "high")
        band = base.mark_area(opacity=0.15).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color)
        layers += [zero_line(), band]
    if field == "perplexity":
        y = y.scale(type="log").axis(tickCount=4, grid=False)
        budget = base.mark_rule(strokeDash=[4, 3], color=GREY)
        layers.append(budget.encode(alt.Y("budget:Q", aggregate="max")))
    layers += [
        base.mark_line(strokeWidth=1.8).encode(x, y, color),
        base.mark_point(filled=True, size=28, opacity=1).encode(x, y, color, shape, tooltip=facts),
        base.transform_filter("datum.chosen")
        .mark_point(size=140, strokeWidth=2, filled=False, shape="circle", opacity=1)
        .encode(x, y, color, tooltip=facts),
    ]
    return specification(alt.layer(*layers), height=160)
