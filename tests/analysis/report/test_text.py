"""Names of others in reports are text: in Markdown, in HTML and in pictures."""

import numpy as np
import pytest
from matplotlib.image import imread

from actcache.analysis.report.plots import plot_embeddings, plot_grid
from actcache.analysis.report.tables import Table, html, markdown

HOSTILE = "a|b\n\n# <script>alert(1)</script> \x1b[31m"


def test_markdown_keeps_a_name_on_its_line_and_shows_its_tags():
    page = markdown([Table(HOSTILE, [{"behavior": HOSTILE, "n": "1"}])])

    title, _, header, _rule, row, *rest = page.splitlines()
    assert title.startswith("## a|b # &lt;script&gt;")
    assert header == "| behavior | n |"
    assert row == "| a\\|b # &lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m | 1 |"
    assert not any(rest)


def test_html_escapes_names_in_every_place():
    page = html(Table(HOSTILE, [{HOSTILE: HOSTILE, "n": HOSTILE}]))

    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac$", "$a$", "_hidden", "日本", "x" * 200, "a\nb"])
def test_pictures_draw_any_name(name, tmp_path):
    plot_grid(tmp_path / "grid.png", {name: np.ones((2, 3))}, np.array([-1.0, 0.0, 1.0]))
    plot_embeddings(
        tmp_path / "plane.png", np.ones((4, 2)), np.array([name, name, "b", "b"]), title="t"
    )

    assert imread(tmp_path / "grid.png").shape[1] == imread(tmp_path / "plane.png").shape[1] == 1200


def test_a_name_that_begins_with_an_underscore_stands_in_the_legend(tmp_path):
    names = np.array(["_hidden", "b"])
    plot_embeddings(tmp_path / "plane.svg", np.eye(2), names, title="t")

    assert "_hidden" in (tmp_path / "plane.svg").read_text(encoding="utf-8")
