"""The encoder of a service: right answers from a server that misbehaves, nothing paid for twice."""

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actcache.encoders import default_keeper, encode, parse_encoder
from actcache.encoders.embedding_cache import Keeper
from actcache.encoders.openai import ask_service
from actcache.encoders.price import estimate_cost
from actcache.encoders.service import endpoint_of
from actcache.errors import ActcacheError, FormatError, MismatchError
from actcache.store.store import open_store
from tests.support.embedding_server import WIDTH, EmbeddingServer, vector_of
from tests.support.stores import build, example

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
TEXTS = [f"text {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False
    )  # not to wait for long


def ask(server, keeper, texts=TEXTS, **settings):
    settings = {"batch_texts": 5, "model": "m", "timeout": 5.0, **settings}
    return ask_service(texts, names=texts, base_url=server.url, keeper=keeper, **settings)


def right(texts, width=WIDTH):
    return np.stack([vector_of(text, width) for text in texts])


@pytest.mark.parametrize(
    "deed",
    [
        *("429", "500", "503", "drop", "html", "cut", "null", "fewer", "more", "ragged", "nan"),
        *("twice the same number", "overflow", "none", "zeros"),
    ],
)
def test_asks_again_after_a_failure_that_may_pass(deed, tmp_path):
    with EmbeddingServer("ok", deed) as server:
        found = ask(server, tmp_path / "kept")
    np.testing.assert_array_equal(found.vectors, right(TEXTS))
    asked = [each for each, _ in server.requests]
    assert asked == ["ok", deed, "ok", "ok"]


def test_a_vector_of_another_width_is_asked_for_again(tmp_path):
    with EmbeddingServer("ok", "wider") as server:
        found = ask(server, tmp_path / "kept")
    np.testing.assert_array_equal(found.vectors, right(TEXTS))


def test_a_silent_service_is_asked_again(tmp_path):
    with EmbeddingServer("slow", slow=1.5) as server:
        found = ask(server, tmp_path / "kept", timeout=0.3, texts=TEXTS[:5])
    np.testing.assert_array_equal(found.vectors, right(TEXTS[:5]))


def test_waits_as_long_as_the_service_says(tmp_path):
    with EmbeddingServer("429") as server:
        start = time.perf_counter()
        ask(server, tmp_path / "kept", texts=["a"])
    assert time.perf_counter() - start >= 0.2


def test_answers_are_put_into_the_order_of_the_texts(tmp_path):
    with EmbeddingServer(always="shuffled") as server:
        np.testing.assert_array_equal(ask(server, tmp_path / "kept").vectors, right(TEXTS))


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        ("500", r"\(500\) fails: the server is unwell. Try again later"),
        ("drop", "drops the connection. Check the address"),
        ("quota", r"\(429\) refuses more .* quota"),
        ("nan", "a vector that is not finite, 3 times, .* Use another model"),
        ("fewer", "4 vectors for 5 texts, 3 times"),
        ("null", "no answer of the protocol"),
    ],
)
def test_says_in_one_line_what_does_not_pass_and_keeps_what_it_got(deed, told, tmp_path):
    with EmbeddingServer("ok", always=deed) as server:
        with pytest.raises(ActcacheError, match=told) as raised:
            ask(server, tmp_path / "kept", retries=2)
        assert "\n" not in str(raised.value)
        n_asked = len(server.requests)
        assert 2 <= n_asked <= 4
        server.always = "ok"
        found = ask(server, tmp_path / "kept")
    np.testing.assert_array_equal(found.vectors, right(TEXTS))
    assert not {text for _, texts in server.requests[n_asked:] for text in texts} & set(TEXTS[:5])
    assert (found.n_kept, found.n_new) == (5, 7)


def test_a_service_that_never_answers_is_given_up_in_one_line(tmp_path):
    with (
        EmbeddingServer(always="slow", slow=1.0) as server,
        pytest.raises(ActcacheError, match=r"did not answer within 0.2 s.* Try again later"),
    ):
        ask(server, tmp_path / "kept", timeout=0.2, retries=1)


