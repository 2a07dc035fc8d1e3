"""The token that looks most at a marked span: its choice, its soft labels, and layers by mass."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actcache.analysis.directions import token_choice as attention_mass
from actcache.analysis.directions.token_choice import choose_tokens, soft_labels
from actcache.errors import MismatchError
from tests.reference import directions as reference

few = st.integers(1, 4)
shapes = st.tuples(st.integers(1, 3), few, few, st.integers(1, 3))
values = st.sampled_from(np.linspace(0, 1, 9, dtype=np.float32).tolist())
all_masses = shapes.flatmap(lambda s: arrays(np.float32, s, elements=values))


@given(all_masses, st.randoms(use_true_random=False))
def test_the_choice_equals_its_definition(masses, random):
    n = masses.shape[1]
    scan = sorted(random.sample(range(n), random.randint(1, n)))
    mask = np.isin(np.arange(n), scan)
    places, peaks, means, order = reference.token_choice(masses, scan)

    choice = choose_tokens(list(masses), scan=mask)

    np.testing.assert_array_equal(choice.place, places)
    np.testing.assert_allclose(choice.peak, peaks, rtol=1e-12)
    np.testing.assert_allclose(choice.mass, means, rtol=1e-12)
    np.testing.assert_allclose(np.array(means)[choice.order], np.array(means)[order], rtol=1e-12)


@given(all_masses, st.randoms(use_true_random=False))
def test_soft_labels_equal_their_definition(masses, random):
    positive = np.array([random.random() < 0.5 for _ in range(masses.shape[1])])
    choice = choose_tokens(list(masses))

    soft = soft_labels(list(masses), choice, positive=positive)

    true = reference.soft_labels(masses, choice.place, positive)
    np.testing.assert_allclose(soft, true, rtol=1e-12, atol=1e-12)


def test_a_planted_token_is_found_in_each_layer():
    rng = np.random.default_rng(0)
    masses = rng.uniform(0, 0.1, (5, 20, 6, 4)).astype(np.float32)
    planted = np.array([0, 1, 2, 3, 4, 2])
    masses[planted, 7, np.arange(6)] += np.linspace(0.5, 1, 6, dtype=np.float32)[:, None]

    choice = choose_tokens(list(masses))

    np.testing.assert_array_equal(choice.place, planted)
    np.testing.assert_array_equal(choice.order, np.arange(6)[::-1])


def test_masses_that_do_not_fit_together_are_refused():
    masses = np.zeros((2, 3, 4, 5), np.float32)
    with pytest.raises(MismatchError, match="arrays of one store"):
        choose_tokens([masses[0], masses[1, :2]])
    with pytest.raises(MismatchError, match="Scan the rows"):
        choose_tokens(list(masses), scan=np.zeros(3, bool))
    with pytest.raises(MismatchError, match="in the same order"):
        soft_labels(list(masses), choose_tokens(list(masses)), positive=np.ones(2, bool))


def test_examples_in_docstrings_run():
    assert doctest.testmod(attention_mass).failed == 0
