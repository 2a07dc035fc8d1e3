"""The report on a summary: tables for terminal and notebook, tables.md, the pictures."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from actcache.analysis.names import DIRECTION_SETS
from actcache.analysis.report.comparison_tables import comparison_tables
from actcache.analysis.report.layer_plots import plot_layers
from actcache.analysis.report.plots import (
    plot_embeddings,
    plot_grid,
    plot_steerability,
)
from actcache.analysis.report.predictor_tables import predictor_tables, short_table
from actcache.analysis.report.tables import (
    Table,
    html,
    layer_table,
    markdown,
    markdown_text,
    plane_table,
    site_table,
    sweep_table,
)
from actcache.analysis.report.verdicts import LETTER, MOSTLY_LETTER
from actcache.analysis.summary import Summary


def short_tables(summary: Summary) -> list[Table]:
    """Make the tables that a terminal and a notebook show."""
    tables = layer_tables(summary)
    if summary.planes:
        tables.append(plane_table(summary.planes))
    if summary.sweep is not None:
        # The oracle is biased upwards; its cross-fitted gain says what is left of it.
        tables.append(sweep_table(summary).without("oracle"))
        if summary.sweep.compared:
            tables += comparison_tables(summary.sweep.compared, summary)[:1]
    if summary.predictors is not None:
        tables.append(short_table(summary))
    return tables


def terminal_tables(summary: Summary) -> list[Table]:
    """Make the tables that stand under the findings in a terminal: few columns, of each stage one.

    Predictors have theirs where no sweep was asked for: their findings say what matters.
    """
    tables = layer_tables(summary)
    if summary.sweep is not None:
        tables.append(sweep_table(summary, short=True).without("oracle", "by letter", "verdict"))
        if summary.sweep.compared:
            tables += comparison_tables(summary.sweep.compared, summary)[:1]
    elif summary.predictors is not None:
        tables.append(short_table(summary).without("verdict"))
    return tables


def warnings(summary: Summary) -> list[str]:
    """Say in a line each what makes the tables' numbers mislead; the rest is in tables.md."""

    def named(stage: str, *words: str) -> str:
        about = [
            DIRECTION_SETS.get(verdict.about, verdict.about)
            for verdict in summary.verdicts
            if verdict.stage == stage and verdict.word in words and "@" not in verdict.about
        ]
        return ", ".join(dict.fromkeys(about))

    lines = []
    if behaviors := named("sweep", LETTER):
        lines.append(f"Warning: the direction moves the letter, not the behavior: {behaviors}.")
    if sets := named("predictors", LETTER, MOSTLY_LETTER):
        lines.append(f"Warning: these vectors move the letter, so their gains may be bias: {sets}.")
    return lines


def markdown_page(summary: Summary) -> str:
    """Write tables.md: every table, and the sentences behind the verdicts; empty without tables."""
    pages = []
    for title, stage, tables in (
        ("Discriminative layers", "layers", layer_tables(summary)),
        ("Planes", "planes", plane_tables(summary)),
        ("Steerability", "sweep", sweep_tables(summary)),
        ("Predictors", "predictors", predictor_tables(summary) if summary.predictors else []),
    ):
        if tables:
            sentences = "".join(
                "- "
                + markdown_text(
                    f"{'' if stage == 'predictors' else f'{verdict.about}: '}{verdict.sentence}"
                )
                + "\n"
                for verdict in summary.verdicts
                if verdict.stage == stage
            )
            pages.append(f"# {title}\n\n{sentences}\n{markdown(tables)}")
    return "\n".join(pages)


def html_page(summary: Summary) -> str:
    """Write a notebook's view: what was analyzed, the short tables, warnings."""
    store = summary.store
    about = f"{store.path}: {store.n} rows, {store.n_layers} layers, d_model {store.d_model}"
    lines = [*(f"left out: {reason}" for reason in summary.left_out), *warnings(summary)]
    return "".join(
        [
            f"<p><b>Results</b> of {escape(about)}</p>",
            *map(html, short_tables(summary)),
            *(f"<p>{escape(line)}</p>" for line in lines),
        ]
    )


def layer_tables(summary: Summary) -> list[Table]:
    """Make the tables of discriminative layers, one a direction."""
    positive = summary.labels[0] if summary.labels else ""
    return [
        layer_table(name, scores, positive=positive, on_calibration=summary.config.on_calibration)
        for name, scores in (summary.layers or {}).items()
    ]


def sweep_tables(summary: Summary) -> list[Table]:
    """Make the tables of steerability; none without a sweep."""
    if summary.sweep is None:
        return []
    compared = summary.sweep.compared
    return [sweep_table(summary), *(comparison_tables(compared, summary) if compared else [])]


def plane_tables(summary: Summary) -> list[Table]:
    """Make the tables of norm outputs and their planes."""
    if not summary.planes:
        return []
    tables = [site_table(name, scores) for name, scores in summary.planes.items()]
    return [plane_table(summary.planes), *tables]


def pictures(summary: Summary, out: Path) -> dict[str, Callable[[Path], None]]:
    """Name the pictures of a summary, each with the function that draws it into a file.

    The results folder `out` has the arrays that a picture needs.
    """
    drawn: dict[str, Callable[[Path], None]] = {}
    if summary.layers and summary.labels:
        layers, (positive, negative) = summary.layers, summary.labels
        drawn["layers.png"] = lambda path: plot_layers(
            path, layers, positive=positive, negative=negative
        )
    if (sweep := summary.sweep) is not None:
        base = {name: scores for name, scores in sweep.behaviors.items() if "@" not in name}
        if base:
            drawn["steerability.png"] = lambda path: plot_steerability(
                path,
                base,
                control={name: scores.control for name, scores in base.items()},
                layers=sweep.layers,
                unit=f"{sweep.unit} per unit multiplier",
            )
        drawn["grid.png"] = lambda path: plot_grid(
            path,
            {name: np.array(grid) for name, grid in sweep.mean_propensity.items()},
            np.array(sweep.multipliers),
            layers=sweep.layers,
            fixed_layers={name: sweep.layers.index(base[name].fixed_layer) for name in base},
            unit=sweep.unit,
        )
    if summary.predictors is not None and summary.predictors.plane is not None:
        drawn["embeddings.png"] = lambda path: _draw_embeddings(path, summary, out)
    return drawn


def _draw_embeddings(path: Path, summary: Summary, out: Path) -> None:
    predictors = summary.predictors
    assert predictors is not None
    assert predictors.plane is not None
    with np.load(out / "predictors.npz", allow_pickle=False) as arrays:
        points, behaviors = arrays["plane"], arrays["behavior"]
    method = predictors.plane.method.upper()
    if predictors.plane.explained is not None:
        method += f", {sum(predictors.plane.explained):.0%} of the variance"
    drawn = ~np.isnan(points[:, 0])
    title = f"Prompts by {predictors.encoder} ({method})"
    plot_embeddings(path, points[drawn], behaviors[drawn], title=title)
