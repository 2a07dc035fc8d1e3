"""A bucket whose server dies during a write: the write is retried, or ends with one line."""

import threading
import time

import numpy as np
import pytest

from actcache.errors import BucketError
from actcache.store.storage import S3Storage
from tests.support.answer_proxy import AnswerProxy
from tests.support.seaweedfs import BELOW_A_MINUTE, BUCKET, SeaweedFS

N_BYTES = 12_000_000  # several pieces on their way when the server is killed


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that may be killed."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as started:
        yield started


@pytest.fixture(scope="module")
def parts():
    return list(np.random.default_rng(0).integers(0, 256, (6, N_BYTES // 6), dtype=np.uint8))


def through(proxy, server, name, **how):
    environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.url}
    storage = S3Storage(f"s3://{BUCKET}/{name}", environment=environment, **how)
    assert storage.list() == []  # first contact
    return storage


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, pytest.param(10, marks=pytest.mark.long)])
def test_a_server_killed_in_a_create_only_write_is_waited_for(server, parts, seconds):
    etags, killed = [], threading.Event()

    def kill(_path):
        if not killed.is_set():
            server.kill()
            killed.set()

    with AnswerProxy(server.ports["s3"], in_put=kill) as proxy:
        storage = through(proxy, server, f"killed-{seconds}")
        writer = threading.Thread(
            target=lambda: etags.append(storage.put_if_absent("x", parts)), daemon=True
        )
        writer.start()
        assert killed.wait(60)
        assert writer.is_alive()
        time.sleep(seconds)
        server.start()
        writer.join(120)

    assert len(proxy.puts) > 1
    again = S3Storage(storage.location, environment=server.environment)
    assert etags == [again.etag("x")]
    assert again.read("x") == b"".join(part.tobytes() for part in parts)


@pytest.mark.slow
def test_a_server_killed_before_its_answer_arrives_leaves_one_whole_object(server, parts):
    restart = threading.Thread(target=server.start)

    def kill():
        server.kill()
        restart.start()

    with AnswerProxy(server.ports["s3"], cut={0}, before_cut=kill) as proxy:
        storage = through(proxy, server, "unanswered")
        etag = storage.put_if_absent("x", parts[:1])
        restart.join()

    again = S3Storage(storage.location, environment=server.environment)
    assert len(proxy.puts) > 1
    assert etag == again.etag("x")
    assert again.read("x") == parts[0].tobytes()


@pytest.mark.slow
def test_a_server_that_stays_away_beyond_the_timeout_is_named_in_one_line(server, parts):
    with AnswerProxy(server.ports["s3"]) as proxy:
        storage = through(proxy, server, "away", patience=1.5)
        server.kill()
        start = time.monotonic()
        for write in (storage.put_if_absent, storage.write):
            with pytest.raises(
                BucketError,
                match=rf"away/x': http://127\S+ did not answer for {BELOW_A_MINUTE} s, .*try again\.$",
            ):
                write("x", parts[:1])
        assert time.monotonic() - start < 10
        server.start()
        assert storage.put_if_absent("x", parts[:1])