def test_a_model_whose_width_has_changed_is_an_error(tmp_path):
    with EmbeddingServer("ok", "ok", "ok", always="wider") as server:
        ask(server, tmp_path / "kept")
        with pytest.raises(ActcacheError, match=r"of 9 dimensions, .* of 8 dim.* another file"):
            ask(server, tmp_path / "kept", texts=["one more"])


def test_batches_that_a_service_refuses_are_halved(tmp_path):
    with EmbeddingServer(always="at most 3") as server:
        np.testing.assert_array_equal(
            ask(server, tmp_path / "kept", batch_texts=12).vectors, right(TEXTS)
        )
    assert [len(texts) for _, texts in server.requests] == [12, 6, 3, 3, 3, 3]


def test_the_text_that_a_service_refuses_is_named(tmp_path):
    texts = [*TEXTS, "x" * 101]
    with (
        EmbeddingServer(always="no long ones") as server,
        pytest.raises(
            ActcacheError, match=r"too long, even for .* 'x{101}' alone \(101 bytes\). Shorten"
        ),
    ):
        ask(server, tmp_path / "kept", texts=texts)


def test_batches_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("actcache.encoders.openai.BATCH_BYTES", 20)
    texts = ["a" * 8, "b" * 8, "c" * 8, "d" * 50, "e"]
    with EmbeddingServer() as server:
        np.testing.assert_array_equal(
            ask(server, tmp_path / "kept", texts=texts).vectors, right(texts)
        )
    assert [len(texts) for _, texts in server.requests] == [2, 1, 1, 1]


def test_dimensions_are_asked_for_and_kept_apart(tmp_path):
    with EmbeddingServer() as server:
        narrow = ask(server, tmp_path / "kept", dimensions=4)
        wide = ask(server, tmp_path / "kept")
        again = ask(server, tmp_path / "kept", dimensions=4)
    np.testing.assert_array_equal(narrow.vectors, right(TEXTS, 4))
    np.testing.assert_array_equal(wide.vectors, right(TEXTS))
    np.testing.assert_array_equal(again.vectors, narrow.vectors)
    assert again.n_new == 0
    assert {body.get("dimensions") for body in server.bodies} == {4, None}


def test_a_service_that_ignores_the_dimensions_is_an_error(tmp_path):
    with EmbeddingServer(always="wider") as server, pytest.raises(ActcacheError, match="of 5 dim"):
        ask(server, tmp_path / "kept", dimensions=4)


def test_an_empty_prompt_is_named_before_anything_is_asked(tmp_path):
    with EmbeddingServer() as server:
        with pytest.raises(ActcacheError, match=r"sample 'b' is empty.* Leave that sample out"):
            ask_service(["x", ""], names=["a", "b"], model="m", base_url=server.url)
        assert not server.requests


# --- what it costs --------------------------------------------------------------------------------


