"""The benchmark of one sweep runs, and this checkout against itself differs in nothing."""

import json

import pytest

import actcache
from benchmarks.analysis import one_sweep
from tests.support.tiny import save


@pytest.mark.long
@pytest.mark.model
def test_a_checkout_against_itself_has_the_same_numbers(tmp_path, capsys):
    rows = [
        {"prompt": f"{i}?", "positive": " (A)" if i % 2 else " (B)", "negative": " (C)"}
        for i in range(20)
    ]
    (tmp_path / "tidy.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    store = actcache.build_store(
        tmp_path / "tidy.jsonl", tmp_path / "s.zarr", model=save(tmp_path / "model")
    )
    settings = {"stages": ["vectors", "sweep"], "multipliers": [-1.0, 1.0], "draws": 5}

    one_sweep.main(
        [str(one_sweep.ROOT), str(store.path), "--repeats", "1", "--settings", json.dumps(settings)]
    )

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["largest difference, behaviors' and learned vectors"] == 0
    assert figures["slopes of fixed layers compared"] == 4  # all, either letter, random
    assert figures["whole, old / new"] > 0
