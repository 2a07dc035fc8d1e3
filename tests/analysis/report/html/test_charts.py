"""The charts are Vega-Lite by its schema, and each draws a table that the page has."""

import altair as alt
import pytest

from actcache.analysis.report.html.generation_charts import generation_charts
from actcache.analysis.report.html.result_charts import result_charts
from actcache.analysis.report.html.sample_charts import sample_charts

CHARTS = {**result_charts(), **sample_charts(), **generation_charts()}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_valid(name):
    alt.Chart.from_dict(CHARTS[name])  # raises where it is not


def test_charts_are_the_same_each_time():
    assert {**result_charts(), **sample_charts(), **generation_charts()} == CHARTS
