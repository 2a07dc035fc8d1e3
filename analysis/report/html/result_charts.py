"""The charts of an analysis, as Vega-Lite: what is drawn, without the numbers.

A chart names its table; the page's script fills in the rows, in each panel those of one behavior.
So a specification is in the page once, whatever the number of behaviors.
"""

import altair as alt

from actcache.analysis.report.html.marks import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    ORANGE,
    SHAPES,
    Spec,
    layer_axis,
    specification,
    table,
    tips,
    zero_line,
)

KINDS = ("predicted", "chosen on train", "looks at test")
"""What a strategy may look at when it chooses a layer."""


def result_charts() -> dict[str, Spec]:
    """Make every chart, by name."""
    return {
        "layers": _layers(),
        "grid": _grid(),
        "strategies": _strategies(),
        "choices": _choices(),
        "letters": _letters(),
        "classes": _classes(),
        "auc": _auc(),
    }


def _layers() -> Spec:
    """Draw mean slope by layer: one framing with its interval; others and random ones behind."""
    framing = alt.param(name="framing", value="base")
    near = alt.selection_point(
        name="near", fields=["layer"], nearest=True, on="pointermove", empty=False
    )
    base = alt.Chart(table("layers"))
    random = base.transform_filter("datum.vector != 'steered'")
    steered = base.transform_filter("datum.vector == 'steered'")
    shown = steered.transform_filter("datum.framing == framing")
    x = alt.X("layer:O", title="steered layer", axis=layer_axis())
    y = alt.Y("slope:Q", title="steerability")
    facts = tips("framing:N", "layer:O", "slope", "low", "high", share="steerable")
    line = {"color": BLUE, "strokeWidth": 2.2}
    return specification(
        alt.layer(
            zero_line(),
            random.mark_line(strokeWidth=1, color=GREY).encode(x, y, detail="vector:N"),
            steered.transform_filter("datum.framing != framing")
            .mark_line(strokeWidth=1.1, strokeDash=[4, 2], color=ORANGE, opacity=0.7)
            .encode(x, y, detail="framing:N", tooltip=tips("framing:N", "layer:O", "slope")),
            shown.mark_area(opacity=0.22, color=BLUE).encode(x, alt.Y("low:Q"), alt.Y2("high:Q")),
            shown.mark_line(**line).encode(x, y),
            shown.transform_filter("datum.fixed")
            .mark_point(size=75, filled=True, color=BLUE, opacity=1, stroke="white")
            .encode(x, y),
            shown.mark_point(size=55, filled=True, color=BLUE)
            .encode(
                x,
                y,
                opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0)),
                tooltip=facts,
            )
            .add_params(near),
        ).add_params(framing),
        height=170,
    )


def _grid() -> Spec:
    """Draw how each layer and multiplier moves the mean propensity."""
    cells = alt.Chart(table("grid")).encode(
        alt.X("multiplier:O", title="multiplier λ", axis=alt.Axis(labelAngle=0, grid=False)),
        alt.Y("layer:O", title="steered layer", sort="descending", axis=layer_axis()),
    )
    color = alt.Color(
        "change:Q",
        title=None,
        scale=alt.Scale(
            range=[ORANGE, "#F4F4F4", BLUE],
            domainMin=alt.expr("-largest"),
            domainMid=0,
            domainMax=alt.expr("largest"),
        ),
        legend=alt.Legend(gradientLength=120, gradientThickness=9, tickCount=5),
    )
    fixed = cells.transform_filter("datum.fixed")
    return specification(
        alt.layer(
            cells.mark_rect().encode(
                color, tooltip=tips("layer:O", "multiplier:O", "change", "propensity")
            ),
            fixed.mark_rect(filled=False, stroke="black", strokeWidth=1, aria=False),
        ).add_params(alt.param(name="largest", value=1)),
        height=190,
    )


def _strategies() -> Spec:
    """Draw each strategy as a point with its interval."""
    rows = (
        alt.Chart(table("strategies"))
        .transform_filter("datum.behavior == behavior && datum.framing == framing")
        .transform_filter("which == 'all' || !datum.drawn")
        .transform_calculate(
            value="measure == 'gain' ? datum.gain : datum.slope",
            least="measure == 'gain' ? datum.gain_low : datum.low",
            most="measure == 'gain' ? datum.gain_high : datum.high",
        )
    )
    y = alt.Y(
        "strategy:N",
        sort=alt.EncodingSortField("order", op="min"),
        title=None,
        axis=alt.Axis(labelLimit=150),
    )
    color = alt.Color(
        "kind:N", legend=None, scale=alt.Scale(domain=KINDS, range=[BLUE, GREY, ORANGE])
    )
    shape = alt.Shape(
        "kind:N",
        legend=None,
        scale=alt.Scale(domain=KINDS, range=["circle", "square", "diamond"]),
    )
    facts = tips("strategy:N", "slope", "low", "high", "gain", "gain_low", "gain_high")
    few = alt.Axis(tickCount=7)
    return specification(
        alt.layer(
            zero_line("x"),
            rows.mark_rule(strokeWidth=1.8).encode(
                alt.X("least:Q", title="slope per unit multiplier", axis=few),
                alt.X2("most:Q"),
                y,
                color,
            ),
            rows.mark_point(size=65, filled=True, opacity=1).encode(
                alt.X("value:Q"), y, color, shape, tooltip=[*facts, *tips(share="steerable")]
            ),
        ).add_params(
            alt.param(name="behavior", value=""),
            alt.param(name="framing", value="base"),
            alt.param(name="measure", value="gain"),
            alt.param(name="which", value="all"),
        ),
        height=17,
        per=("strategy",),
    )


