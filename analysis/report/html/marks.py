"""What the charts of report.html share: colors, tables by name, tooltips, the zero line."""

from typing import Any

import altair as alt

# Okabe and Ito: colors that differ for every kind of color vision, on white and on near-black.
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = (
    *("#0072B2", "#D55E00", "#009E73"),
    *("#CC79A7", "#56B4E9", "#E69F00"),
)
GREY = "#8A8A8A"
COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")

Spec = dict[str, Any]

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridOpacity": 0.5, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500},
    "legend": {"labelFontSize": 11, "titleFontSize": 11, "symbolSize": 60},
}
"""Of every chart. Colors of text and axes are the page's own, light or dark."""


def table(name: str) -> alt.NamedData:
    """Name the table whose rows the page fills in."""
    return alt.NamedData(name=name)


def specification(
    chart: alt.LayerChart | alt.Chart | alt.FacetChart, *, height: int, per: tuple[str, ...] = ()
) -> Spec:
    """Turn a chart into Vega-Lite; it is as wide as its panel.

    With `per`, its height is that of one row, and there is a row for each value of these columns.
    """
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    spec: Spec = chart.properties(width="container", height=height, autosize=fit).to_dict(
        validate=False
    )
    spec = {name: part for name, part in spec.items() if name not in ("$schema", "config")}
    return {**spec, "usermeta": {"per": list(per)}} if per else spec


def layer_axis() -> alt.Axis:
    """Number layers, as many as there is room for."""
    return alt.Axis(labelAngle=0, labelOverlap="parity", grid=False)


def zero_line(axis: str = "y") -> alt.Chart:
    """Draw the line at 0."""
    rule = alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeWidth=1, color=GREY, aria=False)
    placed: alt.Chart = rule.encode(y=alt.datum(0))
    if axis == "x":
        placed = rule.encode(x=alt.datum(0))
    return placed


def tips(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """Show fields in a tooltip: numbers with three digits; `share` fields in percent.

    A field may name its type (`layer:O`); by default it is a number.
    """
    shown = []
    for field in (*fields, *titles):
        name, _, kind = field.partition(":")
        title = titles.get(field, name.replace("_", " "))
        if kind:
            shown.append(alt.Tooltip(f"{name}:{kind}", title=title))
        else:
            form = ".0%" if name == "share" else ".3~g"
            shown.append(alt.Tooltip(f"{name}:Q", title=title, format=form))
    return shown
