"""The benchmark of steered generation at a tiny shape: it runs, and it compares equal texts."""

import pytest

from benchmarks.steering import generation

pytestmark = pytest.mark.model


def test_it_runs_and_the_rivals_write_the_same_texts(printed):
    figures = generation.main(["--quick"])

    equal = {name: value for name, value in figures.items() if "texts equal" in name}
    assert len(equal) == 3
    for share in equal.values():
        written, compared = share.split("/")
        assert written == compared != "0"
    assert sum("plain generate" in name for name in figures) == 4
    about = printed()["about"]
    assert about["clock"] == "process_time"
    assert about["configurations"] == 6