def test_the_cost_is_shown_before_the_first_request_and_may_prevent_it(tmp_path):
    seen = []

    def refuse(cost):
        seen.append(cost)
        raise ActcacheError("too dear")

    with EmbeddingServer() as server:
        with pytest.raises(ActcacheError, match="too dear"):
            ask(server, tmp_path / "kept", confirm=refuse)
        assert not server.requests
        ask(server, tmp_path / "kept", texts=TEXTS[:4])
        ask(server, tmp_path / "kept", confirm=seen.append)
        ask(server, tmp_path / "kept", confirm=seen.append)  # nothing is new: not asked
    assert [(cost.n_new, cost.n_kept) for cost in seen] == [(12, 0), (8, 4)]
    assert "price unknown" in str(seen[0])
    assert seen[0].tokens == sum(-(-len(text) // 4) for text in TEXTS)


def test_dollars_are_known_for_openais_own_models_and_place_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # it would fetch tables
    openai = endpoint_of(None)
    cost = estimate_cost(["x" * 4000], model="text-embedding-3-large", endpoint=openai, n_kept=0)
    assert cost.tokens == 1000
    assert cost.dollars == pytest.approx(0.13 / 1000)
    assert "about $0.0001 at prices of 20" in str(cost)
    assert estimate_cost(["x"], model="other", endpoint=openai, n_kept=0).dollars is None
    elsewhere = estimate_cost(["x"], model="text-embedding-3-large", endpoint="http://h", n_kept=0)
    assert elsewhere.dollars is None


def test_tokens_are_those_that_the_service_counted(tmp_path):
    with EmbeddingServer() as server:
        assert ask(server, tmp_path / "kept").tokens == sum(map(len, TEXTS))
        assert ask(server, tmp_path / "kept").tokens == 0


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["echo 400", "echo 401", "echo 404", "echo 500", "echo half"])
def test_the_key_is_in_no_error_log_or_file(deed, tmp_path, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with EmbeddingServer("ok", always=deed) as server, pytest.raises(ActcacheError) as raised:
        ask(server, tmp_path / "kept", retries=1)
    shown = "".join(traceback.format_exception(raised.value)) + str(capfd.readouterr())
    logged = "".join(record.getMessage() for record in caplog.records)
    for text in (shown, logged, (raised.value.__cause__ and repr(raised.value.__cause__)) or ""):
        assert not any(KEY[i : i + 8] in text for i in range(len(KEY) - 8))
    assert KEY[:8].encode() not in (tmp_path / "kept").read_bytes()


def test_the_key_is_in_no_settings(tmp_path):
    with EmbeddingServer() as server:
        assert KEY not in repr(ask(server, tmp_path / "kept"))


def test_a_refused_key_is_told_by_the_name_of_its_variable(tmp_path):
    with (
        EmbeddingServer(always="echo 401") as server,
        pytest.raises(ActcacheError, match=r"\(401\) refuses the key.* Set OPENAI_API_KEY"),
    ):
        ask(server, tmp_path / "kept")


def test_openai_needs_a_key_and_a_local_service_none(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ActcacheError, match=r"OPENAI_API_KEY is not set.* Set it"):
        ask_service(["a"], names=["a"], model="m", keeper=tmp_path / "kept")
    with EmbeddingServer() as server:
        np.testing.assert_array_equal(ask(server, tmp_path / "kept").vectors, right(TEXTS))


@pytest.mark.parametrize("key", ["sk-secret-with\nnewline", "sk-sécret-with-accent", "a secret b"])
def test_a_key_that_cannot_be_sent_is_not_shown(key, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with EmbeddingServer() as server, pytest.raises(ActcacheError, match="Set it again") as raised:
        ask(server, tmp_path / "kept")
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["https://me:hunter2@host/v1", "https://host/v1?key=hunter2", "host/v1", "https://h:x/v1"],
)
def test_an_address_with_a_secret_or_none_is_refused_without_showing_it(url):
    with pytest.raises(ActcacheError, match="Pass it without") as raised:
        endpoint_of(url)
    assert "hunter2" not in str(raised.value)


def test_the_address_may_come_from_the_environment(tmp_path, monkeypatch):
    with EmbeddingServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        found = ask_service(["a"], names=["a"], model="m", keeper=tmp_path / "kept")
        assert found.settings["endpoint"] == server.url
        assert server.paths == ["/v1/embeddings"]


# --- paid for once --------------------------------------------------------------------------------

EMBED = """
import sys
from pathlib import Path
from actcache.encoders.openai import ask_service
texts = [f"text {i}" for i in range(50)]
found = ask_service(texts, names=texts, model="m", base_url=sys.argv[1], keeper=Path(sys.argv[2]),
                    batch_texts=5)
sys.stdout.buffer.write(found.vectors.tobytes())
"""


def embed_elsewhere(server, keeper):
    return subprocess.Popen(
        [sys.executable, "-c", EMBED, server.url, str(keeper)], cwd=ROOT, stdout=subprocess.PIPE
    )


def kept_of(server, keeper, texts):
    with Keeper(keeper, encoder=(server.url, "m", None)) as file:
        missing = set(file.missing(texts))
    return [text for text in texts if text not in missing]


def test_a_killed_run_goes_on_and_asks_for_no_kept_text_again(tmp_path):
    texts = [f"text {i}" for i in range(50)]
    with EmbeddingServer(delay=0.15) as server:
        with embed_elsewhere(server, tmp_path / "kept") as process:
            deadline = time.monotonic() + 60
            while len(server.requests) < 5:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        kept = kept_of(server, tmp_path / "kept", texts)
        assert 15 <= len(kept) <= 45
        n_before = len(server.requests)
        server.delay = 0
        with embed_elsewhere(server, tmp_path / "kept") as process:
            resumed = process.stdout.read()
        assert process.returncode == 0
        assert not {text for _, some in server.requests[n_before:] for text in some} & set(kept)
        again = [text for text, times in Counter(server.texts).items() if times > 1]
        assert len(again) <= 5  # those that were on their way
    np.testing.assert_array_equal(np.frombuffer(resumed, "<f4").reshape(50, WIDTH), right(texts))


def test_ctrl_c_leaves_what_was_paid_for(tmp_path):
    def interrupt(done):
        if done:
            raise KeyboardInterrupt

    with EmbeddingServer() as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server, tmp_path / "kept", on_texts=interrupt)
        assert kept_of(server, tmp_path / "kept", TEXTS) == TEXTS[:5]


def test_two_processes_share_one_file(tmp_path):
    texts = [f"text {i}" for i in range(50)]
    with EmbeddingServer(delay=0.01) as server:
        processes = [embed_elsewhere(server, tmp_path / "kept") for _ in range(2)]
        found = [process.communicate()[0] for process in processes]
    for raw in found:
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(50, WIDTH), right(texts))


