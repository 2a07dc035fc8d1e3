"""The pictures of a report: steerability by layer, propensity over the grid, classes by layer.

Each function draws one figure into a file, whose suffix names the format (`.png`, `.pdf`, `.svg`),
and leaves nothing behind: no pyplot, no global state, no window. Matplotlib is imported when a
picture is drawn.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from actcache.analysis.summary import LayerScores, SteerabilityScores
from actcache.errors import MismatchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito: eight colours that differ for every kind of colour vision; yellow is too pale for
# a line on white. Further lines repeat them with another dash.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":")
GREY = "#8a8a8a"
_WIDTH, _DPI = 8.0, 150  # 1200 pixels
PANELS = 6
FEW, LEGEND_COLUMNS = 3, 3  # lines with a legend inside the axes; columns of one below them


def plot_steerability(
    path: str | Path,
    behaviors: Mapping[str, SteerabilityScores],
    *,
    control: Sequence[SteerabilityScores] = (),
    layers: Sequence[int] | None = None,
    unit: str = "logits per unit multiplier",
) -> None:
    """Draw mean steerability by layer with its interval, one line a behavior.

    A dot marks each behavior's fixed layer. Each set of random directions is a grey line.

    Args:
        path: file to write.
        behaviors: scores of each, `Steerability.scores` of `summarize`.
        control: the same for random directions, `BehaviorScores.control` of any behaviors.
        layers: numbers of the layers; by default their places.
        unit: unit of the slope, which depends on what propensity is made of.

    Raises:
        MismatchError: no behavior.
    """
    _require(behaviors)
    below = 0 if len(behaviors) <= FEW else -(-(len(behaviors) + 2) // LEGEND_COLUMNS)
    figure = new_figure(4.6 + 0.2 * below)
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    for i, scores in enumerate(control):
        label = "random directions" if i == 0 else None
        _plot_means(axes, scores, 0.15, color=GREY, linewidth=1.4, label=label)
    for i, (name, scores) in enumerate(behaviors.items()):
        color, dash = line_style(i)
        line = {"color": color, "linestyle": dash, "linewidth": 1.8}
        _plot_means(axes, scores, 0.18, label=f"{shown_name(name)} (n = {scores.n})", **line)
        axes.plot(
            scores.fixed_layer if layers is None else list(layers).index(scores.fixed_layer),
            scores.fixed.slope.value,
            "o",
            color=color,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=1.2,
            zorder=4,
        )
    axes.plot([], [], "o", color="#444444", markersize=7, label="fixed layer (chosen on train)")
    axes.set_title("Steerability by layer: mean over test samples, 95 % interval", loc="left")
    axes.set_xlabel("layer that is steered")
    axes.set_ylabel(f"steerability ({unit})")
    _finish_lines(axes, layers)
    if len(behaviors) <= FEW:
        axes.legend(frameon=False, fontsize=9)
    else:
        figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8)
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
    """Draw mean propensity over layers and multipliers, one panel a behavior.

    All panels share one color scale with white at 0; a frame marks multiplier 0, where nothing is
    steered. Of more than six behaviors the first six are drawn, and the title says so.

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
    _require(propensity)
    for name, values in propensity.items():
        if values.shape[1:] != multipliers.shape:
            raise MismatchError(
                f"propensity of '{name}' has shape {values.shape}, the grid {len(multipliers)} "
                f"multipliers. Pass [layer, multiplier]."
            )
    shown = dict(list(propensity.items())[:PANELS])
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(0.9 + 3.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    limit = max(float(np.abs(values).max()) for values in shown.values())
    image = None
    for axes, (name, values) in zip(grid.flat, shown.items(), strict=False):
        image = axes.imshow(
            values, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        axes.set_title(shown_name(name), fontsize=10)
        axes.set_xticks(range(len(multipliers)), [f"{m:g}" for m in multipliers])
        axes.tick_params(axis="x", labelbottom=True, labelsize=8)
        _number(axes.yaxis, layers)
        for column in np.flatnonzero(multipliers == 0):
            axes.axvspan(column - 0.5, column + 0.5, fill=False, edgecolor="black", linewidth=1.4)
            axes.get_xticklabels()[column].set_fontweight("bold")
        if fixed_layers and name in fixed_layers:
            axes.plot(-0.5, fixed_layers[name], ">", color="black", markersize=7, clip_on=False)
    for axes in list(grid.flat)[len(shown) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("layer that is steered")
    for axes in list(grid.flat)[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel("multiplier")
    title = "Mean propensity"
    if (multipliers == 0).any():
        title += "; framed: multiplier 0, unsteered"
    if fixed_layers:
        title += "; ▶: fixed layer"
    if len(shown) < len(propensity):
        title += f" (first {len(shown)} of {len(propensity)} behaviors)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if image is not None:
        bar = figure.colorbar(
            image, ax=list(grid.flat)[: len(shown)], shrink=0.9, aspect=30, pad=0.015
        )
        bar.set_label(f"propensity ({unit}), positive minus negative")
    save_figure(figure, path)


def plot_layers(
    path: str | Path,
    scores: LayerScores,
    *,
    positive: str = "positive",
    negative: str = "negative",
) -> None:
    """Draw both classes' mean projection and the AUC by layer.

    Discriminative layers, where the two means lie on either side of 0, are shaded. `positive` and
    `negative` name the classes.
    """
    figure = new_figure(5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    layer = np.arange(len(scores.auc))
    label: str | None = "discriminative layer"
    for i in np.flatnonzero(scores.discriminative):
        for axes in (top, bottom):
            axes.axvspan(i - 0.5, i + 0.5, color="#F0E442", alpha=0.35, linewidth=0, label=label)
            label = None
    counts = scores.n_positive, scores.n_negative
    for k, name in enumerate((positive, negative)):
        color, _ = line_style(k)
        top.fill_between(layer, *scores.interval[k].T, color=color, alpha=0.25, linewidth=0)
        style = {"color": color, "linewidth": 1.8, "markersize": 4}
        top.plot(
            layer,
            scores.class_mean[k],
            "os"[k] + "-",
            label=f"{shown_name(name)} (n = {counts[k]})",
            **style,
        )
    top.axhline(0, color="black", linewidth=0.8)
    what = "unit residuals" if scores.normalized else "residuals"
    top.set_title(
        f"Mean projection of {what} on the direction of layer {scores.common_layer}, 95 % interval",
        loc="left",
        fontsize=11,
    )
    top.set_ylabel("projection" if scores.normalized else "projection (residual units)")
    bottom.plot(layer, scores.auc, "o-", color="black", linewidth=1.4, markersize=3.5)
    bottom.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    bottom.set_ylim(min(0.45, float(scores.auc.min()) - 0.05), 1.02)
    bottom.set_ylabel("AUC, own\ndirection")
    bottom.set_xlabel("layer that is read")
    size = np.abs(scores.class_mean)
    if size.max() > 20 * np.median(size) > 0:  # else early layers' signs cannot be seen
        top.set_yscale("symlog", linthresh=float(np.median(size)))
    for axes in (top, bottom):
        _finish_lines(axes)
    top.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


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


def shown_name(name: str) -> str:
    """Write a name as it is: `$` would begin a formula, and `_` hide a line from the legend."""
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure; characters that the font lacks are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(path)


def line_style(i: int) -> tuple[str, str]:
    """Choose color and dash of the i-th line."""
    return _COLORS[i % len(_COLORS)], _DASHES[i // len(_COLORS) % len(_DASHES)]


def _finish_lines(axes: "Axes", layers: Sequence[int] | None = None) -> None:
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
    """Draw prompts' embeddings in the plane, one color a behavior; NaN is not drawn."""
    names = list(dict.fromkeys(behaviors.tolist()))
    figure = new_figure(5.2 + 0.2 * -(-len(names) // LEGEND_COLUMNS))
    axes = figure.subplots()
    for i, name in enumerate(names):
        color, _ = line_style(i)
        axes.plot(
            *points[behaviors == name].T,
            ".",
            color=color,
            markersize=4,
            alpha=0.6,
            label=shown_name(str(name)),
        )
    axes.set_title(title, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8)
    save_figure(figure, path)


def _require(behaviors: Mapping[str, object]) -> None:
    if not behaviors:
        raise MismatchError("no behavior was given to draw, expected one or more. Pass some.")
