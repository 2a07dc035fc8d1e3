"""The storage in a bucket, on a real server: equal to memory, and safe with several writers."""

import logging
import pickle
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actcache.errors import ActcacheError, BucketError, DamageError
from actcache.store.storage import MemoryStorage, S3Storage, require_create_only
from actcache.store.store import open_store
from actcache.store.verify import verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.store.test_storage import assert_same_answers
from tests.support.answer_proxy import AnswerProxy
from tests.support.processes import run_code
from tests.support.seaweedfs import BELOW_A_MINUTE, BUCKET, KEYS, OPEN_BUCKET, READER
from tests.support.stores import commit_next, example, fill, shaped, shapes

on_one_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def storage(bucket):
    return S3Storage(f"{bucket}/a.zarr")


def objects_of(storage):
    return {name: storage.read(name) for name in storage.sizes()}


def outcome(work):
    """Return the result of a call, or its error as text."""
    try:
        return work()
    except ActcacheError as error:
        return f"{type(error).__name__}: {error}"


# --- the same as memory ---------------------------------------------------------------------------

NAMES = ("a/b/x", "a/b/y", "a/c.0.0", "log/0", "zarr.json", "log-2")
FOLDERS = ("", "a", "a/b", "log", "nowhere")
BYTES = st.binary(max_size=4)


@st.composite
def operations(draw):
    """Draw a call of a storage: a method and its arguments."""
    name, raw = draw(st.sampled_from(NAMES)), draw(BYTES)
    start = draw(st.integers(0, 4))
    stop = draw(st.integers(start, 5))
    return draw(
        st.sampled_from(
            [
                ("write", name, [raw, np.arange(2, dtype=np.uint16)]),
                ("write", name, []),
                ("write_small", dict.fromkeys(NAMES[:3], raw)),
                ("put_if_absent", name, [raw, b"--"]),
                ("remove", name),
                ("remove", draw(st.sampled_from(FOLDERS[1:]))),
                ("exists", name),
                ("size", name),
                ("list", draw(st.sampled_from(FOLDERS))),
                ("sizes", draw(st.sampled_from(FOLDERS))),
                ("read", name),
                ("read_range", name, start, stop),
                ("read_ranges", [(name, start, stop), (NAMES[0], 0, start)]),
                ("read_many", [name, NAMES[0], name]),
            ]
        )
    )


def answer(storage, method, *arguments):
    """Return the result of a call in a form that does not depend on ETags and order."""
    result = outcome(lambda: getattr(storage, method)(*arguments))
    if method.startswith("read_") and method != "read_range":
        return outcome(lambda: list(result))
    if method == "put_if_absent":
        return bool(result)
    return sorted(result) if method == "list" else result


@pytest.mark.slow
@settings(on_one_server, max_examples=10)
@given(st.lists(operations(), min_size=5, max_size=25))
def test_any_calls_are_answered_as_memory_answers_them(storage, calls):
    storage.remove("")
    memory = MemoryStorage(storage.location)
    for call in calls:
        assert answer(storage, *call) == answer(memory, *call), call
        if call[0] in ("write", "write_small", "put_if_absent", "remove"):
            assert storage.sizes() == memory.sizes(), call
    assert objects_of(storage) == memory.objects
    assert storage.etags().keys() == memory.objects.keys()
    for name, etag in storage.etags().items():
        assert storage.etag(name) == etag != ""


@pytest.mark.slow
@settings(on_one_server, max_examples=3)
@given(shapes(), st.integers(0, 4))
def test_a_store_in_a_bucket_equals_one_in_memory(storage, plan, n_before):
    storage.remove("")
    config, values = shaped(**plan)
    contents, memory = StoreContents(**config), MemoryStorage()
    for place in (storage, memory):
        with Writer.resume(place, contents) as writer:  # interrupted once, anywhere
            for _ in range(n_before):
                if writer.committed < writer.n:
                    commit_next(writer, values)
        with Writer.resume(place, contents) as writer:
            fill(writer, values, certificate={"worst": 0.5})

    assert objects_of(storage) == memory.objects
    with open_store(storage, check=True) as fast, open_store(memory, check=True) as general:
        assert general.complete
        assert_same_answers(fast, general, np.random.default_rng(plan["seed"]))
    assert verify(storage) == []


