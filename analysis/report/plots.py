"""The pictures of a report: steerability by layer, change over the grid, prompts in the plane.

Each function draws one figure into a file, whose suffix names the format (`.png`, `.pdf`, `.svg`),
and leaves nothing behind: no pyplot, no global state, no window. Matplotlib is imported when a
picture is drawn.
"""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from actcache.analysis.summary import SteerabilityScores
from actcache.errors import MismatchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito: eight colours that differ for every kind of colour vision; yellow is too pale for
# a line on white. Further lines repeat them with another dash.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES, _MARKERS = ("-", "--", ":"), "os^Dv<>P"
GREY = "#8a8a8a"
_WIDTH, _DPI = 8.0, 150  # 1200 pixels
LEGEND_COLUMNS = 3
_COLUMNS, _TITLE = 3, 34  # panels side by side, and characters in a line of their titles


def plot_steerability(
    path: str | Path,
    behaviors: Mapping[str, SteerabilityScores],
    *,
    control: Sequence[SteerabilityScores] | Mapping[str, Sequence[SteerabilityScores]] = (),
    layers: Sequence[int] | None = None,
    unit: str = "logits per unit multiplier",
) -> None:
    """Draw mean steerability by layer with its interval, a panel for each behavior.

    A dot marks each behavior's fixed layer, grey lines are random directions. Each panel has a
    scale of its own, for behaviors may differ by a factor of a hundred.

    Args:
        path: file to write.
        behaviors: scores of each, `Steerability.scores` of `summarize`.
        control: the same for random directions, `BehaviorScores.control`; by behavior, or one list
            that is drawn in every panel.
        layers: numbers of the layers; by default their places.
        unit: unit of the slope, which depends on what propensity is made of.

    Raises:
        MismatchError: no behavior.
    """
    require_some(behaviors)
    figure, panels = new_panels(len(behaviors), height=2.0, single=4.6)
    for number, (axes, (name, scores)) in enumerate(zip(panels, behaviors.items(), strict=True)):
        axes.axhline(0, color="black", linewidth=0.8, zorder=1)
        of_panel = control.get(name, ()) if isinstance(control, Mapping) else control
        for i, random in enumerate(of_panel):
            label = "random directions" if i == 0 else None
            _plot_means(axes, random, 0.15, color=GREY, linewidth=1.1, label=label)
        _plot_means(axes, scores, 0.22, color=_COLORS[0], linewidth=1.8, label="steered")
        place = scores.fixed_layer
        axes.plot(
            place if layers is None else list(layers).index(place),
            scores.fixed.slope.value,
            "o",
            color=_COLORS[0],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=1.2,
            zorder=4,
            label="fixed layer (chosen on train)",
        )
        axes.set_title(panel_title(f"{name} (n\u00a0=\u00a0{scores.n})"), fontsize=9)
        axes.tick_params(labelsize=8)
        finish_lines(axes, layers)
        if number == 0:
            lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    title = "Steerability by layer: mean over test samples, 95 % interval"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    label_bottom(panels, "layer that is steered")
    figure.supylabel(f"steerability ({unit})", fontsize=9)
    save_figure(figure, path)


def plot_grid(
    path: str | Path,
    propensity: Mapping[str, Float[np.ndarray, "layer m"]],
    multipliers: Float[np.ndarray, " m"],
    *,
    layers: Sequence[int] | None = None,
    fixed_layers: Mapping[str, int] | None = None,
    unit: str = "logits",
) -> None:
    """Draw what each layer and multiplier changes in the mean propensity, a panel a behavior.

    A cell is the propensity minus that of multiplier 0 (without one: minus the layer's mean), since
    what a behavior's prompts start from would drown what steering adds. Colors of each panel run
    from minus to plus its largest change, which its title says; white is no change.

    Args:
        path: file to write.
        propensity: mean over samples for each behavior.
        multipliers: the grid, in the order of the last axis.
        layers: numbers of the layers; by default their places.
        fixed_layers: place of the layer to mark in each behavior's panel.
        unit: unit of propensity.

    Raises:
        MismatchError: no behavior, or a panel without one column for each multiplier.
    """
    require_some(propensity)
    for name, values in propensity.items():
        if values.shape[1:] != multipliers.shape:
            raise MismatchError(
                f"propensity of '{name}' has shape {values.shape}, the grid {len(multipliers)} "
                f"multipliers. Pass [layer, multiplier]."
            )
    figure, panels = new_panels(len(propensity), height=2.2, single=4.2)
    image = None
    for axes, (name, values) in zip(panels, propensity.items(), strict=True):
        change = change_from_unsteered(values, multipliers)
        limit = float(np.abs(change).max())
        size = limit or 1.0
        image = axes.imshow(
            change / size, aspect="auto", origin="lower", cmap="RdBu", vmin=-1, vmax=1
        )
        axes.set_title(panel_title(f"{name} (±\u00a0{limit:.2g})"), fontsize=9)
        axes.set_xticks(range(len(multipliers)), [f"{m:g}" for m in multipliers])
        axes.tick_params(labelsize=8)
        _number(axes.yaxis, layers)
        if fixed_layers and name in fixed_layers:
            axes.plot(-0.5, fixed_layers[name], ">", color="black", markersize=7, clip_on=False)
    start = "multiplier 0" if (multipliers == 0).any() else "the mean over multipliers"
    title = f"Change of mean propensity from {start}"
    if fixed_layers:
        title += "; ▶: fixed layer"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    label_bottom(panels, "multiplier")
    figure.supylabel("layer that is steered", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=panels, shrink=0.9, aspect=30, pad=0.015)
        bar.set_ticks([-1, 0, 1], labels=["−", "0", "+"])
        bar.set_label(f"change in {unit}, up to ± the number above each panel", fontsize=8)
    save_figure(figure, path)


