"""The token that looks most at a marked span: its choice, its soft labels, and layers by mass."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.directions import token_choice as attention_mass
from actcache.analysis.directions.token_choice import choose_tokens, soft_labels, token_choice
from actcache.errors import MismatchError
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.reference import directions as reference

few = st.integers(1, 4)
shapes = st.tuples(st.integers(1, 3), few, few, st.integers(1, 3))
values = st.sampled_from(np.linspace(0, 1, 9, dtype=np.float32).tolist())
all_masses = shapes.flatmap(lambda s: arrays(np.float32, s, elements=values))


def named(masses):
    """Masses by position, in the order in which a store has them: the last token first."""
    names = [f"template_-{len(masses) - i}" for i in range(len(masses))]
    return dict(reversed(list(zip(names, masses, strict=True))))


@given(all_masses, st.randoms(use_true_random=False))
def test_the_choice_equals_its_definition(masses, random):
    n = masses.shape[1]
    scan = sorted(random.sample(range(n), random.randint(1, n)))
    places, peaks, means, order = reference.token_choice(masses, scan)

    choice = token_choice(named(masses[:, scan]))

    np.testing.assert_array_equal(choice.place, places)
    np.testing.assert_allclose(choice.peak, peaks, rtol=1e-12)
    np.testing.assert_allclose(choice.mass, means, rtol=1e-12)
    np.testing.assert_allclose(np.array(means)[choice.order], np.array(means)[order], rtol=1e-12)


@given(all_masses, st.randoms(use_true_random=False))
def test_soft_labels_equal_their_definition(masses, random):
    positive = np.array([random.random() < 0.5 for _ in range(masses.shape[1])])
    choice = token_choice(named(masses))

    soft = soft_labels(named(masses), choice, positive=positive)

    true = reference.soft_labels(masses, choice.place, positive)
    np.testing.assert_allclose(soft, true, rtol=1e-12, atol=1e-12)


def test_a_planted_token_is_found_in_each_layer():
    rng = np.random.default_rng(0)
    masses = rng.uniform(0, 0.1, (5, 20, 6, 4)).astype(np.float32)
    planted = np.array([0, 1, 2, 3, 4, 2])
    masses[planted, 7, np.arange(6)] += np.linspace(0.5, 1, 6, dtype=np.float32)[:, None]

    choice = token_choice(named(masses))

    np.testing.assert_array_equal(choice.place, planted)
    np.testing.assert_array_equal(choice.order, np.arange(6)[::-1])


def test_a_layer_that_sees_nothing_is_blind_and_takes_the_last_token():
    masses = np.zeros((3, 5, 2, 4), np.float32)
    masses[0, 2, 1] = 0.5

    choice = token_choice(named(masses))

    assert choice.tokens == ["template_-1", "template_-3"]
    assert choice.blind.tolist() == [True, False]
    soft = soft_labels(named(masses), choice, positive=np.ones(5, bool))
    assert (soft[:, 0] == 0).all()
    assert soft[2, 1] == 1


def test_masses_that_do_not_fit_together_are_refused():
    masses = np.zeros((2, 3, 4, 5), np.float32)
    with pytest.raises(MismatchError, match="arrays of one store"):
        token_choice({"last_-2": masses[0], "last_-1": masses[1, :2]})
    with pytest.raises(MismatchError, match="Scan the rows"):
        token_choice(named(masses[:, :0]))
    with pytest.raises(MismatchError, match="Pass the positions that were chosen from"):
        soft_labels(named(masses), token_choice(named(masses)), positive=np.ones(2, bool))


def test_examples_in_docstrings_run():
    assert doctest.testmod(attention_mass).failed == 0


def test_a_store_is_scanned_at_its_train_rows_that_mark_a_span_alone(tmp_path):
    n = 24
    span = np.array([[0, 3] if i % 2 else [0, 0] for i in range(n)])
    split = ["train" if i < 12 else "test" for i in range(n)]
    masses = np.full((2, n, 3, 2), 0.1, np.float32)
    masses[0, 3] = 0.3  # of a marked train row
    masses[1, 2] = masses[1, 21] = 0.9  # of one without a mark, and of a test row
    positions = ("template_-1", "template_-2")
    store = write_store(
        tmp_path / "s.zarr",
        {f"attention/{p}": m for p, m in zip(positions, masses, strict=True)},
        columns={"span": span, "split": split, "variant": ["base"] * n},
    )

    assert choose_tokens(store).tokens == ["template_-1"] * 3
    assert choose_tokens(store, rows=store["split"] == "test").tokens == ["template_-2"] * 3


def test_a_store_without_masses_says_what_to_build(tmp_path):
    resid = {"resid_post/prompt": np.zeros((4, 2, 3), np.float32)}
    columns = {"split": ["train"] * 4, "variant": ["base"] * 4}
    store = write_store(tmp_path / "s.zarr", resid, columns=columns)
    with pytest.raises(MismatchError, match="--sites resid_post,attention --positions template:K"):
        choose_tokens(store)


def write_store(path, arrays, *, columns, provenance=None):
    n = len(next(iter(arrays.values())))
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=[
            RowArray(name, n_layers=values.shape[1], width=values.shape[2], dtype="float32")
            for name, values in arrays.items()
        ],
        columns=columns,
        config={},
        provenance=provenance or {},
        shard_rows=4,
    )
    with Writer.create(path, contents) as writer:
        while writer.committed < n:
            rows = writer.next_rows
            writer.commit({name: values[rows] for name, values in arrays.items()})
        writer.finish()
    return open_store(path)
