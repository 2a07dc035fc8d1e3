import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actcache.prompts.beginnings import Beginnings
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
            chain = np.arange(len(tree.chain))
            branch_path = batch.branch_starts[i, branch] + np.arange(len(tokens))
            path = np.concatenate([chain, branch_path])
            np.testing.assert_array_equal(batch.ids[i, path], [*tree.chain, *tokens])
            np.testing.assert_array_equal(batch.positions[i, path], np.arange(len(path)))
            for depth, column in enumerate(path):
                np.testing.assert_array_equal(
                    np.flatnonzero(batch.ancestor[i, column]), np.sort(path[: depth + 1])
                )


@given(FORESTS)
def test_a_chain_and_its_longest_branch_lie_in_the_columns_of_their_positions(forest):
    trees = [Tree(*parts) for parts in forest]
    batch = pack_trees(trees, pad=0)

    for i, tree in enumerate(trees):
        longest = len(tree.chain) + max(len(branch) for branch in tree.branches)
        np.testing.assert_array_equal(batch.positions[i, :longest], np.arange(longest))
        np.testing.assert_array_equal(batch.valid[i], np.arange(batch.ids.shape[1]) < len(tree))


@given(FORESTS, st.integers(1, 5))
def test_behind_shared_beginnings_each_token_sees_the_same(forest, length):
    beginning = list(range(10, 10 + length))
    trees = [Tree([*beginning, *chain], branches) for chain, branches in forest]
    beginnings = Beginnings(np.array([beginning]), np.zeros(len(trees), np.int64))

    whole = pack_trees(trees, pad=0)
    batch = pack_trees(trees, pad=0, beginnings=beginnings)

    np.testing.assert_array_equal(batch.ids, whole.ids)
    np.testing.assert_array_equal(batch.positions, whole.positions)
    np.testing.assert_array_equal(batch.branch_starts, whole.branch_starts)
    np.testing.assert_array_equal(batch.ancestor, whole.ancestor[:, length:])
    assert batch.is_plain == whole.is_plain


def test_a_batch_without_second_branches_is_plain():
    assert pack_trees([Tree([1, 2, 3]), Tree([4])], pad=0).is_plain
    assert pack_trees([Tree([1], ([2], []))], pad=0).is_plain
    assert not pack_trees([Tree([1], ([2], [3]))], pad=0).is_plain
