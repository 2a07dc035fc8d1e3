"""The notebook: it runs from its first cell to its last, and is kept without outputs."""

import os
import re

import pytest

from tests.support.processes import ROOT

NOTEBOOK = ROOT / "analysis" / "tour.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.model
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_it_runs_from_rows_to_steered_text(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook makes its folder
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )

    client.execute()  # an error in a cell is raised

    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "adventurous: steerable at layer" in printed
    assert "tidy: steerable at layer" in printed
    assert re.search(r"chosen strength (0\.5|1\.0) with effect", printed)
    assert "answers (A)" in printed
    assert "answers (B)" in printed
    results = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    assert ["text/html" in data for data in results] == [True, True]  # the store, the results
