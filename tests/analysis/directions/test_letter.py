"""The letter direction on residuals that were made of a known behavior and a known letter part."""

import re
from typing import Any

import numpy as np
import pytest

from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer

N, LAYERS, D = 30, 3, 6


def store_of(tmp_path, letters):
    rng = np.random.default_rng(1)
    behavior, letter = rng.normal(size=(2, LAYERS, D)).astype(np.float32)
    base = rng.normal(size=(N, LAYERS, D)).astype(np.float32)
    sign = np.array([1 if x == "A" else -1 for x in letters], np.float32)[:, None, None]
    positive, negative = base + behavior + sign * letter, base
    settings: dict[str, Any] = {
        "kind": "residuals",
        "n": N,
        "arrays": [
            RowArray(f"resid_post/{p}", LAYERS, D, "float32") for p in ("positive", "negative")
        ],
        "columns": {"id": [str(i) for i in range(N)], "letter": letters},
        "config": {},
        "provenance": {},
        "shard_rows": 7,
    }
    path = tmp_path / "s.zarr"
    with Writer.create(path, StoreContents(**settings)) as writer:
        while writer.committed < N:
            rows = writer.next_rows
            writer.commit(
                {"resid_post/positive": positive[rows], "resid_post/negative": negative[rows]}
            )
        writer.finish(None)
    return open_store(path), letter


def test_the_letter_is_found_and_the_behavior_is_not_where_letters_are_unbalanced(tmp_path):
    store, letter = store_of(tmp_path, ["A" if i % 4 else "B" for i in range(N)])
    by_layer = letter_directions(store, rows=np.arange(N) < 22)
    assert not isinstance(by_layer, str)
    np.testing.assert_allclose(by_layer, letter, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("letter", "words"), [("A", r"1 kinds.*\(A\)"), ("", r"\(none, A\)")])
def test_rows_without_two_letters_have_no_letter_direction_and_the_reason_is_said(
    tmp_path, letter, words
):
    letters = ["A"] * (N - 5) + [letter] * 5
    by_layer = letter_directions(store_of(tmp_path, letters)[0], rows=np.ones(N, bool))
    assert isinstance(by_layer, str)
    assert re.search(words, by_layer)


def test_share_and_remainder_are_those_of_a_projection():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, LAYERS, D)).astype(np.float32)
    letter = rng.normal(size=(LAYERS, D)).astype(np.float32)
    rest = without_letter(directions, letter)
    share = letter_share(directions, letter)
    for i in range(4):
        for layer in range(LAYERS):
            v, u = directions[i, layer], letter[layer] / np.linalg.norm(letter[layer])
            np.testing.assert_allclose(share[i, layer], (v @ u) ** 2 / (v @ v), rtol=1e-5)
            np.testing.assert_allclose(rest[i, layer], v - (v @ u) * u, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(letter_share(rest, letter), 0, atol=1e-10)
    np.testing.assert_allclose(letter_share(letter[None], letter), 1, rtol=1e-6)
    assert letter_share(np.zeros((1, LAYERS, D), np.float32), letter).max() == 0
