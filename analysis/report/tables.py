"""Tables of a report, as texts: shown in a terminal, a notebook and tables.md."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actcache.analysis.summary import BehaviorScores, LayerScores, Summary
from actcache.notebook import rows_table


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """As many cells each as there are columns; the first names the row."""

    note: str = ""
    """What a reader must know to read it, or empty."""


def without_column(table: Table, name: str) -> Table:
    """Leave one column out."""
    drop = list(table.columns).index(name)
    columns, *rows = ([*line[:drop], *line[drop + 1 :]] for line in (table.columns, *table.rows))
    return replace(table, columns=columns, rows=rows)


def markdown(tables: Sequence[Table]) -> str:
    """Write tables as Markdown (GitHub's), each under its title."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(table.columns) - 1)
    body = [line(table.columns), rule, *(line(row) for row in table.rows)]
    note = [table.note, ""] if table.note else []
    return "\n".join([f"## {table.title}", "", *body, "", *note])


def html(table: Table) -> str:
    """Write a table as HTML; all text is escaped."""
    return rows_table(table.title, table.columns, table.rows)


def sweep_table(summary: Summary) -> Table:
    """Make the table of steerability by behavior."""
    return Table(
        title="Steerability on test samples: slope of propensity per unit multiplier",
        columns=(
            *("behavior", "n", "layer", "fixed", "oracle", "cross-fitted gain", "steerable"),
            *("by letter", "random direction", "verdict"),
        ),
        rows=[
            [
                name,
                str(scores.n),
                str(scores.fixed_layer),
                str(scores.fixed.slope),
                f"{scores.oracle.slope.value:.3g}",
                f"{scores.cross_fitted.gain.value:+.2g}" if scores.cross_fitted else "-",
                f"{scores.fixed.share:.0%}",
                " ".join(f"{x} {each.fixed.share:.0%}" for x, each in scores.by_letter.items())
                or "-",
                _random_direction(summary, scores),
                verdict_words(summary, name),
            ]
            for name, scores in summary.behaviors.items()
        ],
        note=(
            "Layer: the fixed one, with the largest mean slope on train. Steerable: share of "
            "samples with a slope above 0 there. Random direction: slope and share at that layer. "
            "Verdict: on the fixed layer; on a layer chosen per sample."
        ),
    )


def verdict_words(summary: Summary, behavior: str) -> str:
    """Join the words of the verdicts on a behavior."""
    return "; ".join(verdict.word for verdict in summary.verdicts_on("sweep", behavior))


def _random_direction(summary: Summary, scores: BehaviorScores) -> str:
    if summary.sweep is None or not scores.control:
        return "-"
    place = summary.sweep.layers.index(scores.fixed_layer)
    n = len(scores.control)
    slope = sum(control.by_layer[place].value for control in scores.control) / n
    share = sum(control.share_by_layer[place] for control in scores.control) / n
    return f"{slope:.2g}, {share:.0%}"


def layer_table(name: str, scores: LayerScores) -> Table:
    """Make the table of discriminative layers."""
    columns = zip(
        *scores.class_mean,
        scores.discriminative,
        scores.discriminative_share,
        scores.fisher,
        scores.auc,
        strict=True,
    )
    return Table(
        title=f"{name}: held-out samples on one common direction (layer {scores.common_layer})",
        columns=("layer", "mean +", "mean −", "discriminative", "in draws", "Fisher", "AUC"),
        rows=[
            [
                str(layer),
                f"{positive:.3g}",
                f"{negative:.3g}",
                "yes" if crosses else "",
                f"{share:.0%}",
                f"{fisher:.3g}",
                f"{auc:.3f}",
            ]
            for layer, (positive, negative, crosses, share, fisher, auc) in enumerate(columns)
        ],
    )
