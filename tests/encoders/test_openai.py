"""The encoder of a service: costs told first, batches that it accepts, nothing paid for twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from actcache.encoders import Cost, default_cache, encode, parse_encoder
from actcache.encoders.connection import endpoint_of
from actcache.encoders.embedding_cache import EmbeddingCache
from actcache.encoders.openai import embed_texts
from actcache.encoders.service import Service
from actcache.errors import ActcacheError
from actcache.store.store import open_store
from tests.encoders.examples import KEY, TEXTS, ask, right
from tests.support.embedding_server import WIDTH, EmbeddingServer
from tests.support.processes import ROOT
from tests.support.recorder import Recorder
from tests.support.stores import build, example

pytestmark = pytest.mark.usefixtures("service_environment")


def test_batches_that_a_service_refuses_are_halved():
    with EmbeddingServer(always="at most 3") as server:
        np.testing.assert_array_equal(ask(server, batch_texts=12).vectors, right(TEXTS))
    assert [len(texts) for _, texts in server.requests] == [12, 6, 3, 3, 3, 3]


def test_the_text_that_a_service_refuses_is_named():
    texts = [*TEXTS, "x" * 101]
    with (
        EmbeddingServer(always="no long ones") as server,
        pytest.raises(
            ActcacheError, match=r"too long, even for .* 'x{101}' alone \(101 bytes\). Shorten"
        ),
    ):
        ask(server, texts=texts)


def test_batches_are_bounded_in_bytes():
    texts = ["a" * 8, "b" * 8, "c" * 8, "d" * 50, "e"]
    with EmbeddingServer() as server:
        embedded = ask(server, texts=texts, batch_bytes=20)
    np.testing.assert_array_equal(embedded.vectors, right(texts))
    assert [len(texts) for _, texts in server.requests] == [2, 1, 1, 1]


def test_an_empty_prompt_is_named_before_any_request():
    with EmbeddingServer() as server:
        service = Service(endpoint=server.url, model="m")
        with pytest.raises(ActcacheError, match=r"sample 'b' is empty.* Leave that sample out"):
            embed_texts(["x", ""], service, names=["a", "b"])
        assert not server.requests


def test_the_cost_is_told_before_the_first_request_and_may_stop_it():
    def refuse(_cost):
        raise ActcacheError("too expensive")

    refusing, accepting = Recorder(refuse), Recorder()
    with EmbeddingServer() as server:
        with pytest.raises(ActcacheError, match="too expensive"):
            ask(server, progress=refusing)
        assert not server.requests
        ask(server, texts=TEXTS[:4])
        ask(server, progress=accepting)
        ask(server, progress=accepting)  # nothing is new: not told
    costs = [*refusing.costs, *accepting.costs]
    assert [(cost.n_new, cost.n_cached) for cost in costs] == [(12, 0), (8, 4)]
    assert costs[0].tokens == sum(-(-len(text) // 4) for text in TEXTS)


def test_the_cost_is_one_line_of_texts_and_tokens():
    service = Service(endpoint=endpoint_of(None), model="text-embedding-3-large")
    cost = Cost(service=service, n_new=1200, n_cached=3, tokens=34567)
    assert str(cost) == (
        "1,200 new texts for text-embedding-3-large at https://api.openai.com/v1 (3 are cached): "
        "about 34,567 tokens"
    )


def test_tokens_are_those_that_the_service_counted(tmp_path):
    with EmbeddingServer() as server:
        assert ask(server).tokens == sum(map(len, TEXTS))
        assert ask(server).tokens == 0
        assert ask(server, cache=tmp_path / "other.sqlite").tokens == sum(map(len, TEXTS))
    assert (tmp_path / "other.sqlite").is_file()


EMBED = """
import sys
from actcache.encoders.openai import embed_texts
from actcache.encoders.service import Service
texts = [f"text {i}" for i in range(50)]
service = Service(endpoint=sys.argv[1], model="m", batch_texts=5)
embedded = embed_texts(texts, service, names=texts)
sys.stdout.buffer.write(embedded.vectors.tobytes())
"""


def embed_elsewhere(server):
    return subprocess.Popen(
        [sys.executable, "-c", EMBED, server.url], cwd=ROOT, stdout=subprocess.PIPE
    )


def cached_texts(server, texts):
    with EmbeddingCache(default_cache(), encoder=(server.url, "m", None)) as file:
        missing = set(file.missing(texts))
    return [text for text in texts if text not in missing]


def test_a_killed_run_resumes_without_sending_cached_texts():
    texts = [f"text {i}" for i in range(50)]
    with EmbeddingServer(answers=8) as server:
        with embed_elsewhere(server) as process:
            deadline = time.monotonic() + 300
            while len(server.requests) <= server.answers:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        cached = cached_texts(server, texts)
        assert 15 <= len(cached) <= 45
        n_before = len(server.requests)
        server.answers = None
        with embed_elsewhere(server) as process:
            resumed = process.stdout.read()
        assert process.returncode == 0
        assert not {text for _, some in server.requests[n_before:] for text in some} & set(cached)
        again = [text for text, times in Counter(server.texts).items() if times > 1]
        assert len(again) <= 5  # those that were on their way
    np.testing.assert_array_equal(np.frombuffer(resumed, "<f4").reshape(50, WIDTH), right(texts))


def test_ctrl_c_keeps_what_was_paid_for():
    def interrupt(done):
        if done:
            raise KeyboardInterrupt

    with EmbeddingServer() as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server, on_texts=interrupt)
        assert cached_texts(server, TEXTS) == TEXTS[:5]


def test_two_processes_share_one_file():
    texts = [f"text {i}" for i in range(50)]
    with EmbeddingServer(delay=0.01) as server:
        processes = [embed_elsewhere(server) for _ in range(2)]
        outputs = [process.communicate()[0] for process in processes]
    for raw in outputs:
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(50, WIDTH), right(texts))


def test_a_text_that_another_process_embedded_meanwhile_is_not_sent():
    with EmbeddingServer() as server:
        done: list[object] = []

        def other_comes_first(texts):
            if not done:
                done.append(texts)
                ask(server)

        ask(server, on_texts=other_comes_first)
    assert max(Counter(server.texts).values()) == 1


def test_distinct_texts_of_a_store_are_embedded_once_and_scaled(tmp_path):
    settings, values = example()
    settings["columns"]["prompt"] = [f"prompt {i % 4}" for i in range(11)]
    settings["columns"]["system"] = ["" if i < 8 else "Be good." for i in range(11)]
    store = open_store(build(tmp_path / "a.zarr", settings, values))
    progress = Recorder()
    with EmbeddingServer() as server:
        spec = parse_encoder("openai:text-embedding-3-large")
        first = encode(store, spec, base_url=server.url, progress=progress)
        second = encode(store, spec, base_url=server.url)
    framed = [f"prompt {i}" for i in range(4)] + [f"Be good.\n\nprompt {i}" for i in range(3)]
    assert server.texts == framed
    expected = right([*framed[:4], *framed[:4], *framed[4:]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(first.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(second.values, first.values)
    assert (first.n_new, first.n_cached, second.n_new, second.n_cached) == (7, 0, 0, 7)
    assert progress.bars == [("encoder openai:text-embedding-3-large", 11)]
    assert (sum(progress.rows), len(progress.costs)) == (11, 1)
    assert first.settings == second.settings
    assert default_cache().is_file()
    assert KEY not in repr(first.settings)
    assert os.environ["OPENAI_API_KEY"] == KEY
