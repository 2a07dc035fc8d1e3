"""Every way in builds a store that equals the one of the same rows as `.jsonl`, byte for byte."""

import gzip
import io
import json
import sys
from typing import Any

import numpy as np
import pytest

from actcache.build import build_store
from actcache.build.row_columns import row_columns
from actcache.data import read_samples
from actcache.encoders.base import texts_of
from actcache.exchange import export, import_store
from actcache.store import merge, open_store
from actcache.store.verify import verify
from tests.support.rows import table
from tests.support.tiny import save

pd = pytest.importorskip("pandas", reason="the package pandas is not installed")
datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

PAIRS = [
    {
        "prompt": f"Is it, {i}, or not?",
        "positive": " (A)" if i % 2 else " (B)",
        "negative": " (B)" if i % 2 else " (A)",
        "topic": ('a, "b"\tc', "ü")[i % 2],
        "level": i,
    }
    for i in range(6)
]
LABELS = [{"prompt": f"Do {i}.", "label": "bad" if i % 2 else "good", "level": i} for i in range(6)]
ONE_LABEL = [row | {"label": "good"} for row in LABELS]
PROMPTS = [{"prompt": f"Tell {i}."} for i in range(6)]
MESSAGES = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS]
RENAMED = [
    {"question": row["prompt"], "side": row["label"], "level": row["level"]} for row in LABELS
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": PAIRS,
    "labels": LABELS,
    "one label": ONE_LABEL,
    "prompts": PROMPTS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def of_jsonl(folder):
    return {
        kind: built(folder, path_of(folder, kind, rows, "jsonl")) for kind, rows in ROWS.items()
    }


def built(folder, data, **arguments):
    out = folder / f"{len(list(folder.glob('*.zarr')))}.zarr"
    return build_store(
        data, out, model=folder / "model", store_dtype="float32", note=print, **arguments
    )


def path_of(folder, kind, rows, ending):
    """The rows as a file called `mood`, in a folder of their own."""
    place = folder / f"{kind} {ending}"
    place.mkdir(exist_ok=True)
    path = place / f"mood.{ending}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "parquet":
        pd.DataFrame(rows).to_parquet(path)
        return path
    cells = table(rows[0], *(row.values() for row in rows))
    tabs = "\n".join(
        "\t".join(
            '"' + str(x).replace('"', '""') + '"' for x in row
        )
        for row in (rows[0], *(row.values() for row in rows))
    ).encode()  # fmt: skip
    name = ending.removesuffix(".gz")
    listed = json.dumps(rows).encode()
    content = {"jsonl": lines, "json": listed, "csv": cells, "tsv": tabs}[name]
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return path


def dataset_folder(folder, kind, rows):
    path = folder / f"{kind} saved" / "mood"
    parts = {"train": datasets.Dataset.from_list(rows[:1]), "dev": datasets.Dataset.from_list(rows)}
    datasets.DatasetDict(parts).save_to_disk(path)
    return path


def assert_equal(store, expected, *, texts=()):
    assert verify(store.path) == []
    assert store.arrays == expected.arrays
    assert store.arrays
    for name in store.arrays:
        assert store.array(name)[...].tobytes() == expected.array(name)[...].tobytes(), name
    assert [*store.columns] == [*expected.columns]
    for name in store.columns:
        old = expected[name].astype(str) if name in texts else expected[name]
        np.testing.assert_array_equal(store[name], old)
    assert store.provenance["data_sha256"] == expected.provenance["data_sha256"]


@pytest.mark.model
@pytest.mark.parametrize(
    "ending", ["json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz"]
)
@pytest.mark.parametrize("kind", ROWS)
def test_a_file_of_any_kind_builds_the_store_of_the_jsonl(folder, of_jsonl, kind, ending):
    store = built(folder, path_of(folder, kind, ROWS[kind], ending))

    as_text = ("level",) if ending[0] in "ct" else ()  # cells are text
    assert_equal(store, of_jsonl[kind], texts=as_text)


@pytest.mark.model
@pytest.mark.parametrize("way", ["list", "generator", "frame", "dataset", "dict", "folder", "-"])
@pytest.mark.parametrize("kind", ROWS)
def test_rows_in_memory_build_the_store_of_the_jsonl(folder, of_jsonl, kind, way, monkeypatch):
    rows = ROWS[kind]
    if way == "folder":
        store = built(folder, dataset_folder(folder, kind, rows), split="dev")
    elif way == "-":
        typed = path_of(folder, kind, rows, "jsonl").read_bytes()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        store = built(folder, {"mood": "-"})
    else:
        data = {
            "list": lambda: rows,
            "generator": lambda: (row for row in rows),
            "frame": lambda: pd.DataFrame(rows),
            "dataset": lambda: datasets.Dataset.from_list(rows),
            "dict": lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(rows)),
        }[way]()
        store = built(folder, {"mood": data})

    assert_equal(store, of_jsonl[kind])


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "data", "arguments"),
    [
        ("prompts", [row["prompt"] for row in PROMPTS], {}),
        ("prompts", MESSAGES, {}),
        ("prompts", pd.DataFrame(MESSAGES), {}),
        ("prompts", datasets.Dataset.from_list(MESSAGES), {}),
        ("labels", RENAMED, {"map": {"prompt": "question", "label": "side"}}),
        ("labels", LABELS + ONE_LABEL, {"limit": len(LABELS)}),
    ],
    ids=["texts", "messages", "messages frame", "messages dataset", "map", "limit"],
)
def test_rows_said_in_another_way_build_the_same_store(folder, of_jsonl, kind, data, arguments):
    store = built(folder, {"mood": data}, **arguments)

    if "map" in arguments:  # the renamed keys come last
        assert {*store.columns} == {*of_jsonl[kind].columns}
    assert_equal(store, of_jsonl[kind])


