"""Subset and merge: the values that were asked for, under their own numbers, or a clear refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.cli.main import main
from actcache.errors import (
    FormatError,
    IncompleteStoreError,
    MismatchError,
    StoreExistsError,
)
from actcache.store.copies.copy import subset
from actcache.store.copies.merge import merge
from actcache.store.copies.selection import Selection, require_all_layers, select_rows
from actcache.store.store import open_store, verify
from tests.support.processes import kill_after
from tests.support.stores import build, example, file_bytes, scratch, shaped, shapes

CERTIFICATE = {"rows": ["row-1"], "largest_relative_error": [0.1, 0.2, 0.3], "sites": {"a": 0.3}}


def rows_example(n=11, *, seed=0, first=0, shard_rows=4):
    """A store with the columns that a build gives, its ids counted from `first`."""
    given, values = example(n=n, seed=seed, shard_rows=min(shard_rows, n))
    del given["columns"]["layer"]
    given["columns"] |= {
        "id": [f"row-{i + first}" for i in range(n)],
        "split": [("train", "test")[i % 2] for i in range(n)],
        "variant": ["base"] * n,
        "digest": [f"{i:016x}" for i in range(n)],
        "prompt": [f"Is {i + first} odd?" for i in range(n)],
    }
    given["provenance"] |= {"data_sha256": "cd" * 32, "left_out": []}
    given["provenance"]["model"] |= {"name": "tiny", "dtype": "float32"}
    return given, values


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "s.zarr", *rows_example(), certificate=CERTIFICATE)


def kept_bits(store, name):
    array = store.array(name)
    return (array.bits if array.dtype == "bfloat16" else array)[:]


@settings(max_examples=25)
@given(shape=shapes(), data=st.data())
def test_a_subset_holds_the_rows_and_layers_that_were_asked_for(shape, data):
    given_, values = shaped(**shape)
    n, layers = shape["n"], given_["arrays"][0].n_layers
    for array in given_["arrays"]:
        if array.n_layers != layers and not array.name.startswith("embed/"):
            return
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1))
    some = data.draw(st.lists(st.integers(0, layers - 1), min_size=1, unique=True))
    with scratch() as folder:
        source = build(Path(folder) / "s.zarr", given_, values)
        copied = subset(
            source, Path(folder) / "t.zarr", selection=Selection(rows=np.array(rows), layers=some)
        )
        expected = sorted(set(rows))
        for name, array in values.items():
            right = array[expected]
            if not name.startswith("embed/"):
                right = right[:, sorted(some)]
            np.testing.assert_array_equal(kept_bits(copied, name), right)
        assert copied["id"].tolist() == [f"row-{i}" for i in expected]
        assert [row.tolist() for row in copied.ragged("prompt_tokens")] == [
            list(range(i % 5)) for i in expected
        ]
        assert copied.layers.tolist() == sorted(some)
        assert verify(copied.path) == []


def test_rows_are_selected_by_behavior_split_and_id(store):
    opened = open_store(store)
    chosen = select_rows(
        opened, Selection(behaviors=["narcissism"], splits=["train"], ids=["row-2", "row-4"])
    )

    assert chosen.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"behaviors": ["pride"]}, "'pride'; expected some of 'müßiggang', 'narcissism'"),
        ({"ids": ["row-1", "nobody"]}, "1 of the 2 ids"),
        ({"behaviors": ["müßiggang"], "ids": ["row-1"]}, "4 of behavior müßiggang; 1 of 1 ids"),
        ({"rows": np.array([11])}, "rows 0 to 10"),
        ({"layers": [3]}, "layers 0 to 2"),
        ({"positions": ["answer"]}, "has prompt, fork"),
        ({"sites": ["resid_mid"]}, "has resid_post, embed"),
        ({"positions": ["fork"], "sites": ["embed"]}, "Drop a condition"),
    ],
)
def test_a_selection_that_a_store_lacks_is_refused_with_those_it_has(
    store, tmp_path, asked, message
):
    with pytest.raises(MismatchError, match=message):
        subset(store, tmp_path / "t.zarr", selection=Selection(**asked))
    assert not (tmp_path / "t.zarr.partial").exists()


def test_layers_keep_their_numbers_through_two_subsets(store, tmp_path):
    whole = open_store(store)
    once = subset(store, tmp_path / "a.zarr", selection=Selection(layers=[1, 2]))
    twice = subset(
        once.path, tmp_path / "b.zarr", selection=Selection(layers=[2], positions=["prompt"])
    )

    assert twice.arrays == ["resid_post/prompt", "embed/prompt"]
    assert twice.layers.tolist() == [2]
    np.testing.assert_array_equal(twice.resid("prompt").layer(2), whole.resid("prompt").layer(2))
    np.testing.assert_array_equal(
        once.resid("fork").bits.layer(1), whole.resid("fork").bits.layer(1)
    )
    np.testing.assert_array_equal(
        twice.resid("prompt", site="embed")[:], whole.resid("prompt", site="embed")[:]
    )
    with pytest.raises(IndexError, match=r": 2$"):
        twice.resid("prompt").layer(0)
    assert twice.certificate["largest_relative_error"] == [0.3]


def test_a_store_of_some_layers_is_refused_where_all_are_needed(store, tmp_path):
    some = subset(store, tmp_path / "t.zarr", selection=Selection(layers=[1, 2]))

    require_all_layers(open_store(store))
    with pytest.raises(MismatchError, match=r"layers 1, 2 of a model of 3.*taken from"):
        require_all_layers(some)


def test_a_subset_says_what_it_was_made_from(store, tmp_path):
    whole = open_store(store)
    once = subset(store, tmp_path / "a.zarr", selection=Selection(behaviors=["narcissism"]))
    twice = subset(once.path, tmp_path / "b.zarr", selection=Selection(splits=["test"]))

    made = twice.provenance["subset_of"]
    assert made["digest"] == once.digest
    assert made["selection"]["splits"] == ["test"]
    assert made["subset_of"]["digest"] == whole.digest
    assert made["subset_of"]["selection"]["behaviors"] == ["narcissism"]
    assert len({store.provenance["data_sha256"] for store in (whole, once, twice)}) == 3


def test_the_digest_of_the_data_is_that_of_a_build_of_those_rows(tmp_path):
    from actcache.data.samples import Sample, samples_digest

    samples = [
        Sample(id=f"row-{i}", behavior="b", prompt=f"{i}?", positive="(A)", negative="(B)",
               label=None, letter="A", split="train")
        for i in range(4)
    ]  # fmt: skip
    given_, values = rows_example(4)
    given_["columns"] |= {
        name: [str(getattr(sample, name)) for sample in samples]
        for name in ("id", "split", "digest", "prompt")
    }
    given_["provenance"]["data_sha256"] = samples_digest(samples)
    build(tmp_path / "s.zarr", given_, values)
    copied = subset(tmp_path / "s.zarr", tmp_path / "t.zarr", selection=Selection(ids=["row-2"]))

    assert copied.provenance["data_sha256"] == samples_digest(samples[2:3])


def test_a_damaged_block_is_not_copied(store, tmp_path):
    shard = next((store / "resid_post" / "fork").glob("c.1*"))
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 1
    shard.write_bytes(bytes(raw))

    with pytest.raises(FormatError, match="checksum"):
        subset(store, tmp_path / "t.zarr", selection=Selection())
    subset(store, tmp_path / "t.zarr", selection=Selection(layers=[1]), overwrite=True)


def test_the_source_is_never_written_over(store):
    before = file_bytes(store)
    with pytest.raises(MismatchError, match="another path"):
        subset(store, store, selection=Selection(), overwrite=True)
    with pytest.raises(StoreExistsError):
        subset(store, make_other(store), selection=Selection())
    assert file_bytes(store) == before


def make_other(store):
    return build(store.with_name("other.zarr"), *rows_example(seed=3))


def test_parts_merged_again_are_the_whole(store, tmp_path):
    whole = open_store(store)
    names = ["müßiggang", "narcissism"]
    parts = [
        subset(store, tmp_path / f"{i}.zarr", selection=Selection(behaviors=[name])).path
        for i, name in enumerate(names)
    ]
    merged = merge(parts, tmp_path / "m.zarr").store

    order = np.concatenate([np.flatnonzero(whole["behavior"] == name) for name in names])
    for name in whole.arrays:
        np.testing.assert_array_equal(kept_bits(merged, name), kept_bits(whole, name)[order])
    for name in whole.columns:
        np.testing.assert_array_equal(merged[name], whole[name][order])
    ragged = whole.ragged("prompt_tokens")
    assert [row.tolist() for row in merged.ragged("prompt_tokens")] == [
        ragged[int(i)].tolist() for i in order
    ]
    assert verify(merged.path) == []
    assert [source["n"] for source in merged.provenance["merged"]] == [4, 7]
    assert merged.certificate["largest_relative_error"] == [0.1, 0.2, 0.3]
    assert merged.certificate["rows"] == ["row-1", "row-1"]


def other_store(tmp_path, change):
    """A store whose rows could be merged with `store`'s, but for one change."""
    given_, values = rows_example(seed=1, first=100)
    change(given_, values)
    return build(tmp_path / "other.zarr", given_, values)


