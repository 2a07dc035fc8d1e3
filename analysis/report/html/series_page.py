"""report.html of a series of concepts: their tokens, masses and scores, and how to repeat it."""

from collections.abc import Mapping, Sequence
from typing import Any

from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.report.html.columns import columns
from actcache.analysis.report.html.concept_charts import (
    concept_charts,
    concept_content,
    concept_rows,
)
from actcache.analysis.report.html.facts import flat_facts
from actcache.analysis.report.html.page import render


def series_page(
    summary: ConceptSummary,
    *,
    settings: Mapping[str, Any],
    commands: Sequence[str],
    again: str,
) -> str:
    """Write the page of a series of concepts.

    Args:
        summary: every number of the tables.
        settings: of the series, as series.json has them.
        commands: the command line that repeats the series.
        again: the one that makes this page again.
    """
    n_concepts, n_layers = len(summary.concepts), len(summary.layers)
    counted = f"{n_concepts} concept{'' if n_concepts == 1 else 's'}"
    return render(
        "series.html",
        charts=concept_charts(summary),
        tables={"masses": columns(concept_rows(summary))},
        title=f"Directions of {counted}",
        subtitle=f"{settings['build']['model']}: {n_layers} layers, "
        f"methods {', '.join(summary.methods)}",
        sections=[("concepts", "Concepts"), ("settings", "Settings")],
        concepts=concept_content(summary),
        settings=flat_facts(settings),
        commands=commands,
        again=again,
    )
