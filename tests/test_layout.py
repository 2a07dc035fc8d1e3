"""The shape of the project: what ships, what its fronts hold, how fast the command line starts."""

import ast
import json
import os
import subprocess
import sys
import tomllib

import pytest

from tests.support.processes import ROOT, run_code
from tests.test_architecture import sources

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", ["analysis", "cli"])
def test_the_two_links_lead_to_their_folders(folder):
    assert (ROOT / "actcache" / folder).resolve() == ROOT / folder


def test_every_package_ships():
    shipped = set(PYPROJECT["tool"]["setuptools"]["packages"])
    packages = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for folder, name in [
            ("actcache", "actcache"),
            ("analysis", "actcache.analysis"),
            ("cli", "actcache.cli"),
        ]
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert packages == shipped


@pytest.mark.parametrize("name", ["analysis", "cli"])
def test_a_bare_import_of_analysis_or_cli_says_what_to_write(name):
    done = run_code(f"import {name}", check=False)
    assert f"import actcache.{name}" in done.stderr


def test_stores_and_analyses_do_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import actcache, actcache.store.store, actcache.analysis, actcache.cli.main\n"
        "import actcache.analysis.stats.moments, actcache.analysis.sweep.steerability, actcache.analysis.report.plots\n"
        "print('ok')"
    )
    assert run_code(code).stdout == "ok\n"


FRONTS = [
    *("actcache", "actcache.build", "actcache.encoders", "actcache.engine", "actcache.exchange"),
    *("actcache.prompts", "actcache.data", "actcache.store", "actcache.analysis"),
]


USED_ALONE = """
import importlib, inspect, json, os, sys
packages = {name: importlib.import_module(name) for name in sys.argv[1:]}
print(json.dumps({"torch": "torch" in sys.modules}), flush=True)
import torch, transformers.integrations.sdpa_attention  # which take most of the time
for front, package in packages.items():
    child = os.fork()  # in which no other package of ours has loaded anything
    if child == 0:
        missing = [name for name in package.__all__ if not hasattr(package, name)]
        values = {name: getattr(package, name, "") for name in package.__all__}
        silent = [
            name for name, value in values.items()
            if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__
        ]
        print(json.dumps({front: [missing, silent]}), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, front
"""


@pytest.fixture(scope="module")
def used_alone():
    outcomes: dict[str, list[list[str]] | bool] = {}
    for line in run_code(USED_ALONE, *FRONTS).stdout.splitlines():
        outcomes |= json.loads(line)
    return outcomes


@pytest.mark.parametrize("package", FRONTS)
def test_every_public_name_is_there_with_a_docstring(used_alone, package):
    assert used_alone[package] == [[], []]


def test_torch_comes_when_a_name_is_used(used_alone):
    assert used_alone["torch"] is False


def test_help_starts_at_once():
    seconds = []
    for _ in range(3):
        start = cpu_of_children()
        subprocess.run(
            [sys.executable, "-m", "actcache", "--help"], check=True, capture_output=True, cwd=ROOT
        )
        seconds.append(cpu_of_children() - start)
    # The figure to reach is 0.3 s on an idle machine; of processors, since others may use them too.
    assert min(seconds) < 0.6


def cpu_of_children():
    times = os.times()
    return times.children_user + times.children_system


def test_help_imports_nothing_heavy():
    heavy = run_code(
        "import sys; from actcache.cli.main import main\n"
        "main(['--help'])\n"
        "print([m for m in ('torch', 'transformers', 'transformer_lens', 'numpy', 'matplotlib',"
        " 'zarr') if m in sys.modules])"
    )
    assert heavy.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", sources(ROOT).values(), ids=str)
def test_every_file_opens_with_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