def test_a_process_that_runs_behind_another_does_not_ask_for_its_texts(tmp_path):
    with EmbeddingServer() as server:
        done: list[object] = []

        def other_comes_first(texts):
            if not done:
                done.append(texts)
                ask(server, tmp_path / "kept")

        ask(server, tmp_path / "kept", on_texts=other_comes_first)
    assert max(Counter(server.texts).values()) == 1


def test_writers_wait_for_one_another(tmp_path):
    start = threading.Barrier(8)

    def write(i):
        start.wait()
        for j in range(5):
            with Keeper(tmp_path / "kept", encoder=(i,)) as file:
                file.put({f"{i} {j} {k}": np.full(2, i, np.float32) for k in range(20)})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    for i in range(8):
        with Keeper(tmp_path / "kept", encoder=(i,)) as file:
            assert not file.missing([f"{i} {j} {k}" for j in range(5) for k in range(20)])


def test_models_endpoints_and_texts_are_kept_apart(tmp_path):
    encoders = [("a", "m", None), ("a", "n", None), ("b", "m", None), ("a", "m", 2)]
    for i, encoder in enumerate(encoders):
        with Keeper(tmp_path / "kept", encoder=encoder) as file:
            assert file.missing(["x", "y"]) == ["x", "y"]
            file.put({"x": np.full(2, i, np.float32)})
    for i, encoder in enumerate(encoders):
        with Keeper(tmp_path / "kept", encoder=encoder) as file:
            assert file.missing(["x", "y"]) == ["y"]
            np.testing.assert_array_equal(file.read(["x"]), [[i, i]])


def test_what_was_put_first_stays(tmp_path):
    with Keeper(tmp_path / "kept", encoder=("a",)) as file:
        file.put({"x": np.ones(2, np.float32)})
        file.put({"x": np.zeros(2, np.float32)})
        np.testing.assert_array_equal(file.read(["x"]), [[1, 1]])


