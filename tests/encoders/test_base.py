"""Names of encoders, the text of a row, and vectors of length 1."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.encoders import base, parse_encoder, texts_of
from actcache.encoders.base import distinct, texts_digest, unit_rows
from actcache.errors import ActcacheError, NotFiniteError
from tests.encoders.examples import store_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cache", {"kind": "cache", "position": "prompt", "layer": None}),
        ("cache:0", {"kind": "cache", "position": "prompt", "layer": 0}),
        ("cache:prompt:12", {"kind": "cache", "position": "prompt", "layer": 12}),
        ("cache:mean", {"kind": "cache", "position": "mean", "layer": None}),
        ("cache:mean:0", {"kind": "cache", "position": "mean", "layer": 0}),
        ("hf:bert-base-uncased", {"kind": "hf", "model": "bert-base-uncased", "pooling": None}),
        ("hf:a/b:cls", {"kind": "hf", "model": "a/b", "pooling": "cls"}),
        (r"hf:C:\models\x:mean", {"kind": "hf", "model": r"C:\models\x", "pooling": "mean"}),
        ("openai:m", {"kind": "openai", "model": "m", "dimensions": None}),
        ("openai:m:256", {"kind": "openai", "model": "m", "dimensions": 256}),
        ("openai:nomic:v1.5", {"kind": "openai", "model": "nomic:v1.5", "dimensions": None}),
    ],
)
def test_a_name_is_parsed(text, parts):
    spec = parse_encoder(text)
    assert {name: getattr(spec, name) for name in parts} == parts
    assert spec.text == text


@pytest.mark.parametrize(
    "text", ["", "bert", "cache:", "cache:x", "cache:-1", "cache:fork:1", "hf:", "openai:", "CACHE"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(text):
    with pytest.raises(ActcacheError, match=r"cache:mean:LAYER, hf:.* or openai:.* Pass one of"):
        parse_encoder(text)


def test_the_docstring_example_runs():
    assert doctest.testmod(base).failed == 0


def test_the_text_is_the_prompt(tmp_path):
    store = store_of(tmp_path)
    assert texts_of(store) == store.prompts.tolist()


def test_a_rows_own_system_message_comes_first(tmp_path):
    store = store_of(tmp_path, columns={"system": ["Be good." * (i % 2) for i in range(11)]})
    for i, text in enumerate(texts_of(store)):
        assert text == (f"Be good.\n\n{store.prompts[i]}" if i % 2 else store.prompts[i])


def test_variants_differ_in_text_and_what_all_rows_share_is_left_out(tmp_path):
    torch = pytest.importorskip("torch")
    from actcache.build.config import BuildConfig
    from actcache.build.plan import plan_build
    from actcache.build.run import run_build as run
    from actcache.data.personas import Persona, expand_variants
    from actcache.data.samples import Sample
    from tests.support import tiny

    torch.manual_seed(0)
    row = Sample(
        id="a", behavior="b", prompt="Why?", positive="A", negative="B", label=None, letter="A"
    )
    samples = expand_variants(
        [row],
        ["base", "sys_pos", "user_pos"],
        personas={"b": Persona("You are b.", "You are not.")},
    )
    config = BuildConfig(
        model=tiny.save(tmp_path / "model"), system="Answer.", positions=["prompt"]
    )
    store = run(plan_build(samples, config), tmp_path / "a.zarr")
    assert texts_of(store) == ["Why?", "You are b.\n\nWhy?", "You are b.\n\nWhy?"]


@given(st.lists(st.sampled_from("abc")))
def test_distinct_texts_and_index_restore_all_rows(texts):
    once, places = distinct(texts)
    assert [once[place] for place in places] == texts
    assert len(set(once)) == len(once)


@given(st.lists(st.text("ab:1")), st.lists(st.text("ab:1")))
def test_the_digest_tells_lists_of_texts_apart(left, right):
    assert (texts_digest(left) == texts_digest(right)) == (left == right)


def test_large_and_small_vectors_do_not_overflow():
    half = np.array([[6e4, 6e4], [1e-7, 0]], np.float16)
    huge = np.array([[1e30, 1e30], [1e-30, 0]], np.float32)
    for rows in (half, huge):
        units = unit_rows(rows, names=["a", "b"], what="it")
        np.testing.assert_allclose(units, [[0.5**0.5] * 2, [1, 0]], rtol=1e-6)


def test_a_vector_that_is_not_finite_names_the_sample():
    rows = np.array([[1, 2], [np.nan, 1]], np.float32)
    with pytest.raises(NotFiniteError, match="of sample 'b' is not finite"):
        unit_rows(rows, names=["a", "b"], what="it")
