"""The package as it is installed: from a checkout without symbolic links, as Windows makes it.

And what its demo finds: the run is long, so that it is made once.
"""

import os
import shutil
import subprocess
import sys

import pytest

from actcache import analysis
from benchmarks.demo_model import data
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


FOR_READERS = (".md", ".ipynb")
"""Endings of files that are read in the checkout alone."""


@pytest.mark.slow
def test_a_checkout_without_links_installs_every_package_and_the_files_that_it_needs(installed):
    shipped = {
        str(path.relative_to(installed))
        for path in (installed / "actcache").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    expected = {
        path.relative_to(ROOT) if folder == "actcache" else "actcache" / path.relative_to(ROOT)
        for folder in ("actcache", "analysis", "cli")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", *FOR_READERS)
    }

    # On some versions rglob walks into the links, which are the same files a second time.
    assert {str(path) for path in expected} == shipped
    assert "actcache/cluster/job.sbatch" in shipped


@pytest.fixture(scope="module")
def results(installed, tmp_path_factory):
    """What the installed `actcache demo` leaves in another folder."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "actcache", "demo", "-o", "out", "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return folder / "out" / "results"


@pytest.fixture(scope="module")
def summary(results):
    return analysis.open_results(results).summary


@pytest.mark.long
@pytest.mark.model
def test_the_installed_demo_runs_from_another_folder(installed, results):
    assert (results / "summary.json").exists()
    assert not (installed / "analysis").exists()


@pytest.mark.model
@pytest.mark.long
@pytest.mark.parametrize("behavior", data.BEHAVIORS, ids=lambda behavior: behavior.name)
def test_a_layer_for_each_prompt_gains_where_questions_have_two_wordings(summary, behavior):
    caa, random = (summary.predictors.sets[name] for name in ("caa", "random"))
    of_caa, of_random = (scores.base.behaviors[behavior.name] for scores in (caa, random))
    gain = of_caa[caa.primary].gain
    swept = summary.behaviors[behavior.name]
    cross_fitted = summary.verdict_words("sweep", behavior.name, "cross_fitted")

    assert summary.verdict_words("sweep", behavior.name, "fixed") == "steerable"
    for part in swept.by_letter.values():
        assert part.fixed.slope.low > 0
    if behavior.two_wordings:
        assert gain.low > max(0, of_caa["w2s_shuffled"].gain.value)
        assert gain.low > of_random[random.primary].gain.high
        assert cross_fitted == "gain shown"
    else:
        assert gain.low <= 0
        # Of equal layers one is a little better for some prompts; it is not worth a predictor.
        assert swept.cross_fitted.gain.high < 0.02 * swept.fixed.slope.value


@pytest.mark.model
@pytest.mark.long
def test_the_mean_gain_is_above_every_control_and_of_both_letters(summary):
    caa, random = (summary.predictors.sets[name] for name in ("caa", "random"))
    gain = caa.base.mean[caa.primary].gain

    assert gain.low > max(0, caa.base.mean["w2s_shuffled"].gain.high)
    assert gain.low > random.base.mean[random.primary].gain.high
    assert caa.over_shuffled.low > 0
    assert {letter: of[caa.primary].gain.low > 0 for letter, of in caa.by_letter.items()} == {
        "A": True,
        "B": True,
    }


@pytest.mark.model
@pytest.mark.long
def test_the_findings_tell_which_is_which(summary):
    texts = {finding.about: finding.text for finding in analysis.findings(summary)}
    two_wordings = sorted(x.name for x in data.BEHAVIORS if x.two_wordings)
    assert texts["CAA vectors"].endswith(f"shown for {', '.join(two_wordings)} alone")
    for behavior in data.BEHAVIORS:
        if behavior.two_wordings:
            assert "the best layer of each prompt would add 1." in texts[behavior.name]
