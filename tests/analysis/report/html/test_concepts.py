"""Concepts in report.html: masses, tables, what they cannot tell; size, foreign text, damage."""

from dataclasses import replace

import pytest

from actcache.analysis.concepts.summary import FILE
from actcache.analysis.report.concept_pages import NO_VERDICT, concept_tables
from actcache.analysis.report.html.concept_charts import PANELS
from actcache.analysis.report_files import write_report
from actcache.errors import FormatError
from tests.analysis.report.html.test_results_page import LIMIT, Reader, page_of
from tests.support.concepts import TOKENS, planted_concepts
from tests.support.pages import HOSTILE
from tests.support.summaries import LAYERS, planted_summary


def bare_summary():
    """A summary of the stage concepts alone."""
    return replace(planted_summary({}), sweep=None)


def page_with(concepts):
    return Reader(page_of(bare_summary(), concepts=concepts))


def column(table, name):
    values = table[name]
    return values if isinstance(values, list) else [values["words"][i] for i in values["codes"]]


def test_every_mass_is_drawn_and_the_chosen_tokens_are_marked():
    concepts = planted_concepts(["bees", "dogs"])
    data = page_with(concepts).data
    table = data["tables"]["masses"]
    rows = zip(*(column(table, name) for name in table), strict=True)
    cells = {row[:3]: row[3:] for row in rows}

    assert list(table) == ["concept", "token", "layer", "mass", "random_span", "chosen"]
    assert set(cells) == {(c, t, x) for c in ("bees", "dogs") for t in TOKENS for x in LAYERS}
    assert cells["dogs", TOKENS[0], 3] == (0.6234, 0.05, True)
    assert cells["dogs", TOKENS[0], 5] == (0.1234, 0.05, False)
    assert cells["bees", TOKENS[0], 7] == (0.0, 0.05, False)
    marked = [place for place, (*_, chosen) in cells.items() if chosen]
    assert marked == [
        *[("bees", TOKENS[0], 3), ("bees", TOKENS[1], 5)],  # layer 7 is blind
        *[("dogs", TOKENS[0], 3), ("dogs", TOKENS[0], 7), ("dogs", TOKENS[1], 5)],
    ]
    color = data["charts"]["masses"]["layer"][0]["encoding"]["color"]
    assert color["scale"]["domain"] == [0, pytest.approx(0.6234)]


def test_a_store_without_random_spans_shows_none():
    concepts = planted_concepts(["bees"])
    scores = replace(concepts.concepts["bees"], random_span_tokens=None, random_span_mass=None)
    data = page_with(replace(concepts, concepts={"bees": scores})).data
    tips = data["charts"]["masses"]["layer"][0]["encoding"]["tooltip"]
    assert [tip["field"] for tip in tips] == ["token", "layer", "mass"]
    assert set(data["tables"]["masses"]["random_span"]) == {None}


def test_tables_design_blind_layers_and_that_auc_is_no_verdict_are_said():
    concepts = replace(planted_concepts(["bees", "dogs"]), left_out=("wasps: too few",))
    words = " ".join(page_with(concepts).text.split())
    for table in concept_tables(concepts):
        assert table.title in words
        assert " ".join(table.note.split()) in words
    assert NO_VERDICT in words
    assert "each text stands on both sides" in words
    assert "bees: no token sees the span in layers 7" in words
    assert "dogs: no token sees" not in words
    assert "wasps: too few" in words
    assert "concept directions have no verdict" in words


def test_names_of_concepts_are_text():
    page = page_of(bare_summary(), concepts=planted_concepts([HOSTILE]))
    read = Reader(page)
    assert read.tags.count("img") == 0
    assert read.tags.count("script") == 3
    assert "\x1b" not in page
    assert read.data["tables"]["masses"]["concept"]["words"] == [HOSTILE]


def test_of_512_concepts_the_first_are_drawn_and_all_are_in_the_table():
    names = [f"a fear with quite a long name {i}" for i in range(512)]
    tokens = [f"template_-{i}" for i in range(8, 0, -1)]
    concepts = planted_concepts(names, layers=tuple(range(80)), tokens=tokens)
    page = page_of(bare_summary(), concepts=concepts)

    assert len(page.encode()) <= LIMIT
    assert page.count('data-chart="masses"') == PANELS < len(names)
    assert f"The first {PANELS} of 512 concepts" in page
    for name in names:
        assert f'<th scope="row">{name}</th>' in page


def test_without_the_stage_nothing_of_it_is_there():
    page = page_of(bare_summary())
    assert 'id="concepts"' not in page
    assert {"masses"}.isdisjoint(Reader(page).data["charts"])


def test_a_folder_shows_its_concepts_and_damage_is_one_line(tmp_path):
    bare_summary().write(tmp_path / "summary.json")
    [report] = write_report(tmp_path)
    without = report.read_bytes()

    planted_concepts(["bees"]).write(tmp_path)
    report, picture = write_report(tmp_path, formats=("svg",))
    assert picture.name == "concepts.svg"
    assert "bees: AUC of test rows by layer" in report.read_text(encoding="utf-8")

    replace(planted_concepts([]), left_out=("bees: too few",)).write(tmp_path)
    assert write_report(tmp_path) == [report]  # nothing to draw
    assert "bees: too few" in report.read_text(encoding="utf-8")

    for damaged in ('{"format": 1,', '{"format": 1}', "[" * 100_000):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(FormatError, match=f"{FILE}' is not what analyze writes") as error:
            write_report(tmp_path)
        assert len(str(error.value).splitlines()) == 1
    short = replace(planted_concepts(["bees"]), layers=(3, 5, 7, 9))
    short.write(tmp_path)
    with pytest.raises(FormatError, match="do not fit together"):
        write_report(tmp_path)

    (tmp_path / FILE).unlink()
    [report] = write_report(tmp_path)
    assert report.read_bytes() == without