@pytest.mark.model
def test_other_keys_are_columns(of_jsonl):
    store = open_store(of_jsonl["pairs"].path)

    assert store["topic"].tolist() == [row["topic"] for row in PAIRS]
    assert store["level"].dtype == np.int64
    assert store["level"].tolist() == [*range(6)]
    assert store.rows(topic="ü").tolist() == [False, True] * 3
    assert [kind for kind in of_jsonl if of_jsonl[kind].row_kind == "prompts"] == ["prompts"]


@pytest.mark.model
def test_a_conversation_is_rendered_turn_by_turn(folder):
    from transformers import AutoTokenizer

    talks = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Hello {i}."},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "And you?"},
        ]
        for i in range(3)
    ]
    store = built(folder, {"talk": [{"messages": talk} for talk in talks]})
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    assert [json.loads(text) for text in store["history"]] == [talk[1:3] for talk in talks]
    assert store["system"].tolist() == ["Be brief."] * 3
    assert store["prompt"].tolist() == ["And you?"] * 3
    for tokens, talk in zip(store.ragged("prompt_tokens"), talks, strict=True):
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.tolist()[-len(ids) :] == ids
        assert len(tokens) - len(ids) <= 1  # BOS
    assert texts_of(store)[1] == "Be brief.\n\nHello 1.\n\nHi!\n\nAnd you?"


def test_other_keys_become_columns_of_their_kind_or_are_said_to_be_ignored():
    rows = [
        {"prompt": "a", "n": 1, "x": 1, "ok": True, "big": 2**60, "mix": 1, "j": {"k": [1]}},
        {"prompt": "b", "n": 2, "x": None, "ok": False, "big": None, "mix": "b", "j": None},
        {"prompt": "c", "n": 3, "x": 0.5, "ok": True, "big": 1, "mix": True, "late": "\ud800"},
    ]
    bad = {"digest": "a", "Label": "b", "a/b": 1, ".hidden": 1, "raw": b"x", "none": None}
    collected = row_columns(read_samples([rows[0] | bad, *rows[1:]]), ["resid_post"])

    assert {name: [*values] for name, values in collected.values.items()} == {
        "n": [1, 2, 3],
        "x": [1.0, pytest.approx(float("nan"), nan_ok=True), 0.5],
        "ok": [True, False, True],
        "big": [str(2**60), "", "1"],
        "mix": ["1", "b", "true"],
        "j": ['{"k": [1]}', "", ""],
        "late": ["", "", "?"],
    }
    kinds = [np.asarray(collected.values[name]).dtype.kind for name in ("n", "x", "ok", "big")]
    assert kinds == ["i", "f", "b", "U"]
    assert [note.split("'")[1] for note in collected.notes] == [
        "digest",
        "Label",
        "a/b",
        ".hidden",
        "raw",
    ]
    assert all("is ignored" in note for note in collected.notes)


@pytest.mark.model
def test_stores_with_other_columns_of_their_own_are_merged(folder):
    rows = [
        {"prompt": "a", "n": 1, "s": "x", "mix": 1},
        {"prompt": "b", "n": 2, "s": "y", "mix": 2},
    ]
    more = [{"prompt": "c", "mix": "m", "new": True}]
    paths = [built(folder, {name: part}).path for name, part in (("one", rows), ("two", more))]

    merged = merge(paths, folder / "merged.zarr").store
    assert verify(merged.path) == []
    assert merged["n"].tolist()[:2] == [1.0, 2.0]
    assert np.isnan(merged["n"][2])
    assert merged["s"].tolist() == ["x", "y", ""]
    assert merged["mix"].tolist() == ["1", "2", "m"]
    assert np.isnan(merged["new"][:2]).all()
    assert merged["new"][2] == 1.0
    back = merge(paths[::-1], folder / "back.zarr").store
    assert sorted(back.columns) == sorted(merged.columns)


@pytest.mark.model
@pytest.mark.parametrize("form", ["hdf5", "archive"])
def test_columns_of_rows_survive_export_and_import(folder, of_jsonl, form, tmp_path):
    store = of_jsonl["pairs"]
    file = tmp_path / {"hdf5": "s.h5", "archive": "s.tar"}[form]
    export(store, file, to=form)
    again = import_store(file, tmp_path / "again.zarr")

    assert_equal(again, store)
    assert again.digest == store.digest
