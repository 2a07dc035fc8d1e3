"""The charts of single prompts: in the plane, and one sample's curves at every layer."""

import altair as alt

from actcache.analysis.report.html.marks import (
    BLUE,
    COLORS,
    GREY,
    SHAPES,
    Spec,
    layer_axis,
    specification,
    table,
    tips,
    zero_line,
)

PLANE = {"behavior": "behavior", "best": "best layer", "letter": "positive letter"}
"""What prompts in the plane are colored by, with its title."""


def sample_charts() -> dict[str, Spec]:
    """Make every chart, by name."""
    return {
        "sample-layers": _slopes(),
        "sample-curves": _curves(),
        **{f"plane-{field}": _plane(field) for field in PLANE},
    }


def _slopes() -> Spec:
    """Draw one sample's slope at every layer beside the mean of its behavior."""
    base = alt.Chart(table("sample-layers"))
    x = alt.X("layer:O", title="steered layer", axis=layer_axis())
    y = alt.Y("slope:Q", title="slope")
    facts = tips("layer:O", "slope", "mean", "chosen:N")
    return specification(
        alt.layer(
            zero_line(),
            base.mark_line(color=GREY, strokeWidth=1.3, strokeDash=[4, 2]).encode(
                x, alt.Y("mean:Q")
            ),
            base.mark_line(color=BLUE, strokeWidth=2).encode(x, y),
            base.mark_point(color=BLUE, size=45, filled=True, opacity=1).encode(
                x, y, tooltip=facts
            ),
            base.transform_filter("datum.chosen != ''")
            .mark_text(dy=-11, fontSize=10, aria=False)
            .encode(x, y, alt.Text("chosen:N")),
        ),
        height=200,
    )


def _curves() -> Spec:
    """Draw one sample's propensity over the multiplier, a line for each layer."""
    near = alt.selection_point(name="near", fields=["layer"], on="pointerover", empty=False)
    base = alt.Chart(table("sample-curves")).encode(
        alt.X("multiplier:Q", title="multiplier λ"),
        alt.Y("propensity:Q", title="propensity", scale=alt.Scale(zero=False)),
        alt.Color("layer:Q", scale=alt.Scale(scheme="viridis"), title="layer"),
        alt.Detail("layer:Q"),
        tooltip=tips("layer:O", "multiplier:O", "propensity"),
    )
    width = alt.when(near).then(alt.value(4)).otherwise(alt.value(1.5))
    return specification(
        alt.layer(
            zero_line(),
            base.mark_line().encode(strokeWidth=width),
            base.mark_point(size=22, filled=True, opacity=1).add_params(near),
        ),
        height=200,
    )


def _plane(field: str) -> Spec:
    """Draw prompts in the plane, colored by one of their properties; a click picks one."""
    title = PLANE[field]
    picked = alt.param(name="picked", value=-1)
    is_picked = alt.datum.sample == picked
    legend = alt.Legend(orient="top", columns=3, symbolOpacity=1, labelLimit=220)
    if field == "best":
        color = alt.Color(f"{field}:Q", title=title, scale=alt.Scale(scheme="viridis"))
        shape: alt.Shape | alt.ShapeValue = alt.ShapeValue("circle")
    else:
        color = alt.Color(
            f"{field}:N", title=title, sort=None, scale=alt.Scale(range=list(COLORS))
        ).legend(legend)
        shape = alt.Shape(
            f"{field}:N", title=title, sort=None, scale=alt.Scale(range=list(SHAPES))
        ).legend(legend)
    return specification(
        alt.Chart(table("plane"))
        .mark_point(filled=True, aria=False, cursor="pointer")
        .encode(
            alt.X("x:Q", axis=None, scale=alt.Scale(zero=False)),
            alt.Y("y:Q", axis=None, scale=alt.Scale(zero=False)),
            color,
            shape,
            size=alt.when(is_picked).then(alt.value(220)).otherwise(alt.value(30)),
            opacity=alt.when(is_picked).then(alt.value(1)).otherwise(alt.value(0.7)),
            tooltip=[
                *tips("prompt:N", "behavior:N", **{"letter:N": "positive letter"}),
                *tips(**{"best:O": "best layer", "slope": "slope there"}),
            ],
        )
        .add_params(picked),
        height=400,
    )