def test_damage_is_the_same_in_a_bucket_and_in_memory(storage):
    config, values = example(n=3, shard_rows=2)
    with Writer.create(storage, StoreContents(**config)) as writer:
        fill(writer, values)
    memory = MemoryStorage(storage.location)
    memory.objects = objects_of(storage)
    shard = next(name for name in memory.objects if name.startswith("resid_post/prompt/c"))
    for name in (shard, "zarr.json", "commits/c.0.0"):
        raw = memory.objects[name]
        for damaged in (raw[:-1], raw[:-1] + bytes([raw[-1] ^ 1]), None):
            for place in (storage, memory):
                place.remove(name) if damaged is None else place.write(name, [damaged])
            # Checked twice: what `verify` says of all of it, and what opening says.
            assert outcome(lambda: verify(storage)) == outcome(lambda: verify(memory)) != []
        for place in (storage, memory):
            place.write(name, [raw])
    assert verify(storage) == []


def test_a_large_object_is_read_in_parts_and_written_from_parts(storage):
    values = np.random.default_rng(0).normal(size=(6, 500_000)).astype(np.float32)
    etag = storage.put_if_absent("large", [row.reshape(2, -1) for row in values])
    assert etag == storage.etag("large") == storage.etags()["large"]
    row_bytes = values[0].nbytes
    ranges = [("large", i * row_bytes, (i + 1) * row_bytes) for i in (4, 0, 5, 5, 1)]
    parts = [np.frombuffer(raw, np.float32) for raw in storage.read_ranges(ranges)]
    np.testing.assert_array_equal(parts, values[[4, 0, 5, 5, 1]])


def test_many_reads_keep_their_order_and_stop_at_the_first_that_is_damaged(storage):
    names = [f"log/{i}" for i in range(100)]
    storage.write_small({name: name.encode() for name in names[:70]})
    read = storage.read_many(names)
    assert [next(read) for _ in range(70)] == [name.encode() for name in names[:70]]
    with pytest.raises(DamageError, match=r"log/70' holds nothing"):
        next(read)


def test_a_folder_disappears_with_its_last_object(storage):
    storage.write_small({"a/b/x": b"1", "a/c/x": b"2"})
    assert sorted(storage.list("a")) == ["a/b/", "a/c/"]
    storage.remove("a/b/x")
    assert storage.list("a") == ["a/c/"]
    storage.remove("a")
    assert storage.list() == []


def test_sizes_and_etags_of_a_whole_store_take_one_request(storage, seaweedfs):
    storage.write_small({f"a/{i}/x": b"1" for i in range(60)})
    with AnswerProxy(seaweedfs.ports["s3"]) as proxy:
        through = S3Storage(storage.location, environment=on(seaweedfs, proxy))
        through.exists("a/0/x")  # first contact
        proxy.requests.clear()
        assert len(through.sizes()) == len(through.etags()) == 60
        assert len(proxy.requests) == 2


# --- several writers ------------------------------------------------------------------------------


def test_exactly_one_of_several_racing_writers_wins(storage):
    wins: dict[str, list[int]] = {f"log/{name}": [] for name in range(20)}
    start = threading.Barrier(16)

    def race(number):
        client = pickle.loads(pickle.dumps(storage))  # as in a process of its own
        start.wait()
        for name, winners in wins.items():
            if client.put_if_absent(name, [bytes([number]) * 100_000]):
                winners.append(number)

    racers = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    for name, [winner] in wins.items():
        assert storage.read(name) == bytes([winner]) * 100_000


def test_nobody_can_lock_a_bucket(storage):
    assert storage.is_shared
    first, second = storage.lock(), storage.lock()
    first()
    second()


def on(server, proxy):
    """The AWS variables that lead to a server through a proxy."""
    return {**server.environment, "AWS_ENDPOINT_URL": proxy.url}


def test_an_object_written_before_a_lost_answer_is_recognised(storage, seaweedfs):
    numbers = np.arange(100_000)
    parts: list[bytes | np.ndarray] = [b"first", numbers]
    with AnswerProxy(seaweedfs.ports["s3"], cut={0, 1}) as proxy:
        through = S3Storage(storage.location, environment=on(seaweedfs, proxy))
        etag = through.put_if_absent("x", parts)
        assert len(proxy.puts) == 3  # two answers were cut, the third said: exists already
        assert etag == storage.etag("x")
        assert storage.read("x") == b"first" + numbers.tobytes()
        assert through.put_if_absent("x", parts) is None  # nobody's answer was lost


