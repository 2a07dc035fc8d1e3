"""Does a run of small shards hold as little padding as 512 rows?"""

import pytest

from benchmarks.build.padding import padding


@pytest.mark.parametrize("batch_tokens", [2048, 8192])
def test_runs_pad_like_512_rows_and_much_less_than_shards(batch_tokens):
    ratios = padding(5000, batch_tokens=batch_tokens, seed=1)

    assert ratios["runs over 512 rows"] <= 1.02
    assert ratios["within shards of 48"] > 1.15 * ratios["within runs"]
    assert 1 <= ratios["within runs"] < 1.25
