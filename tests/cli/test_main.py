"""The command line as a whole: commands one after the other, exit codes, stdout and stderr."""

import json
from pathlib import Path

import pytest

from actcache.cli.main import main
from tests.cli.commands import WITHOUT_PREDICTORS, build


@pytest.mark.model
def test_build_info_and_analyze_of_pairs(folder, tmp_path, capsys):
    store, out = tmp_path / "s.zarr", tmp_path / "out"
    assert build(folder, store) == 0
    assert "pairs" in capsys.readouterr().out
    assert main(["info", str(store), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["layers"], facts["d_model"]) == (20, 4, 32)

    assert main(["analyze", str(store), "-o", str(out), "--draws", "50", *WITHOUT_PREDICTORS]) == 0

    shown = capsys.readouterr()
    assert "Steerability" in shown.out
    assert "results:" in shown.err
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("directions.safetensors", "moments.npz", "sweep.zarr", "steerability.npz"),
        *("summary.json", "tables.md", "steerability.png", "grid.png", "config.toml"),
        *("report.html", "samples.json"),
    }
    assert main(["info", str(out)]) == 0
    assert "Steerability" in capsys.readouterr().out
    assert main(["info", str(out / "sweep.zarr"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "sweep"


def test_usage_errors_exit_with_2(capsys):
    assert main([]) == 2
    assert main(["bake"]) == 2
    assert main(["build"]) == 2
    assert main(["build", "d.jsonl", "--model", "m", "-o", "s", "--space", "two"]) == 2
    capsys.readouterr()


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupted(_args):
        raise KeyboardInterrupt

    commands = {
        "info s.zarr": "nothing was written",
        "subset s.zarr -o t.zarr": "--resume",
        "analyze s.zarr": "run the same command to resume",
    }
    for command, left in commands.items():
        words = command.split()
        monkeypatch.setattr(f"actcache.cli.{words[0]}.run", interrupted)
        assert main(words) == 130
        assert left in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"actcache {version('actcache')}\n"


def test_the_checkout_holds_no_machines_paths():
    root = Path(__file__).parents[2]
    for folder in ("actcache", "analysis", "cli", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            assert "/home/" not in path.read_text(encoding="utf-8"), path
