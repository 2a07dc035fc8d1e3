"""report.html of a series of concepts: made from its folder alone, and what is refused."""

import json
import shlex

import pytest

from actcache.analysis.concepts.series import SITES
from actcache.analysis.concepts.summary import FILE, SERIES
from actcache.analysis.files import plain, write_json
from actcache.analysis.report_files import write_report
from actcache.build.config import BuildConfig
from actcache.cli.main import parser
from actcache.data.concepts import ConceptRows, ConceptSettings
from actcache.errors import FormatError, StoreNotFoundError
from tests.analysis.report.html.test_results_page import LIMIT, Reader
from tests.support.concepts import TOKENS, planted_concepts
from tests.support.pages import HOSTILE

PREFIX = "You fear {concept}, \"don't you?"
BUILD = BuildConfig(model="some/model", positions=("template:3",), dtype="float16", sites=SITES)


@pytest.fixture
def out(tmp_path):
    """What a series of two concepts leaves, without its directions."""
    rows = ConceptRows(
        concepts=["bees", "dogs"],
        pools=[[f"statement {i} {HOSTILE}" for i in range(80)]],
        settings=ConceptSettings(prefix=PREFIX),
    )
    settings = {"rows": rows, "build": BUILD.recorded(), "methods": ["mean"], "shuffles": 30}
    write_json(tmp_path / SERIES, {**plain(settings), "draws": 1000, "seed": 0})
    planted_concepts(["bees", "dogs"]).write(tmp_path)
    return tmp_path


def test_report_opens_a_series_and_shows_masses_tables_and_settings(out):
    written = write_report(out, formats=("png", "svg"))

    assert [path.name for path in written] == ["report.html", "concepts.png", "concepts.svg"]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert len(text) < LIMIT
    page = Reader(text)
    assert set(page.data["charts"]) == {"masses"}
    assert set(page.data["tables"]["masses"]["concept"]["words"]) == {"bees", "dogs"}
    assert set(page.data["tables"]["masses"]["token"]["words"]) == set(TOKENS)
    for shown in ("bees: AUC of", "A verdict needs a", "build.dtype", "some/model", "template:3"):
        assert shown in text
    assert HOSTILE not in text
    again = out / "report.html"
    assert write_report(out)[0] == again
    assert again.read_text(encoding="utf-8") == text


def test_the_command_of_the_page_has_the_settings_of_the_series(out):
    write_report(out)
    text = Reader((out / "report.html").read_text(encoding="utf-8")).text
    line = next(line for line in text.splitlines() if line.startswith("actcache concepts "))
    args = parser().parse_args(shlex.split(line)[1:])

    assert args.prefix == PREFIX
    assert (args.model, args.positions, args.dtype) == ("some/model", "template:3", "float16")
    assert (args.shuffles, args.output) == (30, str(out))


def test_an_interrupted_series_has_no_report_yet(out):
    (out / FILE).unlink()
    with pytest.raises(StoreNotFoundError, match="Run the same concepts command again"):
        write_report(out)


@pytest.mark.parametrize("damage", ["[1]", "{", json.dumps({"rows": {}})])
def test_a_damaged_series_is_refused_in_one_line(out, damage):
    (out / SERIES).write_text(damage)
    with pytest.raises(FormatError, match="is not what concepts writes") as caught:
        write_report(out)
    assert "\n" not in str(caught.value)
