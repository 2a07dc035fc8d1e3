"""Concept after concept: what is left, that an interruption loses little, and what is refused."""

from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import load_file

from actcache.analysis.concepts.series import run_series
from actcache.analysis.concepts.stage import fit_concepts
from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.config import AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.build.pipeline import build_store
from actcache.cli.main import main
from actcache.conventions import ATTENTION, ATTENTION_CONTROL
from actcache.data.concepts import ConceptRows, ConceptSettings
from actcache.errors import ActcacheError, MismatchError
from actcache.progress import Silent
from tests.analysis.concepts.planted import (
    PLANTED,
    planted_statements,
    save_planted,
    write_planted_rows,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]

CONCEPTS = ("7", "8", "9")
CONFIG = AnalyzeConfig(draws=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_planted(tmp_path_factory.mktemp("series") / "model")


def series(model, out, *, concepts=CONCEPTS, **rest):
    rows = ConceptRows(
        concepts=concepts,
        pools=[planted_statements()],
        settings=ConceptSettings(prefix="#{concept}"),
    )
    build = BuildConfig(model=model, positions=("template:4",))
    return run_series(rows, out, build=build, config=CONFIG, **rest)


class Stops(Silent):
    """Stops a series once so many concepts are done."""

    def __init__(self, after):
        self.left = after

    @contextmanager
    def steps(self, title, total):
        yield self.advance

    def advance(self, n):
        self.left -= n
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_series_goes_on_at_its_concept_and_equals_one_store(model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        series(model, out, progress=Stops(2))
    done = {path: path.stat().st_mtime_ns for path in (out / "scores").rglob("*.json")}
    assert len(done) == 2
    assert not (out / "concepts.json").exists()

    summary = series(model, out)

    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert ConceptSummary.read(out).concepts.keys() == set(CONCEPTS) == summary.concepts.keys()
    assert list((out / "stores").iterdir()) == []  # no residuals
    store = build_store(
        write_planted_rows(tmp_path / "rows.jsonl", concepts=CONCEPTS),
        tmp_path / "all.zarr",
        model=model,
        positions=("template:4",),
        sites=("resid_post", ATTENTION, ATTENTION_CONTROL),
    )
    whole, tensors = fit_concepts(store, labels=("with", "without"), config=CONFIG)
    for concept in CONCEPTS:
        assert summary.concepts[concept].tokens == PLANTED
        left = load_file(out / "directions" / f"{concept}.safetensors")
        assert {key for key in tensors if key.startswith(f"{concept}/")} == set(left)
        for key, values in left.items():
            if key.endswith("attended"):
                np.testing.assert_allclose(values, tensors[key], atol=1e-4)
    assert whole.design == summary.design == "same"


def test_the_command_leaves_a_folder_that_report_opens(model, tmp_path):
    (tmp_path / "concepts.txt").write_text("7\n")
    (tmp_path / "statements.txt").write_text("\n".join(planted_statements()))
    out = tmp_path / "out"
    command = ["concepts", str(tmp_path / "concepts.txt"), "-o", str(out)]
    command += ["--statements", str(tmp_path / "statements.txt"), "--prefix", "#{concept}"]
    command += ["--model", str(model), "--positions", "template:4", "--draws", "50"]
    assert main(command) == 0
    page = (out / "report.html").read_bytes()
    assert (out / "concepts.png").is_file()
    assert "# Concepts" in (out / "tables.md").read_text(encoding="utf-8")

    (out / "report.html").unlink()
    assert main(["report", str(out), "--format", "svg"]) == 0
    assert (out / "report.html").read_bytes() == page
    assert (out / "concepts.svg").is_file()


@pytest.fixture(scope="module")
def series_folder(model, tmp_path_factory):
    """The folder of a series of one concept whose residuals were asked for."""
    out = tmp_path_factory.mktemp("series") / "out"
    series(model, out, concepts=("7",), keep=True)
    return out


def test_residuals_are_kept_on_request(series_folder):
    assert [path.name for path in (series_folder / "stores").iterdir()] == ["7.zarr"]


def test_a_series_of_other_settings_is_not_gone_on_with(model, series_folder, tmp_path):
    with pytest.raises(MismatchError, match="Choose another folder"):
        series(model, series_folder, concepts=("8",), keep=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ActcacheError, match="holds other files"):
        series(model, tmp_path / "other", concepts=("7",))
