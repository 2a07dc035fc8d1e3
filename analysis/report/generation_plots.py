"""The picture of steered texts: effect, perplexity and form over strength, a panel a method."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.analysis.generation.summary import GenerationSummary, MethodScores, StrengthScores
from actcache.analysis.report.generation_tables import method_label
from actcache.analysis.report.plots import (
    GREY,
    LEGEND_COLUMNS,
    line_style,
    new_figure,
    save_figure,
)
from actcache.errors import MismatchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3  # methods side by side
_HEIGHTS = (1.6, 1.1, 0.8)  # of effect, perplexity and form, in inches
_AXES = {"multiplier": "multiplier λ", "degrees": "angle (degrees)", "share": "share removed"}
_CEILING = 30.0  # ratios of perplexities above are drawn here: collapsed, by how much is no matter


def plot_generation(path: str | Path, summary: GenerationSummary) -> None:
    """Draw effect and coherence of the texts over strength, one panel a method.

    A panel has three parts, one below the other: the mean effect with its interval, the perplexity
    under the unsteered model as a multiple of the unsteered text's, and the share of texts that
    keep their form. A line is a behavior; a dot marks the chosen strength.
    Test rows, or validation rows where there are no others.

    Args:
        path: file to write; its suffix names the format.
        summary: of the run.

    Raises:
        MismatchError: there is no method to draw.
    """
    behaviors = list(dict.fromkeys(scores.behavior for scores in summary.methods))
    panels: dict[tuple[str, str], list[MethodScores]] = {}
    for scores in summary.methods:
        if _curve(scores):
            panels.setdefault((scores.method, scores.selection), []).append(scores)
    if not panels:
        raise MismatchError(
            "no method was given to draw, expected one or more. Pass a summary with curves."
        )
    columns = min(_COLUMNS, len(panels))
    blocks = -(-len(panels) // columns)
    legend_rows = -(-(len(behaviors) + 1) // LEGEND_COLUMNS)
    figure = new_figure(0.7 + 0.25 * legend_rows + (sum(_HEIGHTS) + 0.9) * blocks)
    grid = figure.subplots(
        3 * blocks, columns, squeeze=False, sharey="row", height_ratios=_HEIGHTS * blocks
    )
    for number, of_panel in enumerate(panels.values()):
        block, column = divmod(number, columns)
        axes = grid[3 * block : 3 * block + 3, column].tolist()
        for scores in of_panel:
            _draw_method(axes, scores, style=line_style(behaviors.index(scores.behavior)))
        _finish_panel(axes, of_panel[0], budget=summary.budget)
        axes[0].set_title(method_label(of_panel[0]), fontsize=9)
        if column == 0:
            for part, name in zip(axes, ("effect", "perplexity\n(ratio)", "form"), strict=True):
                part.set_ylabel(name, fontsize=9)
    for number in range(len(panels), blocks * columns):
        block, column = divmod(number, columns)
        for axes in grid[3 * block : 3 * block + 3, column]:
            axes.remove()
    _legend(grid[0, 0], behaviors)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[-len(behaviors) - 1 :],
        labels[-len(behaviors) - 1 :],
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=8,
    )
    figure.align_ylabels()
    title = f"Steered texts: effect ({summary.target}) and what it costs, over strength"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save_figure(figure, path)


def _curve(scores: MethodScores) -> Sequence[StrengthScores]:
    return scores.curves.get("test") or scores.curves.get("validation") or ()


def _draw_method(axes: "Sequence[Axes]", scores: MethodScores, *, style: tuple[str, str]) -> None:
    """Draw one behavior's three lines, with the unsteered texts at the identity."""
    color, dash = style
    line: dict[str, Any] = {
        "color": color,
        "linestyle": dash,
        "linewidth": 1.6,
        "marker": ".",
        "markersize": 4,
    }
    curve = _curve(scores)
    drawn = [s for s in curve if s.effect is not None]
    points = [(s.strength, s.effect.value, s.effect.low, s.effect.high) for s in drawn if s.effect]
    ratios = [(s.strength, s.perplexity_ratio) for s in curve if s.perplexity_ratio is not None]
    identity = scores.identity
    if identity is not None and identity not in [s.strength for s in curve]:
        points = sorted([*points, (identity, 0.0, 0.0, 0.0)])
        ratios = sorted([*ratios, (identity, 1.0)])
    if points:
        strength, mean, low, high = zip(*points, strict=True)
        axes[0].fill_between(strength, low, high, color=color, alpha=0.18, linewidth=0)
        axes[0].plot(strength, mean, **line)
    axes[1].plot([s for s, _ in ratios], [min(r, _CEILING) for _, r in ratios], **line)
    axes[2].plot([s.strength for s in curve], [s.form for s in curve], **line)
    chosen = None if scores.choice is None else scores.choice.strength
    for at_strength in drawn:
        if at_strength.strength == chosen and at_strength.effect is not None:
            axes[0].plot(
                at_strength.strength,
                at_strength.effect.value,
                "o",
                color=color,
                markersize=7,
                markeredgecolor="white",
                markeredgewidth=1.1,
                zorder=4,
            )


def _finish_panel(axes: "Sequence[Axes]", scores: MethodScores, *, budget: float) -> None:
    axes[0].axhline(0, color="black", linewidth=0.8, zorder=1)
    axes[1].axhline(budget, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    axes[1].set_yscale("log")
    axes[1].set_yticks([1, 2, 5, 10, _CEILING], ["1", "2", "5", "10", f"{_CEILING:g}+"])
    axes[1].minorticks_off()
    axes[1].set_ylim(None, _CEILING * 1.15)
    axes[2].set_ylim(-0.06, 1.06)
    axes[2].set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes[2].set_xlabel(_AXES.get(scores.unit, scores.unit), fontsize=9)
    for part in axes:
        if scores.identity is not None:
            part.axvline(scores.identity, color=GREY, linewidth=0.7, zorder=1)
        part.margins(x=0.03)
        part.tick_params(labelsize=8)
        part.grid(axis="y", color="#dddddd", linewidth=0.6)
        part.set_axisbelow(True)
        part.spines[["top", "right"]].set_visible(False)
    for part in axes[:2]:
        part.tick_params(labelbottom=False)


def _legend(axes: "Axes", behaviors: Sequence[str]) -> None:
    """Add what the figure's legend explains, drawn nowhere."""
    for i, behavior in enumerate(behaviors):
        color, dash = line_style(i)
        axes.plot([], [], color=color, linestyle=dash, linewidth=1.8, label=behavior)
    axes.plot([], [], "o", color="#444444", markersize=6, label="chosen on validation rows")
