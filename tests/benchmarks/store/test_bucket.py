"""Does the bucket's benchmark run? How fast a bucket is written, is not asked here."""

from benchmarks.store import bucket as benchmark


def test_writing_into_a_bucket_is_measured_at_a_small_size(printed, bucket):
    benchmark.main(["--quick", "--address", bucket])

    figures = printed()
    assert figures["about"]["bytes"] > 0
    assert figures["build: bytes/s beside plain PUT"] > 0
    assert figures["put_if_absent: bytes/s beside plain PUT"] > 0
