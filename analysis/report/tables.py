"""Tables of a report, as texts: shown in a terminal, a notebook and tables.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.summary import BehaviorScores, LayerScores, SiteScores, Summary
from actcache.notebook import rows_table


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str

    cells: Sequence[Mapping[str, str]]
    """Each row by column, all with the same columns; the first names the row."""

    note: str = ""
    """What a reader must know to read it, or empty."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.cells[0]) if self.cells else []

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each row."""
        return [list(row.values()) for row in self.cells]

    def without(self, *columns: str) -> "Table":
        """Leave columns out."""
        cells = [{name: row[name] for name in row if name not in columns} for row in self.cells]
        return replace(self, cells=cells)


def markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown (GitHub's), each under its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"

    lines = []
    for table in tables:
        rule = "|---|" + "---:|" * (len(table.columns) - 1)
        lines += [
            f"## {markdown_text(table.title)}",
            "",
            line(table.columns),
            rule,
            *map(line, table.rows),
            "",
        ]
        lines += [table.note, ""] if table.note else []
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    """Write a text, which may hold names of others, as one line of Markdown without HTML."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return escape(line, quote=False)


def html(table: Table) -> str:
    """Write a table as HTML; all text is escaped."""
    return rows_table(table.title, table.columns, table.rows)


def sweep_table(summary: Summary, *, short: bool = False) -> Table:
    """Make the table of steerability by behavior; a short one leaves out the control's interval."""
    return Table(
        "Steerability on test samples: slope of propensity per unit multiplier",
        [
            {
                "behavior": name,
                "n": str(scores.n),
                "layer": str(scores.fixed_layer),
                "fixed": str(scores.fixed.slope),
                **_splits_cell(summary, scores),
                "oracle": f"{scores.oracle.slope.value:.3g}",
                "cross-fitted gain": f"{scores.cross_fitted.gain.value:+.2g}"
                if scores.cross_fitted
                else "-",
                "steerable": f"{scores.fixed.share:.0%}",
                "by letter": _shares_by_letter(scores),
                "random direction": _random_direction(summary, scores, short=short),
                "verdict": summary.verdict_words("sweep", name),
            }
            for name, scores in summary.behaviors.items()
        ],
        "Layer: the fixed one, with the largest mean slope on train. Steerable: share of "
        f"samples with a slope above 0 there. {_splits_note(summary)}Random direction: slope and "
        f"share at that layer{_part(summary)}. "
        "Verdict: on the fixed layer; on a layer chosen per sample.",
    )


def _splits_cell(summary: Summary, scores: BehaviorScores) -> dict[str, str]:
    """The fixed layer over splits, where there are several."""
    if summary.config.splits == 1:
        return {}
    if not scores.splits:
        return {"over splits": "-"}
    mean = sum(split.slope for split in scores.splits) / len(scores.splits)
    layers = sorted({split.fixed_layer for split in scores.splits})
    numbers = ", ".join(map(str, layers))
    return {"over splits": f"{mean:.3f} ({scores.fixed.slope_error:.3f}), {numbers}"}


def _splits_note(summary: Summary) -> str:
    if summary.config.splits == 1:
        return ""
    return (
        f"Over splits: mean slope over {summary.config.splits} splits of the base prompts (SE), "
        "each with directions and a fixed layer of its own; those layers. "
    )


def _part(summary: Summary) -> str:
    """How many samples the random directions steer, where that is a part of them."""
    counts = [
        (control.n, scores.n)
        for scores in summary.behaviors.values()
        for control in scores.control[:1]
    ]
    if all(few == n for few, n in counts):
        return ""
    few, n = (sum(column) for column in zip(*counts, strict=True))
    return f", on {few} of the {n} samples, drawn at random"


def _shares_by_letter(scores: BehaviorScores) -> str:
    return " ".join(f"{x} {part.fixed.share:.0%}" for x, part in scores.by_letter.items()) or "-"


def _random_direction(summary: Summary, scores: BehaviorScores, *, short: bool) -> str:
    if summary.sweep is None or not scores.control:
        return "-"
    place = summary.sweep.layers.index(scores.fixed_layer)
    n = len(scores.control)
    low, value, high = (
        sum(getattr(control.by_layer[place], part) for control in scores.control) / n
        for part in ("low", "value", "high")
    )
    share = sum(control.share_by_layer[place] for control in scores.control) / n
    slope = f"{value:.2g}" if short else str(Interval(value, low, high))
    return f"{slope}, {share:.0%}"


def layer_table(
    name: str, scores: LayerScores, *, positive: str, on_calibration: bool = False
) -> Table:
    """Make the table of discriminative layers; `on_calibration`: of the directions' own samples."""
    samples = "the directions' own samples" if on_calibration else "held-out samples"
    above, below = scores.class_mean
    return Table(
        f"{name}: {samples} on one common direction (layer {scores.common_layer})",
        [
            {
                "layer": str(layer),
                "mean +": f"{above[layer]:.3g}",
                "mean −": f"{below[layer]:.3g}",
                "discriminative": "yes" if scores.discriminative[layer] else "",
                "in draws": f"{scores.discriminative_share[layer]:.0%}",
                "Fisher": f"{scores.fisher[layer]:.3g}",
                "AUC": f"{scores.auc[layer]:.3f}",
            }
            for layer in range(len(scores.auc))
        ],
        f"+ is {positive}. Discriminative: the class means lie on both sides of 0, "
        "which depends on where 0 is; the best AUC asks only how well the classes are told apart, "
        f"so it may be at another layer. {scores.n_positive} and {scores.n_negative} samples.",
    )


def plane_table(planes: Mapping[str, SiteScores]) -> Table:
    """Make the table of planes, a row for each behavior or pair of labels."""
    return Table(
        "Planes of norm outputs, on train samples",
        [
            {
                "plane": name,
                "n +": str(scores.n_positive),
                "n −": str(scores.n_negative),
                "b1 of": f"{scores.sites[scores.best]} {scores.layers[scores.best]}",
                "mean cosine": f"{scores.mean_cosine[scores.best]:.2f}",
                "b2 explains": f"{scores.explained:.0%}",
                "discriminative": f"{scores.discriminative.sum()} of {len(scores.sites)}",
                "blocks": _ranges(scores.selected_layers) or "none",
            }
            for name, scores in planes.items()
        ],
        "b1: the unit difference of the class means that agrees most with those of all norm "
        "outputs; b2: the direction in which these vary most. Discriminative: class means on "
        "either side of 0 on b1. Blocks: those with all their norm outputs so.",
    )


def site_table(name: str, scores: SiteScores) -> Table:
    """Make the table of every norm output: where two classes lie on b1."""
    positive, negative = scores.class_mean
    quantity = "unit values" if scores.normalized else "values"
    return Table(
        f"{name}: norm outputs at {' and '.join(dict.fromkeys(scores.positions))}, mean projection "
        f"of {quantity} on b1",
        [
            {
                "norm output": f"{site} {layer}",
                "mean +": f"{positive[k]:.3g}",
                "mean −": f"{negative[k]:.3g}",
                "mean cosine": "zero" if scores.zero[k] else f"{scores.mean_cosine[k]:.2f}",
                "discriminative": "yes" if scores.discriminative[k] else "",
                "whole block": "yes" if layer in scores.selected_layers else "",
            }
            for k, (site, layer) in enumerate(zip(scores.sites, scores.layers, strict=True))
        ],
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers shortly: `3-5, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if part[1:] else f"{part[0]}" for part in parts)