def as_float32(given_, values):
    given_["arrays"][0] = replace(given_["arrays"][0], dtype="float32")
    values["resid_post/prompt"] = values["resid_post/prompt"].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g, _v: g["provenance"]["model"].update(weights_sha256="ff" * 32),
            r"model.weights_sha256': 'abab.*' and 'ffff",
        ),
        (
            lambda g, _v: g["provenance"].update(tokenizer={"template": "x"}),
            r"tokenizer.template': None and 'x'",
        ),
        (lambda g, _v: g["provenance"].update(mode="folded"), "mode': None and 'folded'"),
        (lambda g, _v: g["config"].update(answer="last"), "answer': None and 'last'"),
        (as_float32, "resid_post/prompt.dtype': 'float16' and 'float32'"),
        (
            lambda g, v: (g["arrays"].pop(1), v.pop("resid_post/fork")),
            r"positions': \['prompt', 'fork'\] and \['prompt'\]",
        ),
        (lambda g, _v: g["columns"].pop("embedding"), r"embedding': 'float32 \[n, 2\]' and None"),
        (
            lambda g, _v: g["columns"].update(id=["row-3", *(f"x{i}" for i in range(10))]),
            "id 'row-3' is in .*s.zarr' and in .*other.zarr'",
        ),
    ],
)
def test_stores_that_are_not_comparable_are_not_merged(store, tmp_path, change, message):
    other = other_store(tmp_path, change)

    with pytest.raises(MismatchError, match=message):
        merge([store, other], tmp_path / "m.zarr")