def test_vectors_of_two_widths_are_not_kept_together(tmp_path):
    with Keeper(tmp_path / "kept", encoder=("a",)) as file:
        file.put({"x": np.ones(2, np.float32)})
        with pytest.raises(MismatchError, match=r"has 3 dimensions.* keeps 2 .* another file"):
            file.put({"y": np.ones(2, np.float32), "z": np.ones(3, np.float32)})
        assert file.missing(["x", "y"]) == ["y"]  # all of a batch, or none


def test_many_texts_are_read_in_order(tmp_path):
    texts = [f"text {i}" for i in range(1203)]
    with Keeper(tmp_path / "kept", encoder=("a",)) as file:
        file.put({text: vector_of(text) for text in texts})
        np.testing.assert_array_equal(file.read(texts[::-1]), right(texts[::-1]))


def test_no_text_is_kept(tmp_path):
    with Keeper(tmp_path / "kept", encoder=("a",)) as file:
        file.put({"a very private prompt": np.ones(2, np.float32)})
    assert b"private" not in (tmp_path / "kept").read_bytes()


@pytest.mark.parametrize("harm", ["noise", "middle", "vector", "something else", "newer"])
def test_a_damaged_file_is_told_in_one_line(harm, tmp_path):
    path = tmp_path / "kept"
    texts = [f"text {i}" for i in range(300)]
    if harm != "something else":
        with Keeper(path, encoder=("a",)) as file:
            file.put({text: vector_of(text, 64) for text in texts})
    match harm:
        case "noise":
            path.write_bytes(b"no database at all, " * 500)
        case "middle":
            raw = bytearray(path.read_bytes())
            raw[4096:-4096] = bytes(len(raw) - 8192)
            path.write_bytes(raw)
        case "vector":
            raw = path.read_bytes()
            old = vector_of(texts[0], 64).tobytes()
            assert raw.count(old) == 1
            path.write_bytes(raw.replace(old, bytes(4) + old[4:]))
        case "something else":
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("CREATE TABLE bookmarks (url TEXT)")
        case "newer":
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA user_version = 9")

    def read():
        with Keeper(path, encoder=("a",)) as file:
            file.missing(texts)
            file.read(texts)

    with pytest.raises(FormatError, match=r"move it away|another file") as raised:
        read()
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActcacheError, match="Name another"):
        Keeper(tmp_path / "file" / "kept", encoder=("a",))
    with pytest.raises(ActcacheError, match="Name another"):
        Keeper(tmp_path, encoder=("a",))


def test_the_file_lies_in_the_users_cache(tmp_path, monkeypatch):
    assert default_keeper() == tmp_path / "cache" / "actcache" / "embeddings.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_keeper() == tmp_path / ".cache" / "actcache" / "embeddings.sqlite"


# --- from a store ---------------------------------------------------------------------------------


def test_rows_of_a_store_are_embedded_once_each_text_and_scaled(tmp_path):
    settings, values = example()
    settings["columns"]["prompt"] = [f"prompt {i % 4}" for i in range(11)]
    settings["columns"]["system"] = ["" if i < 8 else "Be good." for i in range(11)]
    store = open_store(build(tmp_path / "a.zarr", settings, values))
    seen: list[int] = []
    with EmbeddingServer() as server:
        spec = parse_encoder("openai:text-embedding-3-large")
        first = encode(spec, store, base_url=server.url, on_rows=seen.append)
        second = encode(spec, store, base_url=server.url)
    framed = [f"prompt {i}" for i in range(4)] + [f"Be good.\n\nprompt {i}" for i in range(3)]
    assert server.texts == framed
    expected = right([*framed[:4], *framed[:4], *framed[4:]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(first.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(second.values, first.values)
    assert (first.n_new, first.n_kept, second.n_new, second.n_kept) == (7, 0, 0, 7)
    assert sum(seen) == 11
    assert first.settings == second.settings
    assert default_keeper().is_file()
    assert KEY not in repr(first.settings)
    assert os.environ["OPENAI_API_KEY"] == KEY
