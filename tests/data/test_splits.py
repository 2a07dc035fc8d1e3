"""Splits: nothing leaks, letters are balanced, and nothing depends on what it should not."""

import doctest
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.conventions import SPLITS
from actcache.data import splits as module
from actcache.data.formats import read_samples
from actcache.data.personas import Persona, expand_variants
from actcache.data.samples import Sample
from actcache.data.splits import _draw, assign_splits, count_leaks, n_leaked, plain_splits
from actcache.errors import RowError
from tests.reference import data as reference

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")


def row(i, *, behavior="mood", prompt=None, letter="A", **values):
    return Sample(
        id=f"{behavior}/{i}",
        behavior=behavior,
        prompt=f"question {i}" if prompt is None else prompt,
        positive=f"({letter})",
        negative="(other)",
        label=None,
        letter=letter,
        source=f"{behavior}.jsonl:{i + 1}",
        **values,
    )


def rows(n, *, behavior="mood", letters="AB"):
    return [row(i, behavior=behavior, letter=letters[i % len(letters)]) for i in range(n)]


def counts(samples, splits):
    return Counter((split, sample.letter) for split, sample in zip(splits, samples, strict=True))


def test_examples_in_docstrings_run():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_shares_and_letters_are_exact_where_no_prompt_occurs_twice():
    samples = rows(1000)
    assert counts(samples, assign_splits(samples)) == {
        (split, letter): n
        for split, n in zip(SPLITS, (200, 50, 250), strict=True)
        for letter in "AB"
    }


@given(
    st.lists(st.sampled_from("AABC"), min_size=1, max_size=40),
    st.sampled_from([(0.4, 0.1, 0.5), (0.5, 0.0, 0.5), (0.34, 0.33, 0.33), (1.0, 0.0, 0.0)]),
    st.integers(0, 3),
)
def test_each_letter_is_within_one_row_of_its_share_where_no_prompt_occurs_twice(
    letters, fractions, seed
):
    samples = [row(i, letter=letter) for i, letter in enumerate(letters)]
    splits = assign_splits(samples, fractions=fractions, seed=seed)
    rows_in = counts(samples, splits)
    for letter, n in Counter(letters).items():
        for split, fraction in zip(SPLITS, fractions, strict=True):
            assert abs(rows_in[split, letter] - n * fraction) <= 1 + 1e-9
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(Counter(splits)[split] - len(samples) * fraction) <= 1 + 1e-9
        assert fraction or split not in splits


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("AB")), min_size=1, max_size=30
    ),
    st.lists(st.sampled_from(["base", "sys_pos", "user_neg"]), min_size=1, unique=True),
    st.integers(0, 5),
)
def test_equal_prompts_and_variants_of_one_row_share_a_split(drawn, variants, seed):
    base = [
        row(i, behavior="xy"[i % 2], prompt=prompt, letter=letter)
        for i, (prompt, letter) in enumerate(drawn)
    ]
    personas = {"x": Persona("a", "b"), "y": Persona("a", "b")}
    samples = expand_variants(base, variants, personas=personas)
    splits = assign_splits(samples, seed=seed)
    assert reference.n_torn(samples, splits) == 0
    assert n_leaked(samples, splits, exact=False) == 0
    assert set(splits) <= set(SPLITS)


def test_a_plain_shuffle_separates_equal_prompts():
    samples = [row(i, prompt=f"question {i // 2}") for i in range(100)]
    assert reference.n_torn(samples, plain_splits(samples)) > 0


def test_rows_that_differ_in_white_space_and_case_are_one_group():
    samples = [
        row(2 * i + j, prompt=text)
        for i in range(30)
        for j, text in enumerate((f"Well,  straße {i}?", f" well,\nSTRASSE {i}?\n"))
    ]
    splits = assign_splits(samples)
    assert splits[0::2] == splits[1::2]
    assert len(set(splits)) == 3


def test_groups_join_through_a_third_sample():
    # row 0 and row 2 share neither prompt nor row, but their variants do
    samples = [
        row(0, prompt="a"),
        row(1, prompt="b"),
        replace(row(1, prompt="a"), id="mood/1@user_pos", variant="user_pos"),
        row(2, prompt="B "),
    ]
    for seed in range(20):
        assert len(set(assign_splits(samples, fractions=(0.5, 0.0, 0.5), seed=seed))) == 1


def test_letters_are_balanced_where_groups_allow():
    samples = [row(i, prompt=f"question {i // 2}", letter="AB"[i % 2]) for i in range(400)]
    assert counts(samples, assign_splits(samples)) == {
        (split, letter): n
        for split, n in zip(SPLITS, (80, 20, 100), strict=True)
        for letter in "AB"
    }