def test_settings_that_do_not_affect_values_may_differ_and_are_recorded(store, tmp_path):
    def change(given_, _values):
        given_["config"] |= {"batch_tokens": 7}
        given_["provenance"] |= {"device": "cuda", "left_out": [{"id": "long"}]}

    other = other_store(tmp_path, change)
    merged = merge([store, other], tmp_path / "m.zarr").store

    assert merged.config["batch_tokens"] == 64
    assert [source.get("config") for source in merged.provenance["merged"]] == [
        None,
        {"batch_tokens": 7},
    ]
    assert merged.provenance["merged"][1]["device"] == "cuda"
    assert merged.left_out == [{"id": "long"}]


def test_prompts_in_train_and_test_after_a_merge_are_counted(store, tmp_path):
    def change(given_, _values):
        given_["columns"] |= {"prompt": [f"is {i} ODD?" for i in range(1, 12)]}  # sides swapped

    other = other_store(tmp_path, change)
    leaked = merge([store, other], tmp_path / "m.zarr").n_leaked

    rows = [
        *zip(*(open_store(store)[x].tolist() for x in ("behavior", "prompt", "split")), strict=True)
    ]
    added = [
        *zip(*(open_store(other)[x].tolist() for x in ("behavior", "prompt", "split")), strict=True)
    ]
    both = [(b, " ".join(p.split()).casefold(), s) for b, p, s in rows + added]
    expected = sum(s == "test" and any(o == (b, p, "train") for o in both) for b, p, s in both)
    assert leaked == expected > 0


