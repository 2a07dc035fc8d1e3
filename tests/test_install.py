"""The package as it is installed: from a checkout without symbolic links, as Windows makes it."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

LINKS = ("actcache/analysis", "actcache/cli")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package alone, installed from a copy whose links are text files."""
    folder = tmp_path_factory.mktemp("install")
    checkout, site = folder / "checkout", folder / "site"
    for name in ("actcache", "analysis", "cli"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, checkout / name)
    for link in LINKS:
        target = (checkout / link).readlink()
        (checkout / link).unlink()
        (checkout / link).write_text(str(target), encoding="utf-8")  # what git writes there
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--target", site, checkout),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return site


@pytest.mark.slow
def test_a_checkout_without_links_installs_every_package(installed):
    shipped = {path.relative_to(installed) for path in (installed / "actcache").rglob("*.py")}
    expected = {
        path.relative_to(ROOT) if folder == "actcache" else "actcache" / path.relative_to(ROOT)
        for folder in ("actcache", "analysis", "cli")
        for path in (ROOT / folder).rglob("*.py")
    }

    # On some versions rglob walks into the links, which are the same files a second time.
    assert {str(path) for path in expected} == {str(path) for path in shipped}


@pytest.mark.long
@pytest.mark.model
@pytest.mark.slow
def test_the_installed_demo_runs_from_another_folder(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "actcache", "demo", "-o", "out", "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        },
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "results" / "summary.json").exists()
    assert not (installed / "analysis").exists()
