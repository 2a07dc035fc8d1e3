"""Beginnings that rows share: which length saves most, and which rows run together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actcache.prompts.beginnings import (
    LEAST_SHARE,
    NOT_SHARED,
    find_beginnings,
    group_by_beginning,
)

HEADS = st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), min_size=1, max_size=12)


def n_saved(heads, length):
    """Tokens saved at one length, counted in a set."""
    distinct = {head[:length] for head in heads}
    return (len(heads) - len(distinct)) * length


@given(HEADS)
def test_rows_are_cut_at_the_length_that_saves_most(heads):
    beginnings = find_beginnings(heads)

    most = max(n_saved(heads, length) for length in range(min(map(len, heads)) + 1))
    if not most or most < LEAST_SHARE * sum(map(len, heads)):
        assert beginnings is NOT_SHARED
        return
    assert beginnings.n_saved == most == n_saved(heads, beginnings.length)
    for head, beginning in zip(heads, beginnings.of_row, strict=True):
        assert tuple(beginnings.ids[beginning].tolist()) == head[: beginnings.length]
    assert len({tuple(ids) for ids in beginnings.ids.tolist()}) == len(beginnings.ids)


@given(HEADS)
def test_groups_hold_rows_that_begin_alike_and_no_row_twice(heads):
    groups = group_by_beginning(heads)

    rows = [row for group in groups for beginning in group for row in beginning]
    assert len(set(rows)) == len(rows)
    for group in groups:
        members = [heads[row] for rows in group for row in rows]
        length = max(
            n
            for n in range(min(map(len, members)) + 1)
            if all(len({heads[row][:n] for row in rows}) == 1 for rows in group)
        )
        assert length > 0
        assert min(map(len, group)) > 1
        assert len({heads[rows[0]][:length] for rows in group}) == len(group)
        assert n_saved(members, length) >= LEAST_SHARE * sum(map(len, members))


def test_the_group_that_saves_most_is_taken_whole():
    system, other = tuple(range(10, 40)), tuple(range(50, 70))
    heads = [(*system, 1), (7, 8), (*other, 2), (*system, 3, 4), (*other, 5), (7, 9), (*system, 6)]

    groups = group_by_beginning(heads)

    assert [[rows.tolist() for rows in group] for group in groups] == [
        [[0, 3, 6], [2, 4]],
        [[1, 5]],
    ]


def test_rows_that_share_little_run_whole():
    generator = np.random.default_rng(0)
    heads = [(1, 2, *generator.integers(10, 1000, 40).tolist()) for _ in range(20)]

    assert find_beginnings(heads) is NOT_SHARED
    assert group_by_beginning(heads) == []
    assert group_by_beginning([]) == group_by_beginning([(1, 2)]) == []
