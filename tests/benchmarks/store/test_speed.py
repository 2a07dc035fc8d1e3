"""Does the store's benchmark run? How fast the store is, is not asked here."""

from benchmarks.store import speed


def test_the_store_is_measured_at_a_small_size(printed):
    speed.main(["--quick"])

    assert printed()["write: speed / raw file"] > 0
