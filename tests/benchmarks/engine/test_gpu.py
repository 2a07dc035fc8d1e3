"""The benchmark for a GPU, at a tiny shape on the CPU: it runs, and it compares equal things."""

import pytest

from benchmarks.engine import gpu

pytestmark = pytest.mark.model


@pytest.mark.parametrize("score", ["letter", "logprob"])
def test_it_runs_and_both_naive_loops_compute_what_ours_does(score, printed):
    flags = ["--shape", "tiny", "--n", "6", "--repeats", "1", "--peak-tflops", "1"]
    figures = gpu.main([*flags, "--score", score])

    for loop in ("at batch size 1", "batched"):
        assert figures[f"sweep: largest difference from naive {loop}"] < 1e-4  # fp32 rounding
    assert figures["sweep: largest effect"] > 0.01
    assert 0 < figures["sweep: share of the peak"] < 1
    assert printed()["about"]["shape"] == "tiny"


def test_operations_are_those_of_the_weights_and_of_attention():
    shape = gpu.SHAPES["7b"]
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000

    assert shape.flops(1, seen=0) + shape.unembedding(1) == 2 * weights
    # Scores and sums of values: two products of d_model with every token that is seen.
    assert shape.flops(1, seen=10) - shape.flops(1, seen=0) == 32 * 2 * 2 * 10 * 4096