def change_from_unsteered(
    values: Float[np.ndarray, "layer m"], multipliers: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "layer m"]:
    """Subtract the column of multiplier 0; without one, each layer's mean."""
    unsteered = np.flatnonzero(multipliers == 0)
    start = values[:, unsteered[:1]] if len(unsteered) else values.mean(1, keepdims=True)
    return np.asarray(values - start)


def _plot_means(axes: "Axes", scores: SteerabilityScores, alpha: float, **line: Any) -> None:
    """Draw the mean of each layer as a line, its interval as a band."""
    layer = range(len(scores.by_layer))
    mean, low, high = zip(*((x.value, x.low, x.high) for x in scores.by_layer), strict=True)
    axes.fill_between(layer, low, high, color=line["color"], alpha=alpha, linewidth=0)
    axes.plot(layer, mean, zorder=3, **line)


def new_figure(height: float) -> "Figure":
    """Make a figure of fixed width that only its own canvas knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(
    n: int, *, height: float, single: float, ratios: Sequence[float] = (1.0,)
) -> "tuple[Figure, list[Axes]]":
    """Make a figure of `n` panels, each so high; a single one has the whole width.

    Each panel is as many axes, one above the other, as `ratios` has heights.
    """
    columns = min(n, _COLUMNS if n != 4 else 2)
    rows = -(-n // columns)
    figure = new_figure(single if n == 1 else 0.9 + height * rows)
    stack = len(ratios)
    shape = (rows * stack, columns)
    grid = figure.subplots(*shape, squeeze=False, height_ratios=[*ratios] * rows)
    panels = list(grid.reshape(rows, stack, columns).swapaxes(1, 2).flat)
    for axes in panels[n * stack :]:
        axes.remove()
    return figure, panels[: n * stack]


def label_bottom(panels: "Sequence[Axes]", label: str) -> None:
    """Name the axis below the last panel of each column."""
    for axes in panels[-min(len(panels), _COLUMNS if len(panels) != 4 else 2) :]:
        axes.set_xlabel(label, fontsize=9)


def panel_title(name: str) -> str:
    """Break a long name, so that it stays above its panel."""
    return shown_name("\n".join(textwrap.wrap(name, _TITLE)[:3]))


def shown_name(name: str) -> str:
    """Write a name as it is: `$` would begin a formula, and `_` hide a line from the legend."""
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure; characters that the font lacks are drawn as boxes, without a warning.

    The same figure gives the same bytes: no date, and names inside an SVG that are not random.
    """
    from matplotlib import rc_context

    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "actcache"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        if Path(path).suffix == ".png":
            canvas: Any = figure.canvas
            canvas.print_png(path)  # `savefig` draws everything twice, for the layout
        else:
            figure.savefig(path, metadata=dates.get(Path(path).suffix))


def line_style(i: int) -> tuple[str, str]:
    """Choose color and dash of the i-th line."""
    return _COLORS[i % len(_COLORS)], _DASHES[i // len(_COLORS) % len(_DASHES)]


def finish_lines(axes: "Axes", layers: Sequence[int] | None = None) -> None:
    """Number the layers below lines, and take away what frames them."""
    axes.margins(x=0.01)
    _number(axes.xaxis, layers)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _number(axis: "Axis", layers: Sequence[int] | None) -> None:
    """Mark whole numbers on an axis: places, or the numbers of their layers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
    if layers is not None and list(layers) != list(range(len(layers))):
        names = {float(place): str(layer) for place, layer in enumerate(layers)}
        axis.set_major_formatter(lambda place, _tick: names.get(place, ""))


def plot_embeddings(
    path: str | Path,
    points: Float[np.ndarray, "n 2"],
    behaviors: Shaped[np.ndarray, " n"],
    *,
    title: str,
) -> None:
    """Draw prompts' embeddings in the plane, a color and marker a behavior; NaN is not drawn."""
    names = list(dict.fromkeys(behaviors.tolist()))
    figure = new_figure(5.2 + 0.2 * -(-len(names) // LEGEND_COLUMNS))
    axes = figure.subplots()
    for i, name in enumerate(names):  # as many looks as colors times markers
        axes.plot(
            *points[behaviors == name].T,
            _MARKERS[i % len(_MARKERS)],
            color=_COLORS[i % len(_COLORS)],
            markersize=3.5,
            markeredgewidth=0,
            alpha=0.65,
            label=shown_name(str(name)),
        )
    axes.set_title(title, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=8,
        markerscale=1.8,
    )
    save_figure(figure, path)


def require_some(behaviors: Mapping[str, object]) -> None:
    """Refuse to draw no behavior."""
    if not behaviors:
        raise MismatchError("no behavior was given to draw, expected one or more. Pass some.")
