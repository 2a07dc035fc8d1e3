"""The format: names, sizes, documents; anything that departs from it is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.errors import DamageError, FormatError, MismatchError
from actcache.store import schema
from actcache.store.documents import (
    column_document,
    decode,
    encode,
    parse_column,
    parse_root,
    parse_row_array,
    root_document,
    row_array_document,
)
from actcache.store.schema import DOCUMENT_LIMIT, Column, Ragged, Root, RowArray, shard_rows

DTYPES = ["float32", "float16", "bfloat16"]
ROOT = Root(
    kind="residuals", n=10, shard_rows=4, shard_reason="as asked", config={}, provenance={"a": 1}
)

row_arrays = st.tuples(
    st.sampled_from(["resid_post/prompt", "embed/fork", "difference_of_means/propensity"]),
    st.integers(1, 99),
    st.integers(1, 9999),
    st.sampled_from(DTYPES),
)


def test_a_shard_of_llama_2_7b_is_about_64_mb_and_of_whole_pages():
    rows, reason = shard_rows([RowArray("resid_post/prompt", 32, 4096, "bfloat16")], 10**6)
    assert rows == 256
    assert "67108864 bytes a shard" in reason


def test_a_shard_of_more_than_15_rows_has_a_multiple_of_16():
    assert (
        shard_rows([RowArray("resid_post/prompt", 33, 4096, "float16")], 10**6)[0] == 240
    )  # of 248
    assert shard_rows([RowArray("resid_post/prompt", 99, 65536, "float32")], 10**6)[0] == 2


def test_a_small_row_gives_shards_that_a_resume_can_afford():
    assert shard_rows([RowArray("embed/prompt", 1, 8, "float32")], 10**6) == (
        512,
        "at most 512 rows, so that an interrupted build loses little",
    )


def test_a_store_smaller_than_a_shard_has_one():
    assert shard_rows([RowArray("embed/prompt", 1, 8, "float32")], 37)[0] == 37


@given(st.lists(row_arrays, min_size=1, max_size=4), st.integers(1, 10**7))
def test_shards_stay_within_their_limits(kinds, n):
    arrays = [RowArray(*kind) for kind in kinds]
    rows, reason = shard_rows(arrays, n)
    largest = max(array.row_bytes for array in arrays)
    assert 1 <= rows <= min(n, 512)
    assert rows == 1 or rows * largest <= 64 << 20
    assert reason


@pytest.mark.parametrize(
    "name",
    ["", "/", "a//b", "../a", "a/..", ".hidden", "__init__", "commits", "commits/a", "c", "c.0",
     "a/c.0.0", "zarr.json", "a/zarr.json", "a\\b", "a:b", "a\n", "a\0", "end.", "end ", "x.tmp", "\ud800", "é" * 101],
)  # fmt: skip
def test_an_unsafe_path_is_refused_as_a_name(name):
    with pytest.raises(FormatError, match="Choose another name"):
        RowArray(name, 1, 1, "float32")


@pytest.mark.parametrize("name", ["a", "resid_post/prompt", "yes-no/propensity", "Müßiggang/é x"])
def test_names_of_behaviors_and_labels_are_allowed(name):
    assert RowArray(name, 1, 1, "float32").name == name


@pytest.mark.parametrize(("n_layers", "width"), [(0, 1), (1, 0), (1, 1 << 40)])
def test_an_array_of_no_or_absurd_size_is_refused(n_layers, width):
    with pytest.raises(FormatError, match="cannot be stored"):
        RowArray("a", n_layers, width, "float32")


@given(row_arrays)
def test_a_row_array_survives_its_document(kind):
    array = RowArray(*kind)
    document = decode(encode(row_array_document(array, ROOT)), "x")
    assert parse_row_array(array.name, document, root=ROOT, where="x") == array


@given(st.sampled_from(["bool", "int8", "uint64", "float16", "float64"]), st.integers(0, 99))
def test_a_column_survives_its_document(dtype, size):
    for column in (
        Column("id", "string", (size,), ("n",)),
        Column("layer", dtype, (size,), ("layer",)),
        Column("x", dtype, (3, size), ("n", None)),
        Column("x_offsets", "int64", (size,), (None,), "x"),
    ):
        document = decode(encode(column_document(column)), "x")
        assert parse_column(column.name, document, "x") == column


def test_the_root_survives_its_document():
    assert parse_root(decode(encode(root_document(ROOT)), "x"), "x") == ROOT


def test_a_newer_format_asks_for_an_upgrade():
    document = root_document(ROOT)
    document["attributes"]["format"] = 2
    with pytest.raises(FormatError, match=r"format 2; this actcache reads 1\. Upgrade actcache"):
        parse_root(document, "a.zarr")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("codecs", 0, "configuration", "index_location"), "start"),
        (("codecs", 0, "configuration", "codecs"), [{"name": "gzip"}]),
        (("codecs", 0, "configuration", "chunk_shape", 0), 5),
        (("chunk_grid", "configuration", "chunk_shape", 0), 4.0),
        (("chunk_key_encoding", "configuration", "separator"), "/"),
        (("fill_value",), 1.0),
        (("data_type",), "float64"),
        (("shape", 0), 11),
        (("shape", 1), True),
        (("attributes",), {"extra": 1}),
        (("storage_transformers",), [{"name": "x"}]),
    ],
)
def test_a_document_that_differs_anywhere_is_refused(at, value):
    document = row_array_document(RowArray("a", 3, 8, "float16"), ROOT)
    inner = document
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    with pytest.raises(DamageError, match="actcache verify"):
        parse_row_array("a", document, root=ROOT, where="a/zarr.json")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b"{}" + b" " * DOCUMENT_LIMIT,
     b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_bytes_that_are_not_a_document_are_refused(raw):
    with pytest.raises(DamageError, match="actcache verify"):
        decode(raw, "zarr.json")


def test_values_that_json_cannot_hold_are_refused_when_recorded():
    with pytest.raises(MismatchError, match="Change that field"):
        encode({"error": float("nan")})
    with pytest.raises(MismatchError, match="Record less"):
        encode({"left_out": "x" * DOCUMENT_LIMIT})


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1)), max_size=6))
def test_a_ragged_column_reads_like_its_list(rows):
    ragged = Ragged.of(rows)
    assert [row.tolist() for row in ragged] == rows
    assert len(ragged) == len(rows)
    if rows:
        assert ragged[-1].tolist() == rows[-1]
    with pytest.raises(IndexError):
        ragged[len(rows)]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 3, 2], [0, -1, 2]])
def test_offsets_that_do_not_cut_the_values_are_refused(offsets):
    with pytest.raises(FormatError, match=r"Ragged\.of"):
        Ragged(np.zeros(2, np.int32), np.array(offsets, np.int64))


def test_an_integer_of_more_than_32_bits_is_no_token():
    with pytest.raises(MismatchError, match="32 bits"):
        Ragged.of([[2**31]])


@pytest.mark.long
@pytest.mark.slow
def test_no_mutation_of_a_document_or_record_gets_past_the_reader_or_crashes_it():
    # In a process of its own, as users run it: checking every call against its types is slow.
    out = subprocess.run(
        [sys.executable, "-m", "tests.crash.fuzz_store", "--mutations", "2000", "--seed", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    counts = json.loads(out.stdout)
    assert counts["refused"] > 1500, counts  # what is left fell into free text, such as config


def test_the_format_is_described_in_one_place():
    text = schema.__doc__
    assert text is not None
    readme = Path(schema.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert text.split("\n\n", 1)[1].strip() in readme  # else: python -m tests.fill_readme
    for word in ("shard_rows", "commits", "crc32c", "sha256", "bfloat16", "vlen-utf8", ".partial"):
        assert word in text
    assert json.dumps(row_array_document(RowArray("a", 1, 1, "float32"), ROOT))
