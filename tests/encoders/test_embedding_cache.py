"""The file of paid embeddings: shared, safe from kills, and refused when it is damaged."""

import contextlib
import hashlib
import sqlite3
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from actcache.encoders import default_cache
from actcache.encoders.embedding_cache import EmbeddingCache
from actcache.errors import ActcacheError, FormatError, MismatchError
from tests.encoders.examples import right
from tests.support.embedding_server import vector_of


def test_writers_wait_for_one_another(tmp_path):
    start = threading.Barrier(8)

    def write(i):
        start.wait()
        for j in range(5):
            with EmbeddingCache(tmp_path / "cache.sqlite", encoder=(i,)) as file:
                file.put([f"{i} {j} {k}" for k in range(20)], np.full((20, 2), i, np.float32))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    for i in range(8):
        with EmbeddingCache(tmp_path / "cache.sqlite", encoder=(i,)) as file:
            assert not file.missing([f"{i} {j} {k}" for j in range(5) for k in range(20)])


def test_models_endpoints_and_texts_are_separate(tmp_path):
    encoders = [("a", "m", None), ("a", "n", None), ("b", "m", None), ("a", "m", 2)]
    for i, encoder in enumerate(encoders):
        with EmbeddingCache(tmp_path / "cache.sqlite", encoder=encoder) as file:
            assert file.missing(["x", "y"]) == ["x", "y"]
            file.put(["x"], np.full((1, 2), i, np.float32))
    for i, encoder in enumerate(encoders):
        with EmbeddingCache(tmp_path / "cache.sqlite", encoder=encoder) as file:
            assert file.missing(["x", "y"]) == ["y"]
            np.testing.assert_array_equal(file.read(["x"]), [[i, i]])


def test_the_first_vector_of_a_text_stays(tmp_path):
    with EmbeddingCache(tmp_path / "cache.sqlite", encoder=("a",)) as file:
        file.put(["x"], np.ones((1, 2), np.float32))
        file.put(["x"], np.zeros((1, 2), np.float32))
        np.testing.assert_array_equal(file.read(["x"]), [[1, 1]])


def test_vectors_of_another_width_are_refused(tmp_path):
    with EmbeddingCache(tmp_path / "cache.sqlite", encoder=("a",)) as file:
        file.put(["x"], np.ones((1, 2), np.float32))
        with pytest.raises(MismatchError, match=r"has 3 dimensions.* have 2.* another file"):
            file.put(["y", "z"], np.ones((2, 3), np.float32))
        assert file.missing(["x", "y"]) == ["y"]  # none of the batch


def test_many_texts_are_read_in_order(tmp_path):
    texts = [f"text {i}" for i in range(1203)]
    with EmbeddingCache(tmp_path / "cache.sqlite", encoder=("a",)) as file:
        file.put(texts, right(texts))
        np.testing.assert_array_equal(file.read(texts[::-1]), right(texts[::-1]))


def test_the_file_holds_no_text(tmp_path):
    with EmbeddingCache(tmp_path / "cache.sqlite", encoder=("a",)) as file:
        file.put(["a very private prompt"], np.ones((1, 2), np.float32))
    assert b"private" not in (tmp_path / "cache.sqlite").read_bytes()


@pytest.mark.parametrize("harm", ["noise", "middle", "vector", "something else", "newer"])
def test_a_damaged_or_foreign_file_is_refused_in_one_line(harm, tmp_path):
    path = tmp_path / "cache.sqlite"
    texts = [f"text {i}" for i in range(300)]
    if harm != "something else":
        with EmbeddingCache(path, encoder=("a",)) as file:
            file.put(texts, right(texts, 64))
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
        with EmbeddingCache(path, encoder=("a",)) as file:
            file.missing(texts)
            file.read(texts)

    with pytest.raises(FormatError, match=r"another file") as raised:
        read()
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActcacheError, match="Choose another file"):
        EmbeddingCache(tmp_path / "file" / "cache.sqlite", encoder=("a",))
    with pytest.raises(ActcacheError, match="Choose another file"):
        EmbeddingCache(tmp_path, encoder=("a",))


def test_the_default_file_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_cache() == tmp_path / "cache" / "actcache" / "embeddings.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "actcache" / "embeddings.sqlite"


def test_a_file_of_an_earlier_actcache_is_read_and_extended(tmp_path):
    path = tmp_path / "cache.sqlite"
    vector, encoder = np.arange(4, dtype="<f4"), '["https://h/v1", "m", null]'
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE encoders (name TEXT PRIMARY KEY, dimension INTEGER NOT NULL)")
        old.execute(
            "CREATE TABLE embeddings (digest BLOB PRIMARY KEY, vector BLOB NOT NULL, "
            "crc32 INTEGER NOT NULL) WITHOUT ROWID"
        )
        old.execute("PRAGMA user_version = 1")
        digest = hashlib.sha256(f"{encoder}\nx".encode()).digest()
        raw = vector.tobytes()
        old.execute("INSERT INTO encoders VALUES (?, 4)", (encoder,))
        old.execute("INSERT INTO embeddings VALUES (?, ?, ?)", (digest, raw, zlib.crc32(raw)))
        old.commit()

    with EmbeddingCache(path, encoder=("https://h/v1", "m", None)) as file:
        assert file.missing(["x", "y"]) == ["y"]
        file.put(["y"], np.ones((1, 4), np.float32))
        np.testing.assert_array_equal(file.read(["y", "x"]), [np.ones(4), vector])


@pytest.mark.parametrize("width", ["abc", -3, 10**12, 2.5, b"\x00"])
def test_a_width_that_is_none_is_damage(tmp_path, width):
    path, encoder = tmp_path / "cache.sqlite", ("a", "m", None)
    with EmbeddingCache(path, encoder=encoder) as file:
        file.put(["x"], np.ones((1, 2), np.float32))
    with contextlib.closing(sqlite3.connect(path)) as damaged:
        damaged.execute("UPDATE encoders SET dimension = ?", (width,))
        damaged.commit()

    with (
        EmbeddingCache(path, encoder=encoder) as file,
        pytest.raises(FormatError, match="Choose another file"),
    ):
        file.read(["x"])