def test_single_rows_compensate_for_groups_of_one_letter():
    groups = [row(i, prompt=f"group {i // 10}", letter="A") for i in range(40)]
    singles = [row(40 + i, letter="AB"[i % 2]) for i in range(160)]
    samples = groups + singles
    assert counts(samples, assign_splits(samples)) == {
        ("train", "A"): 48, ("validation", "A"): 12, ("test", "A"): 60,
        ("train", "B"): 32, ("validation", "B"): 8, ("test", "B"): 40,
    }  # fmt: skip


def test_one_large_group_goes_where_it_fits_best():
    samples = [row(i, prompt="the same" if i < 50 else None) for i in range(100)]
    splits = assign_splits(samples)
    assert set(splits[:50]) == {"test"}
    assert Counter(splits) == {"train": 40, "validation": 10, "test": 50}


@pytest.mark.parametrize("n", [1, 3, 7])
def test_shares_hold_if_each_answer_is_a_different_word(n):
    samples = [row(i, letter=f"word{i // n}") for i in range(100 * n)]
    assert Counter(assign_splits(samples)) == {
        "train": 40 * n,
        "validation": 10 * n,
        "test": 50 * n,
    }


def test_labels_are_balanced_as_letters_are():
    samples = [
        replace(sample, positive=None, negative=None, label=sample.letter, letter="")
        for sample in rows(100, letters="AAAB")
    ]
    splits = assign_splits(samples)
    rows_in = Counter((split, s.label) for split, s in zip(splits, samples, strict=True))
    assert rows_in["train", "A"] == 30
    assert rows_in["train", "B"] == 10


def test_the_seed_decides_and_nothing_else_does():
    samples = rows(60)
    assert assign_splits(samples, seed=3) == assign_splits(samples, seed=3)
    assert len({tuple(assign_splits(samples, seed=seed)) for seed in range(10)}) == 10


def test_splits_are_the_same_as_in_earlier_versions():
    samples = [row(i, prompt=f"question {i // 2}" if i < 6 else None) for i in range(12)]
    assert " ".join(split[:2] for split in assign_splits(samples)) == (
        "te te tr tr tr tr va tr te te te te"
    )


def test_other_behaviors_and_their_order_change_nothing():
    one, two = rows(40), rows(40, behavior="taste")
    mixed = [sample for pair in zip(two, one, strict=True) for sample in pair]
    alone = assign_splits(one)
    assert assign_splits(one + two)[:40] == alone
    assert assign_splits(two + one)[40:] == alone
    assert assign_splits(mixed)[1::2] == alone


def test_behaviors_with_equal_rows_are_drawn_separately():
    assert assign_splits(rows(40)) != assign_splits(rows(40, behavior="taste"))


def test_more_variants_change_no_split():
    samples = [row(i, prompt=f"question {i % 25}", letter="AB"[i % 2]) for i in range(40)]
    alone = assign_splits(samples)
    personas = {"mood": Persona("You are glad.", "You are sad.")}
    expanded = expand_variants(
        samples, ["user_neg", "base", "sys_pos", "sys_neg"], personas=personas
    )
    splits = assign_splits(expanded)
    assert splits == [split for split in alone for _ in range(4)]


def test_every_row_has_a_fair_chance_of_each_split():
    samples = [row(i, prompt=f"question {i // 2}" if i < 8 else None) for i in range(20)]
    drawn = [assign_splits(samples, seed=seed) for seed in range(400)]
    for i in (0, 7, 8, 19):
        share = sum(splits[i] == "train" for splits in drawn) / len(drawn)
        assert 0.3 < share < 0.5  # four standard deviations of 400 draws at 0.4


def test_rows_with_splits_of_their_own_keep_them():
    samples = [row(i, split=SPLITS[i % 3]) for i in range(9)] + rows(9, behavior="taste")
    splits = assign_splits(samples)
    assert splits[:9] == list(SPLITS) * 3
    assert splits[9:] == assign_splits(rows(9, behavior="taste"))


def test_a_behavior_in_which_only_some_rows_have_a_split_is_named():
    with pytest.raises(RowError) as caught:
        assign_splits([row(0), row(1, split="test"), *rows(5, behavior="taste")])
    assert str(caught.value) == (
        "behavior 'mood': row 'mood/1' (mood.jsonl:2) has a split, row 'mood/0' (mood.jsonl:1) "
        'has none, expected all rows or none to have one. Give every row a "split", or no row.'
    )


@pytest.mark.parametrize("assign", [assign_splits, plain_splits])
@pytest.mark.parametrize(
    ("fractions", "shown"),
    [
        ((0.5, 0.1, 0.5), "0.5/0.1/0.5"),
        ((1.2, -0.1, -0.1), "1.2/-0.1/-0.1"),
        ((float("nan"), 0.5, 0.5), "nan/0.5/0.5"),
    ],
)
def test_fractions_that_do_not_sum_to_one_are_named(assign, fractions, shown):
    with pytest.raises(RowError) as caught:
        assign(rows(4), fractions=fractions)
    assert str(caught.value) == (
        f"the fractions are {shown}, expected three shares of train, validation and test that sum "
        "to 1. Pass for example 0.4, 0.1, 0.5."
    )


