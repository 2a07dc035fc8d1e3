"""The picture of classes by layer: their mean projections, and how well each layer parts them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actcache.analysis.report.plots import (
    GREY,
    finish_lines,
    label_bottom,
    line_style,
    new_figure,
    new_panels,
    panel_title,
    require_some,
    save_figure,
    shown_name,
)
from actcache.analysis.summary import LayerScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_layers(
    path: str | Path,
    scores: LayerScores | Mapping[str, LayerScores],
    *,
    positive: str = "positive",
    negative: str = "negative",
) -> None:
    """Draw both classes' mean projection and the AUC by layer, a panel for each behavior.

    Discriminative layers, where the two means lie on either side of 0, are shaded.

    Args:
        path: file to write.
        scores: of one behavior, or of several by their names.
        positive: name of one class.
        negative: name of the other.

    Raises:
        MismatchError: no behavior.
    """
    panels = scores if isinstance(scores, Mapping) else {"": scores}
    require_some(panels)
    if len(panels) > 1:
        _plot_layers_of_several(path, panels, (positive, negative))
        return
    (single,) = panels.values()
    figure = new_figure(5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    counts = zip((positive, negative), (single.n_positive, single.n_negative), strict=True)
    _draw_layers(top, bottom, single, [f"{shown_name(name)} (n = {n})" for name, n in counts])
    values = "unit residuals" if single.normalized else "residuals"
    top.set_title(
        f"Mean projection of {values} on the direction of layer {single.common_layer}, "
        "95 % interval",
        loc="left",
        fontsize=11,
    )
    top.set_ylabel("projection" if single.normalized else "projection (residual units)")
    bottom.set_ylabel("AUC, own\ndirection")
    bottom.set_xlabel("layer that is read")
    top.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def _plot_layers_of_several(
    path: str | Path, scores: Mapping[str, LayerScores], classes: Sequence[str]
) -> None:
    """Draw a small panel for each behavior: projections above, AUC below."""
    figure, panels = new_panels(len(scores), height=2.7, single=5.6, ratios=(2.4, 1.0))
    legend: dict[str, Any] = {}
    pairs = list(zip(panels[::2], panels[1::2], strict=True))
    for (top, bottom), (name, of_behavior) in zip(pairs, scores.items(), strict=True):
        top.sharex(bottom)
        _draw_layers(top, bottom, of_behavior, [shown_name(name) for name in classes], size=0.7)
        sizes = f"{of_behavior.n_positive}\u00a0+\u00a0{of_behavior.n_negative}"
        common = of_behavior.common_layer
        top.set_title(
            panel_title(f"{name} (layer\u00a0{common}, n\u00a0=\u00a0{sizes})"), fontsize=9
        )
        for axes in (top, bottom):
            axes.tick_params(labelsize=8)
        top.tick_params(labelbottom=False)
        handles, labels = top.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(
        legend.values(), legend, loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    normalized = any(of_behavior.normalized for of_behavior in scores.values())
    values = "unit residuals" if normalized else "residuals"
    title = f"Mean projection of {values} on the direction of one layer, 95 % interval"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    label_bottom([bottom for _, bottom in pairs], "layer that is read")
    figure.supylabel("above: projection; below: AUC of each layer's own direction", fontsize=9)
    save_figure(figure, path)


def _draw_layers(
    top: "Axes",
    bottom: "Axes",
    scores: LayerScores,
    classes: Sequence[str],
    *,
    size: float = 1.0,
) -> None:
    """Draw one behavior's projections and AUC; `size` scales lines and marks."""
    layer = np.arange(len(scores.auc))
    label: str | None = "discriminative layer"
    for i in np.flatnonzero(scores.discriminative):
        for axes in (top, bottom):
            axes.axvspan(i - 0.5, i + 0.5, color="#F0E442", alpha=0.35, linewidth=0, label=label)
            label = None
    for k, name in enumerate(classes):
        color, _ = line_style(k)
        top.fill_between(layer, *scores.interval[k].T, color=color, alpha=0.25, linewidth=0)
        style: dict[str, Any] = {
            "color": color,
            "linewidth": 1.8 * size,
            "markersize": 4 * size,
            "label": name,
        }
        top.plot(layer, scores.class_mean[k], "os"[k] + "-", **style)
    top.axhline(0, color="black", linewidth=0.8)
    bottom.plot(layer, scores.auc, "o-", color="black", linewidth=1.4 * size, markersize=3.5 * size)
    bottom.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    bottom.set_ylim(min(0.45, float(scores.auc.min()) - 0.05), 1.02)
    means = np.abs(scores.class_mean)
    if means.max() > 20 * np.median(means) > 0:  # else early layers' signs cannot be seen
        top.set_yscale("symlog", linthresh=float(np.median(means)))
    for axes in (top, bottom):
        finish_lines(axes)
