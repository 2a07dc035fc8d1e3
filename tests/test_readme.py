"""README against the project: its code runs, its format is the real one."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_there():
    assert "make demo" in README
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.model
@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch):
    from actcache.cli.main import main
    from actcache.demo import model_path, row_files

    monkeypatch.chdir(tmp_path)
    rows = [str(path) for path in row_files() if path.stem == "tidy"]
    model = ["--model", str(model_path()), "--dtype", "float32"]
    assert main(["build", *rows, *model, "-o", "demo-out/demo.zarr"]) == 0
    code = README[README.index("<!-- example -->") :].split("```python\n")[1].split("```")[0]

    exec(compile(code, "README.md", "exec"), {})
