"""`actcache report`: made again without store, model and torch; the same bytes; damage in one line."""

import json
import shutil

import numpy as np
import pytest

from actcache.analysis.pipeline import analyze
from actcache.cli.main import main
from actcache.errors import ActcacheError
from tests.cli.commands import WITHOUT_PREDICTORS, build, refused
from tests.support.processes import run_code

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def original(built, tmp_path_factory):
    """Results of the pairs, with a sweep and without predictors."""
    out = tmp_path_factory.mktemp("report") / "out"
    command = ["analyze", built, "-o", out, "--draws", "20", *WITHOUT_PREDICTORS]
    assert main([str(word) for word in command]) == 0
    return out


@pytest.fixture
def out(original, tmp_path):
    return shutil.copytree(original, tmp_path / "out")


def test_it_is_made_again_without_store_model_and_torch(original, out):
    written = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    code = """
import sys
from actcache.cli.main import main
assert main(["report", sys.argv[1]]) == 0
for name in ("torch", "transformers", "transformer_lens"):
    assert name not in sys.modules, name
"""
    run_code(code, out)

    again = (out / "report.html").read_text(encoding="utf-8")
    assert again == written.decode().replace(str(original), str(out))
    assert "Is it 3?" in again  # a prompt


def test_pictures_come_in_the_formats_that_are_asked_for(out, capsys):
    assert main(["report", str(out), "--format", "svg,pdf", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"report.html", "grid.svg", "grid.pdf", "steerability.svg"} <= listed.keys()
    assert all((out / name).stat().st_size == size for name, size in listed.items())


def test_analyze_draws_in_the_formats_that_are_asked_for(built, out):
    command = ["analyze", built, "-o", out, "--stages", "vectors,sweep", "--draws", "20"]
    assert main([str(word) for word in [*command, "--overwrite", "--format", "svg"]]) == 0
    assert (out / "grid.svg").exists()
    assert not (out / "grid.png").exists()


def test_analyze_refuses_a_format_that_is_not_known_before_it_reads_the_store(capsys, tmp_path):
    said = refused(["analyze", "nowhere.zarr", "--format", "png,jpg"], capsys)
    assert "format 'jpg' is unknown, expected some of png, svg, pdf" in said
    with pytest.raises(ActcacheError, match="format 'bmp' is unknown"):
        analyze("nowhere.zarr", tmp_path / "out", formats=("bmp",))


def test_analyze_with_overwrite_removes_what_report_wrote(built, out):
    assert main(["report", str(out), "--format", "svg"]) == 0
    command = ["analyze", built, "-o", out, "--stages", "vectors", "--overwrite"]
    assert main([str(word) for word in command]) == 0
    assert not (out / "grid.svg").exists()
    assert not (out / "samples.json").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Settings and provenance" in page
    assert 'id="layers"' not in page


def test_labelled_prompts_have_a_page_of_discriminative_layers(folder, tmp_path):
    store, out = tmp_path / "labels.zarr", tmp_path / "out"
    assert build(folder, store, "--positions", "prompt", data="labels") == 0
    assert main(["analyze", str(store), "-o", str(out), "--draws", "20"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "told apart best at layer" in page
    assert 'data-chart="classes"' in page
    assert 'id="samples"' not in page


DAMAGED = [
    ("summary.json", "{", "run analyze with --overwrite"),
    ("samples.json", "[1]", "Run analyze again"),
    ("samples.json", '{"n_tested": 1}', "Run analyze again"),
]


@pytest.mark.parametrize(("name", "text", "remedy"), DAMAGED)
def test_damage_is_reported_in_one_line(out, capsys, name, text, remedy):
    (out / name).write_text(text, encoding="utf-8")
    assert remedy in refused(["report", out], capsys)


def test_samples_of_another_sweep_are_refused(out, capsys):
    document = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    document["id"][0] = "another"
    (out / "samples.json").write_text(json.dumps(document), encoding="utf-8")
    assert "other samples than the sweep" in refused(["report", out], capsys)
    document["row"][0] = -1
    (out / "samples.json").write_text(json.dumps(document), encoding="utf-8")
    assert "other samples than the sweep" in refused(["report", out], capsys)
    del document["prompt"][0]
    (out / "samples.json").write_text(json.dumps(document), encoding="utf-8")
    assert "another length" in refused(["report", out], capsys)


def test_inconsistent_numbers_are_reported_in_one_line(out, capsys):
    document = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    document["sweep"]["layers"] = [0, 1]
    (out / "summary.json").write_text(json.dumps(document), encoding="utf-8")
    assert "do not fit together" in refused(["report", out], capsys)


def test_a_folder_of_an_earlier_version_has_a_page_without_samples(out):
    (out / "samples.json").unlink()
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="samples"' not in page
    assert 'data-chart="layers"' in page


def test_nothing_to_report_on_and_unknown_formats_are_refused(out, tmp_path, capsys):
    assert "actcache analyze" in refused(["report", tmp_path / "none"], capsys)
    assert "expected some of png, svg, pdf" in refused(["report", out, "--format", "gif"], capsys)
    assert "expected some of" in refused(["report", out, "--format", ""], capsys)


def test_the_samples_are_the_test_rows_with_their_letters(out, built):
    from actcache.store.store import open_store

    store = open_store(built)
    tested = np.flatnonzero(store["split"] == "test")
    document = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert document["row"] == tested.tolist()
    assert document["n_tested"] == len(tested)
    for name in ("id", "behavior", "variant", "letter"):
        assert document[name] == store[name][tested].tolist()
    prompts = [document["text"][i] for i in document["prompt"]]
    assert prompts == store["prompt"][tested].tolist()
