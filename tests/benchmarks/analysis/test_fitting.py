"""Do the rivals of fitted directions find the same directions, so that times are of the same work?"""

import pytest

from benchmarks.analysis import fitting


@pytest.mark.long
def test_the_rivals_find_the_same_directions(printed):
    fitting.main(["--quick", "--float64"])

    document = printed()
    for name in ("dense float32", "dense float64"):
        assert document[f"rfm: |cos| of the chosen direction, {name}"] == pytest.approx(1, abs=1e-4)
    for name in ("ridge", "logistic", "pca"):
        assert document[f"{name}: 1 - |cos|"] == pytest.approx(0, abs=1e-6)
