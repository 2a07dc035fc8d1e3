"""Requests to a service that misbehaves: right answers or one line, and never the key."""

import logging
import time
import traceback

import numpy as np
import pytest

from actcache.encoders import default_cache
from actcache.encoders.connection import endpoint_of
from actcache.encoders.openai import embed_texts
from actcache.encoders.service import Service
from actcache.errors import ActcacheError
from tests.encoders.examples import KEY, TEXTS, ask, right
from tests.support.embedding_server import NEVER, EmbeddingServer

pytestmark = pytest.mark.usefixtures("service_environment")


@pytest.mark.parametrize(
    "reply",
    [
        *("429", "500", "503", "drop", "html", "cut", "null", "fewer", "more", "ragged", "nan"),
        *("twice the same number", "overflow", "none", "zeros"),
    ],
)
def test_a_passing_failure_is_retried(reply):
    with EmbeddingServer("ok", reply) as server:
        vectors = ask(server)
    np.testing.assert_array_equal(vectors.vectors, right(TEXTS))
    asked = [path for path, _ in server.requests]
    assert asked == ["ok", reply, "ok", "ok"]


def test_a_vector_of_another_width_is_requested_again():
    with EmbeddingServer("ok", "wider") as server:
        vectors = ask(server)
    np.testing.assert_array_equal(vectors.vectors, right(TEXTS))


def test_a_silent_service_is_retried():
    with EmbeddingServer("slow", slow=NEVER) as server:
        vectors = ask(server, timeout=1.0, texts=TEXTS[:5])
    np.testing.assert_array_equal(vectors.vectors, right(TEXTS[:5]))


def test_retry_after_is_obeyed():
    with EmbeddingServer("429") as server:
        start = time.perf_counter()
        ask(server, texts=["a"])
    assert time.perf_counter() - start >= 0.2


def test_answers_are_sorted_by_index():
    with EmbeddingServer(always="shuffled") as server:
        np.testing.assert_array_equal(ask(server).vectors, right(TEXTS))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("500", r"\(500\) fails: the server is unwell. Try again later"),
        ("drop", "drops the connection. Check the address"),
        ("quota", r"\(429\) refuses more .* quota"),
        ("nan", "a vector that is not finite, 3 times, .* Use another model"),
        ("fewer", "4 vectors for 5 texts, 3 times"),
        ("null", "no answer of the protocol"),
        ("boolean", "values of type bool, 3 times"),
        ("text", "values of type str, 3 times"),
    ],
)
def test_a_lasting_failure_is_one_line_and_keeps_what_was_received(reply, message):
    with EmbeddingServer("ok", always=reply) as server:
        with pytest.raises(ActcacheError, match=message) as raised:
            ask(server, retries=2)
        assert "\n" not in str(raised.value)
        n_asked = len(server.requests)
        assert 2 <= n_asked <= 4
        server.always = "ok"
        vectors = ask(server)
    np.testing.assert_array_equal(vectors.vectors, right(TEXTS))
    assert not {text for _, texts in server.requests[n_asked:] for text in texts} & set(TEXTS[:5])
    assert (vectors.n_cached, vectors.n_new) == (5, 7)


def test_a_timeout_is_one_line():
    with (
        EmbeddingServer(always="slow", slow=NEVER) as server,
        pytest.raises(ActcacheError, match=r"did not answer within 0.2 s.* Try again later"),
    ):
        ask(server, timeout=0.2, retries=1)


def test_a_model_whose_width_has_changed_is_an_error():
    with EmbeddingServer("ok", "ok", "ok", always="wider") as server:
        ask(server)
        with pytest.raises(ActcacheError, match=r"of 9 dimensions, .* of 8 dim.* another file"):
            ask(server, texts=["one more"])


def test_dimensions_are_requested_and_cached_separately():
    with EmbeddingServer() as server:
        narrow = ask(server, dimensions=4)
        wide = ask(server)
        again = ask(server, dimensions=4)
    np.testing.assert_array_equal(narrow.vectors, right(TEXTS, 4))
    np.testing.assert_array_equal(wide.vectors, right(TEXTS))
    np.testing.assert_array_equal(again.vectors, narrow.vectors)
    assert again.n_new == 0
    assert {body.get("dimensions") for body in server.bodies} == {4, None}


def test_a_service_that_ignores_the_dimensions_is_an_error():
    with EmbeddingServer(always="wider") as server, pytest.raises(ActcacheError, match="of 5 dim"):
        ask(server, dimensions=4)


@pytest.mark.parametrize("reply", ["echo 400", "echo 401", "echo 404", "echo 500", "echo half"])
def test_the_key_is_in_no_error_log_or_file(reply, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with EmbeddingServer("ok", always=reply) as server, pytest.raises(ActcacheError) as raised:
        ask(server, retries=1)
    shown = "".join(traceback.format_exception(raised.value)) + str(capfd.readouterr())
    logged = "".join(record.getMessage() for record in caplog.records)
    for text in (shown, logged, (raised.value.__cause__ and repr(raised.value.__cause__)) or ""):
        assert not any(KEY[i : i + 8] in text for i in range(len(KEY) - 8))
    assert KEY[:8].encode() not in default_cache().read_bytes()


def test_the_key_is_in_no_settings():
    with EmbeddingServer() as server:
        assert KEY not in repr(ask(server))


def test_a_refused_key_names_its_variable():
    with (
        EmbeddingServer(always="echo 401") as server,
        pytest.raises(ActcacheError, match=r"\(401\) refuses the key.* Set OPENAI_API_KEY"),
    ):
        ask(server)


def test_openai_needs_a_key_and_a_local_service_does_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    service = Service(endpoint=endpoint_of(None), model="m")
    with pytest.raises(ActcacheError, match=r"OPENAI_API_KEY is not set.* Set it"):
        embed_texts(["a"], service, names=["a"])
    with EmbeddingServer() as server:
        np.testing.assert_array_equal(ask(server).vectors, right(TEXTS))


@pytest.mark.parametrize("key", ["sk-secret-with\nnewline", "sk-sécret-with-accent", "a secret b"])
def test_a_key_that_cannot_be_sent_is_not_shown(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with EmbeddingServer() as server, pytest.raises(ActcacheError, match="Set it again") as raised:
        ask(server)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["https://me:hunter2@host/v1", "https://host/v1?key=hunter2", "host/v1", "https://h:x/v1"],
)
def test_an_address_with_a_secret_or_none_is_refused_without_showing_it(url):
    with pytest.raises(ActcacheError, match="Pass it without") as raised:
        endpoint_of(url)
    assert "hunter2" not in str(raised.value)


def test_the_address_may_come_from_the_environment(monkeypatch):
    with EmbeddingServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        service = Service(endpoint=endpoint_of(None), model="m")
        embedded = embed_texts(["a"], service, names=["a"])
        assert embedded.settings["endpoint"] == server.url
        assert server.paths == ["/v1/embeddings"]
