import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.analysis.predict.w2s.folds import grouped_folds


@settings(max_examples=40)
@given(st.data())
def test_folds_never_part_equal_prompts_and_are_never_empty(data):
    n = data.draw(st.integers(2, 30))
    groups = [f"Say  {data.draw(st.integers(0, 6))}" for _ in range(n)]
    letters = [data.draw(st.sampled_from("ABC")) for _ in range(n)]
    n_groups = len(set(groups))
    if n_groups < 2:
        return
    fold = grouped_folds(groups, letters, n_folds=5, seed=0)
    np.testing.assert_array_equal(np.unique(fold), np.arange(min(5, n_groups)))
    for group in set(groups):
        assert len({fold[i] for i in range(n) if groups[i] == group}) == 1
    spelt = [text.upper().replace("  ", " ") + "\n" for text in groups]
    mixed = [text if i % 2 else spelt[i] for i, text in enumerate(groups)]
    np.testing.assert_array_equal(grouped_folds(mixed, letters, n_folds=5, seed=0), fold)


def test_a_draw_that_leaves_a_fold_empty_is_drawn_again_without_letters():
    groups, letters = "201101001322", "211112010210"
    fold = grouped_folds(list(groups), list(letters), n_folds=5, seed=29)
    np.testing.assert_array_equal(np.unique(fold), np.arange(4))


def test_folds_balance_letters():
    letters = ["A"] * 50 + ["B"] * 30
    fold = grouped_folds([str(i) for i in range(80)], letters, n_folds=5, seed=3)
    for number in range(5):
        assert sorted(letters[i] for i in np.flatnonzero(fold == number)) == ["A"] * 10 + ["B"] * 6