def _choices() -> Spec:
    """Draw how often each layer is a sample's best one, and how often it is predicted."""
    base = alt.Chart(table("choices"))
    x = alt.X("layer:O", title="layer", axis=layer_axis())
    y = alt.Y("share:Q", title="test samples", axis=alt.Axis(format="%", tickCount=4))
    color = alt.Color(
        "by:N", legend=None, scale=alt.Scale(domain=["predicted", "shuffled"], range=[BLUE, ORANGE])
    )
    shape = alt.Shape(
        "by:N",
        legend=None,
        scale=alt.Scale(domain=["predicted", "shuffled"], range=["circle", "square"]),
    )
    facts = tips("by:N", "layer:O", share="share")
    predicted = base.transform_filter("datum.by != 'best'")
    return specification(
        alt.layer(
            base.transform_filter("datum.by == 'best'")
            .mark_bar(color=GREY, opacity=0.55)
            .encode(x, y, tooltip=facts),
            predicted.mark_line(strokeWidth=1.4).encode(x, y, color),
            predicted.mark_point(size=60, opacity=1, strokeWidth=1.8).encode(
                x, y, color, shape, tooltip=facts
            ),
        ),
        height=120,
    )


def _letters() -> Spec:
    """Draw the slope at the fixed layer by the letter of the positive completion."""
    base = alt.Chart(table("letters"))
    y = alt.Y("behavior:N", title=None, sort=None, axis=alt.Axis(labelLimit=170))
    offset = alt.YOffset("letter:N", sort=None)
    colors = alt.Scale(range=[GREY, BLUE, ORANGE, GREEN, *COLORS[3:6]])
    color = alt.Color("letter:N", sort=None, scale=colors, title="positive letter")
    shape = alt.Shape(
        "letter:N", sort=None, scale=alt.Scale(range=list(SHAPES)), title="positive letter"
    )
    legend, few = alt.Legend(orient="top"), alt.Axis(tickCount=8)
    facts = tips("behavior:N", "letter:N", "n", "slope", "low", "high", share="steerable")
    return specification(
        alt.layer(
            zero_line("x"),
            base.mark_rule(strokeWidth=1.8).encode(
                alt.X("low:Q", title="steerability at the fixed layer", axis=few),
                alt.X2("high:Q"),
                y,
                offset,
                color.legend(None),
            ),
            base.mark_point(size=55, filled=True, opacity=1).encode(
                alt.X("slope:Q"),
                y,
                offset,
                color.legend(legend),
                shape.legend(legend),
                tooltip=facts,
            ),
        ).resolve_scale(
            color="independent",
            shape="independent",  # else each has a legend of its own
        ),
        height=14,
        per=("behavior", "letter"),
    )


def _classes() -> Spec:
    """Draw both classes' mean projection by layer; discriminative layers are shaded."""
    base = alt.Chart(table("classes"))
    x = alt.X("layer:O", title="layer that is read", axis=layer_axis())
    color = alt.Color(
        "label:N",
        title=None,
        sort=None,
        scale=alt.Scale(range=[BLUE, ORANGE]),
        legend=alt.Legend(orient="top"),
    )
    shade = base.transform_filter("datum.discriminative && datum.first")
    return specification(
        alt.layer(
            shade.mark_bar(color="#F0E442", opacity=0.3, width=alt.RelativeBandSize(1)).encode(
                x, alt.YValue(0), alt.Y2Value("height")
            ),
            zero_line(),
            base.mark_area(opacity=0.25).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color),
            base.mark_line(strokeWidth=2).encode(
                x, alt.Y("mean:Q", title="mean projection"), color
            ),
            base.mark_point(size=40, filled=True, opacity=1).encode(
                x,
                alt.Y("mean:Q"),
                color,
                tooltip=tips("label:N", "layer:O", "mean", "low", "high", "discriminative:N"),
            ),
        ),
        height=230,
    )


def _auc() -> Spec:
    """Draw how well each layer's own direction tells the classes apart."""
    base = alt.Chart(table("classes")).transform_filter("datum.first")
    x = alt.X("layer:O", title="layer that is read", axis=layer_axis())
    y = alt.Y("auc:Q", title="AUC", scale=alt.Scale(zero=False))
    chance = alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeDash=[4, 3], color=GREY)
    return specification(
        alt.layer(
            chance.encode(y=alt.datum(0.5)),
            base.mark_line(color=GREEN).encode(x, y),
            base.mark_point(size=40, filled=True, color=GREEN, opacity=1).encode(
                x, y, tooltip=tips("layer:O", "auc", "fisher")
            ),
        ),
        height=110,
    )
