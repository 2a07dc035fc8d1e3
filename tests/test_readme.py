"""README against the project: its page runs, its links lead somewhere, it stays short."""

import re

import pytest

from actcache.cli.main import parser
from tests.support.processes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = README[README.index("<!-- example -->") :].split("```python\n")[1].split("```")[0]


def test_the_two_commands_are_there():
    assert "make demo" in README
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.splitlines()) <= 200
    assert len(PAGE.splitlines()) <= 25


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *(
    str(path.relative_to(ROOT))
    for folder in ("actcache", "analysis", "cli", "benchmarks")
    for path in (ROOT / folder).rglob("README.md")
    if not path.parent.is_symlink() and "actcache/analysis" not in str(path) and "actcache/cli" not in str(path)
)])  # fmt: skip
def test_every_link_leads_to_a_file(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / path).parent.joinpath(target).exists(), f"{path}: {target}"


def test_every_command_that_it_shows_is_one():
    known = next(iter(a.choices for a in parser()._actions if isinstance(a.choices, dict)))
    for command in re.findall(r"^actcache (\w+)", README, re.MULTILINE):
        assert command in known


def test_the_page_imports_two_names_of_actcache():
    import_lines = [line for line in PAGE.splitlines() if re.match(r"(from|import) actcache", line)]
    assert import_lines == ["import actcache", "from actcache import analysis"]


@pytest.mark.model
@pytest.mark.slow
def test_the_page_goes_from_rows_to_a_layer_a_predictor_and_a_picture(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    exec(compile(PAGE, "README.md", "exec"), {})

    shown = capsys.readouterr().out
    assert "fixed layer 3: 1." in shown
    layers = re.search(r"predicted layers: \(array\(\[(.*?)\]\)", shown)
    assert layers is not None
    # Plain questions are steered at layers 1 and 2, those that begin with "Think first." later.
    assert {int(x) > 2 for x in layers[1].split(",")} == {True, False}
    assert (tmp_path / "thrifty.png").read_bytes().startswith(b"\x89PNG")
