import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actcache.prompts.token_tree import Tree, pack_trees

TOKENS = st.lists(st.integers(1, 9), max_size=4)
# Plain tuples: building a Tree inside a strategy would let beartype draw from `random` there.
FORESTS = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.tuples(TOKENS, TOKENS)),
    min_size=1,
    max_size=4,
)


@given(FORESTS)
def test_each_token_sees_its_own_sequence_and_nothing_else(forest):
    trees = [Tree(*parts) for parts in forest]
    batch = pack_trees(trees, pad=0)

    for i, tree in enumerate(trees):
        for branch, tokens in enumerate(tree.branches):
            chain = batch.starts[i] + np.arange(len(tree.chain))
            own = batch.branch_starts[i, branch] + np.arange(len(tokens))
            path = np.concatenate([chain, own])
            np.testing.assert_array_equal(batch.ids[i, path], [*tree.chain, *tokens])
            np.testing.assert_array_equal(batch.positions[i, path], np.arange(len(path)))
            for depth, column in enumerate(path):
                np.testing.assert_array_equal(
                    np.flatnonzero(batch.ancestor[i, column]), np.sort(path[: depth + 1])
                )


@given(FORESTS)
def test_a_twin_lies_on_one_plain_sequence_at_the_same_position(forest):
    trees = [Tree(*parts) for parts in forest]
    batch = pack_trees(trees, pad=0)

    for i, tree in enumerate(trees):
        longest = len(tree.chain) + max(len(branch) for branch in tree.branches)
        plain = batch.starts[i] + np.arange(longest)
        real = batch.valid[i]
        np.testing.assert_array_equal(batch.twin[i, real], plain[batch.positions[i, real]])


def test_a_batch_without_second_branches_is_plain():
    assert pack_trees([Tree([1, 2, 3]), Tree([4])], pad=0).is_plain
    assert pack_trees([Tree([1], ([2], []))], pad=0).is_plain
    assert not pack_trees([Tree([1], ([2], [3]))], pad=0).is_plain
