"""Does the memory benchmark measure each stage and size, and are its figures what they say?"""

from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.memory import figures_of, slope


def test_memory_is_reported_over_the_floor_and_per_thousand_rows():
    measurements = [
        {"floor": 100.0, "peak": 100.0 + n / 100, "floor anonymous": 50.0, "peak anonymous": 53.0}
        | {"rows": n / 1000, "seconds": n / 10, "shard rows": min(n, 512)}
        for n in (250, 1000, 4000)
    ]

    figures = figures_of("build", (250, 1000, 4000), measurements)

    assert figures["build: resident MB over the floor at n = 1000"] == pytest.approx(10)
    assert figures["build: resident MB a thousand rows"] == pytest.approx(10)
    assert figures["build: anonymous MB a thousand rows"] == pytest.approx(0, abs=1e-9)
    assert figures["build: of these, texts and tokens, MB a thousand rows"] == pytest.approx(1)
    assert figures["build: seconds a row at n = 4000 / at n = 250"] == pytest.approx(1)


def test_the_slope_leaves_out_sizes_below_a_shard():
    ns, values = (100, 1000, 2000, 4000), (0.0, 50.0, 50.0, 50.0)

    assert slope(ns, values) > 5
    assert slope(ns, values, least=512) == pytest.approx(0, abs=1e-9)
    assert slope((10, 20), (1.0, 2.0), least=512) == pytest.approx(100)


def test_the_memory_benchmark_measures_each_stage_at_each_n(printed):
    calls = []

    def pretend(stage, ns, settings, folder):
        calls.append((stage, tuple(ns)))
        assert Path(settings["data"][0]).exists()
        zero = {"floor": 1.0, "peak": 1.0, "floor anonymous": 1.0, "peak anonymous": 1.0}
        return [{**zero, "rows": 0.0, "seconds": 1.0, "shard rows": 8} for _ in ns]

    memory.main(["--quick"], measure=pretend)

    assert calls == [(stage, (40, 80)) for stage in ("build", "sweep", "moments")]
    assert printed()["moments: resident MB a thousand rows"] == pytest.approx(0)