def test_another_writers_object_is_a_conflict_even_after_a_lost_answer(storage, seaweedfs):
    parts = [b"ours"]
    for other in (b"them", b"longer"):
        storage.remove("x")

        def overtake(other=other):  # between our attempts, somebody replaces what we wrote
            storage.write("x", [other])

        with AnswerProxy(seaweedfs.ports["s3"], cut={0}, before_cut=overtake) as proxy:
            through = S3Storage(storage.location, environment=on(seaweedfs, proxy))
            assert through.put_if_absent("x", parts) is None
            assert len(proxy.puts) == 2
        assert storage.read("x") == other


def test_a_plain_write_whose_answer_was_lost_is_sent_again(storage, seaweedfs):
    with AnswerProxy(seaweedfs.ports["s3"], cut={0}) as proxy:
        S3Storage(storage.location, environment=on(seaweedfs, proxy)).write("x", [b"1"])
        assert len(proxy.puts) == 2
    assert storage.read("x") == b"1"


# --- what is refused ------------------------------------------------------------------------------

WRONG_SECRET = {**KEYS, "AWS_SECRET_ACCESS_KEY": "thewrongsecretoftests"}
UNKNOWN = {"AWS_ACCESS_KEY_ID": "unknownaccesskey", "AWS_SECRET_ACCESS_KEY": "unknownsecret"}
NOWHERE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("address", "change", "message"),
    [
        ("s3://nobody/a.zarr", {}, r"there is no bucket 'nobody' at http://127.*Create it, or"),
        (f"s3://{BUCKET}/a.zarr", UNKNOWN, r"does not know the access key.*Set AWS_ACCESS_KEY_ID"),
        (f"s3://{BUCKET}/a.zarr", WRONG_SECRET, r"signature.*Correct AWS_SECRET_ACCESS_KEY"),
        (f"s3://{BUCKET}/a.zarr", READER, r"not allow these keys to write there.*other keys"),
        pytest.param(
            *(
                f"s3://{BUCKET}/a.zarr",
                NOWHERE,
                r"did not answer for [2-9] s.*correct AWS_ENDPOINT",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bucket_that_cannot_be_written_is_refused_in_one_line(
    seaweedfs, address, change, message, caplog
):
    caplog.set_level(logging.DEBUG)
    environment = {**seaweedfs.environment, **change}
    storage = S3Storage(address, environment=environment)
    with pytest.raises(BucketError, match=message) as raised:
        require_create_only(storage)

    assert str(raised.value).startswith(f"'{address}': ")  # not what was tried beside it
    assert "\n" not in str(raised.value)
    assert raised.value.__context__ is raised.value.__cause__ is None
    written = (
        f"{raised.value!r} {storage!r} {storage.location} {caplog.text} {pickle.dumps(storage)!r}"
    )
    for key in (*KEYS.values(), *READER.values(), *UNKNOWN.values(), *WRONG_SECRET.values()):
        assert key not in written


AWS_WORDS = f"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match {KEYS["AWS_SECRET_ACCESS_KEY"]}
</Message><AWSAccessKeyId>{KEYS["AWS_ACCESS_KEY_ID"]}</AWSAccessKeyId>
<StringToSign>AWS4-HMAC-SHA256 20261122T000000Z</StringToSign></Error>"""


class LoudHandler(BaseHTTPRequestHandler):
    """Answers as AWS does, but with keys in the text."""

    def do_GET(self):
        raw = AWS_WORDS.replace("SignatureDoesNotMatch", self.path[1:].partition("?")[0]).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_args):
        pass


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "AccessDenied", "SomethingNew"])
def test_only_the_code_of_a_servers_error_is_shown(code):
    with ThreadingHTTPServer(("127.0.0.1", 0), LoudHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            # The bucket's name comes back as the code.
            storage = S3Storage(f"s3://{code}/a", environment={**KEYS, "AWS_ENDPOINT_URL": url})
            with pytest.raises(BucketError) as raised:
                storage.read("x")
        finally:
            server.shutdown()
            thread.join()

    shown = "".join(traceback.format_exception(raised.value))
    assert not any(secret in shown for secret in (*KEYS.values(), "HMAC", "<Code>"))
    assert raised.value.__context__ is None
    assert "\n" not in str(raised.value)
    assert code != "SomethingNew" or "refuses to list it (SomethingNew)" in str(raised.value)


def test_the_permissions_that_removal_needs_are_named(storage, seaweedfs):
    storage.write("x", [b"1"])
    reader = S3Storage(storage.location, environment={**seaweedfs.environment, **READER})
    assert reader.read("x") == b"1"
    with pytest.raises(BucketError, match="not allow these keys to remove there"):
        reader.remove("x")
    assert storage.exists("x")


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer_is_refused_within_seconds(seaweedfs):
    storage = S3Storage("s3://tests/a.zarr", environment={**seaweedfs.environment, **NOWHERE})
    with pytest.raises(
        BucketError,
        match=rf"http://127.0.0.1:9 did not answer for {BELOW_A_MINUTE} s.*correct AWS_ENDPOINT",
    ) as raised:
        storage.list()
    assert raised.value.__context__ is None


def test_an_endpoint_that_ignores_if_none_match_is_refused(storage, seaweedfs, monkeypatch):
    require_create_only(storage)
    assert storage.sibling(".probe").sizes() == {}
    for name in KEYS:  # the header is signed, where there are keys
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with AnswerProxy(seaweedfs.ports["s3"], without="if-none-match") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        unsigned = S3Storage(f"s3://{OPEN_BUCKET}/a.zarr")
        with pytest.raises(ActcacheError, match=r"replaces the first.*writes, or build into"):
            require_create_only(unsigned)
        assert unsigned.sibling(".probe").sizes() == {}


@pytest.mark.parametrize(
    "address",
    ["s3://", "s3://tests", "s3://tests/", "s3://tests//a", "s3://tests/a/../b", "tests/a"],
)
def test_an_address_that_names_no_store_is_refused(address):
    with pytest.raises(ActcacheError, match=r"names no store.*s3://BUCKET/STORE\.zarr"):
        S3Storage(address, environment={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY is not, expected both"),
        ({"AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID is not, expected both"),
        ({"AWS_ENDPOINT_URL": "http://me:secretofmine@127.0.0.1:9"}, "expected https://HOST"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:secretofmine"}, "expected https://HOST"),
    ],
)
def test_invalid_variables_are_refused_and_their_values_not_shown(change, message):
    with pytest.raises(ActcacheError, match=message) as raised:
        S3Storage("s3://tests/a", environment={**KEYS, **change})
    assert not any(value in str(raised.value) for value in (*KEYS.values(), "secretofmine"))


def test_without_keys_the_machine_is_asked_for_its_role(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # as on a machine without
    storage = S3Storage("s3://tests/a", patience=0.1, environment=NOWHERE)
    with pytest.raises(BucketError, match=r"no keys are set.*AWS_ACCESS_KEY_ID.*Set them"):
        storage.list()


# --- processes ------------------------------------------------------------------------------------


def test_a_pickled_storage_holds_no_keys(storage):
    storage.write("x", [b"1"])
    pickled = pickle.dumps(storage.sibling(""))
    assert not any(key.encode() in pickled for key in KEYS.values())
    code = """
        import pickle, sys
        print(pickle.loads(bytes.fromhex(sys.argv[1])).read("x"))
    """
    assert (
        run_code(code, pickled.hex()).stdout == "b'1'\n"
    )  # with the AWS variables of this process


def test_a_forked_process_is_refused_and_does_not_hang(storage):
    code = """
        import os, sys
        from actcache.errors import ActcacheError
        from actcache.store.storage import S3Storage
        storage = S3Storage(sys.argv[1])
        storage.write("x", [b"1"])
        if (child := os.fork()) == 0:
            try:
                storage.read("x")
            except ActcacheError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert "Start it with spawn" in run_code(code, storage.location).stdout


def test_obstore_is_imported_only_for_a_bucket_and_named_where_it_is_missing():
    code = """
        import sys
        from actcache.errors import ActcacheError
        from actcache.store import open_store
        from actcache.store.storage import S3Storage
        print("obstore" in sys.modules)
        sys.modules["obstore.store"] = None
        try:
            S3Storage("s3://tests/a", environment={})
        except ActcacheError as error:
            print(error)
    """
    assert run_code(code).stdout == (
        "False\n's3://tests' needs obstore, which is not installed. Install it: "
        "pip install 'actcache[s3]'.\n"
    )
