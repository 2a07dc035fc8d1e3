"""Does a stage in a process of its own report its own memory and time?"""

import json

import pytest

from benchmarks.memory import measured
from benchmarks.support import one_stage


@pytest.mark.model
def test_stages_report_the_memory_and_time_they_took(folder, tmp_path, printed):
    settings = {
        "model": str(folder / "model"),
        "data": [str(folder / "rows.jsonl")],
        "template": "none",
        "batch_tokens": 200,
        "floor_rows": 4,
        "threads": 1,
        "n": 20,
        "store": str(tmp_path / "20.zarr"),
    }
    for stage in ("build", "sweep"):
        one_stage.main([json.dumps({**settings, "stage": stage})])
        document = printed()
        assert document["peak"] >= document["floor"] > 0
        assert document["seconds"] > 0
        assert document["shard rows"] == 20
        # 20 rows of about 15 tokens, of 36 bytes each at most, and texts of as many words
        assert 0.003 < document["rows"] < 0.1

    [measurement] = measured("moments", [20], settings, tmp_path)  # in a process of its own
    # Memory inherited from the parent must not count: torch alone would be 200 MB.
    assert measurement["floor"] < 200


def test_an_object_that_is_held_twice_is_counted_once():
    text = "x" * 10_000

    assert 10_000 < one_stage.deep_bytes([text, {"again": text}]) < 11_000
    assert one_stage.deep_bytes([text, {"again": text + "y"}]) > 20_000