def test_one_store_cannot_be_merged(store, tmp_path):
    with pytest.raises(MismatchError, match="Pass another"):
        merge([store], tmp_path / "m.zarr")


KILLED = """
import sys
from actcache.store.copies.copy import subset
from actcache.store.copies.merge import merge
from actcache.store.copies.selection import Selection
what, *sources, out = sys.argv[1:]
if what == "subset":
    subset(sources[0], out, selection=Selection(), shard_rows=4)
else:
    merge(sources, out, shard_rows=4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["subset", "merge"])
def test_a_killed_copy_is_unfinished_and_resuming_it_gives_the_same_store(store, tmp_path, command):
    other = build(tmp_path / "other.zarr", *rows_example(n=20, seed=1, first=100))
    sources = [other] if command == "subset" else [store, other]

    def run(out, **how):
        if command == "subset":
            return subset(other, out, selection=Selection(), shard_rows=4, **how)
        return merge(sources, out, shard_rows=4, **how).store

    out = tmp_path / "killed.zarr"
    kill_after(12, KILLED, command, *sources, out)

    with pytest.raises(IncompleteStoreError):
        open_store(out)
    held = open_store(out, partial=True).n
    counts: list[int] = []
    resumed = run(out, resume=True, on_rows=counts.append)
    assert 12 <= held == counts[0] < resumed.n == sum(counts)
    assert resumed.digest == run(tmp_path / "whole.zarr").digest


def test_the_commands_select_merge_and_report(store, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("row-1\nrow-3\n\n", encoding="utf-8")

    def run(*words):
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    def made(name):
        return open_store(tmp_path / name)["id"].tolist()

    whole = ["subset", store, "-o"]
    assert run(*whole, tmp_path / "a", "--behavior", "müßiggang", "--json")[0] == 0
    assert made("a") == ["row-0", "row-3", "row-6", "row-9"]
    assert run(*whole, tmp_path / "b", "--ids", tmp_path / "ids.txt", "--layers", "0,2")[0] == 0
    assert made("b") == ["row-1", "row-3"]
    assert open_store(tmp_path / "b").layers.tolist() == [0, 2]
    options = ["--rows", "1:3,5", "--positions", "prompt", "--sites", "resid_post"]
    assert run(*whole, tmp_path / "c", *options)[0] == 0
    assert made("c") == ["row-1", "row-2", "row-5"]
    assert open_store(tmp_path / "c").arrays == ["resid_post/prompt"]
    assert run(*whole, tmp_path / "d", "--split", "test", "--variant", "base")[0] == 0
    assert made("d") == [f"row-{i}" for i in range(1, 11, 2)]
    code, _, message = run(*whole, tmp_path / "e", "--rows", "1-3")
    assert code == 1
    assert "rows are '1-3'" in message
    code, _, message = run(*whole, tmp_path / "e", "--label", "True", "--rows", "1")
    assert code == 1
    assert "6 of label True; 1 of the row numbers" in message

    assert run("merge", tmp_path / "a", tmp_path / "d", "-o", tmp_path / "m")[0] == 1
    other = make_other(store)  # the same ids
    assert run("subset", other, "-o", tmp_path / "f", "--rows", "1:3")[0] == 0
    code, _, message = run("merge", tmp_path / "a", tmp_path / "f", "-o", tmp_path / "m")
    assert code == 0
    assert made("m") == ["row-0", "row-3", "row-6", "row-9", "row-1", "row-2"]
    assert "warning" not in message
