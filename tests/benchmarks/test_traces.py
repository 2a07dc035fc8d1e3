"""Do the benchmarks of build and sweep run, and do they leave a trace?"""

import importlib
import json

import pytest


@pytest.mark.model
@pytest.mark.parametrize("name", ["build.forwards", "engine.sweep"])
def test_runs_on_a_tiny_model_and_leaves_a_trace(name, tmp_path, printed):
    module = importlib.import_module(f"benchmarks.{name}")

    module.main(["--quick", "--profile", str(tmp_path)])

    shares = [value for key, value in printed().items() if "share of time" in key]
    assert sum(shares) >= 0.99
    [trace] = tmp_path.glob("*.trace.json")
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