def test_a_negative_seed_is_named():
    with pytest.raises(RowError, match=r"--seed is -1, expected 0 or more. Pass another"):
        assign_splits(rows(4), seed=-1)


def test_no_samples_give_no_splits():
    assert assign_splits([]) == []


def test_one_sample_gets_a_split():
    assert assign_splits([row(0)]) == ["test"]


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60), st.integers(0, 3))
def test_leaks_of_a_plain_shuffle_equal_their_definition(prompts, seed):
    samples = [row(i, prompt=prompt) for i, prompt in enumerate(prompts)]
    splits = plain_splits(samples, seed=seed)
    assert n_leaked(samples, splits) == reference.steering_bench_leaks(prompts, seed)


def test_a_group_of_one_letter_is_drawn_by_the_room_for_that_letter():
    # 200 groups of two A, one draw each: a quarter of the room for A is in train, all of B's
    room = np.array([[2, 0, 6], [100, 0, 0]])
    drawn = [_draw(np.array([[2, 0]]), room, np.random.default_rng(seed)) for seed in range(200)]
    assert 0.1 < drawn.count([0]) / 200 < 0.4  # five standard deviations


def test_a_group_finds_a_split_even_if_each_is_overfull_for_one_of_its_letters():
    room = np.array([[5, 0, -4], [-4, 0, 5]])
    assert _draw(np.array([[1, 1]]), room, np.random.default_rng(0)) in ([0], [2])


def test_a_draw_does_not_change_its_input():
    room = np.array([[4, 1, 5]])
    _draw(np.array([[2]] * 5), room, np.random.default_rng(0))
    np.testing.assert_array_equal(room, [[4, 1, 5]])


def test_leaks_are_counted_within_a_behavior():
    samples = rows(1) + rows(1, behavior="taste")
    assert n_leaked(samples, ["train", "test"]) == 0
    assert n_leaked([samples[0], samples[0]], ["train", "test"]) == 1
    assert n_leaked([samples[0], samples[0]], ["train", "validation"]) == 0


def test_leaks_ignore_white_space_and_case_only_without_exact():
    samples = [row(0, prompt="Well?"), row(1, prompt=" well? ")]
    assert n_leaked(samples, ["train", "test"]) == 0
    assert n_leaked(samples, ["train", "test"], exact=False) == 1


def test_plain_splits_have_the_sizes_of_steering_bench():
    sizes = Counter(plain_splits(rows(934)))  # self-awareness-training-web-gpt has 934 rows
    assert sizes == {"train": 373, "validation": 94, "test": 467}


def test_plain_splits_depend_on_fractions_and_seed():
    sizes = Counter(plain_splits(rows(100), fractions=(0.8, 0.1, 0.1)))
    assert sizes == {"train": 80, "validation": 10, "test": 10}
    assert plain_splits(rows(100)) == plain_splits(rows(100), seed=0)
    assert plain_splits(rows(100)) != plain_splits(rows(100), seed=1)


@needs_data
@pytest.mark.parametrize(
    ("name", "n"),
    [("myopic-reward", 95), ("corrigible-neutral-HHH", 7), ("narcissism", 0)],
)
def test_real_behaviors_leak_under_a_plain_shuffle_and_not_under_assigned_splits(name, n):
    samples = read_samples([DATA / "mwe" / "steering-bench" / f"{name}.json"])
    assert n_leaked(samples, plain_splits(samples)) == n
    splits = assign_splits(samples)
    assert n_leaked(samples, splits, exact=False) == 0
    assert counts(samples, splits) == {
        (split, letter): count
        for split, count in zip(SPLITS, (200, 50, 250), strict=True)
        for letter in "AB"
    }


def test_leaks_are_counted_by_behavior_for_these_splits_and_for_a_plain_shuffle():
    def made(behavior, prompts, splits):
        return [
            row(i, behavior=behavior, prompt=prompt, split=split)
            for i, (prompt, split) in enumerate(zip(prompts, splits, strict=True))
        ]

    twice = made("twice", [f" Q {i // 2}" for i in range(40)], [""] * 40)
    assigned = made("assigned", ["a", "A ", "b", "c"], ["train", "test", "test", "validation"])
    clean = made("clean", [f"q {i}" for i in range(20)], [""] * 20)
    samples = [*twice, *assigned, *clean]
    splits = assign_splits(samples)

    leaks = count_leaks(samples, splits, seed=0)

    assert list(leaks) == ["twice", "assigned"]
    assert (leaks["twice"].n_leaked, leaks["assigned"].n_leaked) == (0, 1)
    assert leaks["assigned"].n_test == 2
    shuffled = plain_splits(twice)
    train = {s.prompt for s, split in zip(twice, shuffled, strict=True) if split == "train"}
    leaked = [s for s, x in zip(twice, shuffled, strict=True) if x == "test" and s.prompt in train]
    assert leaks["twice"].n_leaked_plain == len(leaked) > 0
