"""Token trees: a prompt with its completions as branches, laid out as one sequence per row.

A prompt with its two completions is a tree: the prompt and the completions' shared start are the
chain, what follows the fork are the branches. Run as one sequence,

    chain | longer branch | shorter branch | pad … pad

with a mask that lets each token see only its ancestors, every token gets the residual that it would
have in a sequence of its own, and the chain is computed once. Padding comes last, so that a chain's
columns are its positions, and rows that begin alike hold their shared tokens in the same columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from actcache.prompts.beginnings import NOT_SHARED, Beginnings


@dataclass(frozen=True)
class Tree:
    """The tokens of one sample."""

    chain: Sequence[int]
    """Prompt, then what all completions share."""

    branches: Sequence[Sequence[int]] = ()
    """What follows the fork, one per completion; may be empty."""

    def __len__(self) -> int:
        return len(self.chain) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True)
class TreeBatch:
    """A batch of trees, padded to one width `t`; the last `q` columns differ from row to row."""

    ids: Int64[np.ndarray, "b t"]
    """Token ids; the pad id at padding."""

    valid: Bool[np.ndarray, "b t"]
    """False at padding."""

    positions: Int64[np.ndarray, "b t"]
    """Position of each token in its own sequence, from 0; 0 at padding. It is also the column of
    the token's *twin*, at the same position of the chain or the longest branch. The mask that a
    model makes for a plain sequence is right for that twin, so it is right for this token."""

    ancestor: Bool[np.ndarray, "b q t"]
    """`[i, q, k]`: token k is an ancestor of token `t - q` + q, or that token itself."""

    branch_starts: Int64[np.ndarray, "b branches"]
    """Column of the first token of each branch; of an empty branch, that of the next token."""

    beginnings: Beginnings
    """The tokens in front of those columns, which are run once for the rows that share them."""

    @property
    def is_plain(self) -> bool:
        """Whether no tree has a second branch: plain causal sequences."""
        column = np.arange(self.ids.shape[1])
        return bool((self.positions == column)[self.valid].all())


def pack_trees(
    trees: Sequence[Tree], *, pad: int, beginnings: Beginnings = NOT_SHARED
) -> TreeBatch:
    """Lay out `trees` as one batch, padded on the right.

    Args:
        trees: at least one, each with at least one token, all with the same number of branches.
        pad: token id that fills the padding; its value is never read.
        beginnings: what the chains begin with, shorter than each chain.
    """
    width = max(len(tree) for tree in trees)
    n_branches = len(trees[0].branches)
    n_shared = beginnings.length
    shape = (len(trees), width)
    ids = np.full(shape, pad, np.int64)
    valid = np.zeros(shape, np.bool_)
    positions = np.zeros(shape, np.int64)
    # Causal at first; then each branch is cut off from the branches before it.
    ancestor = np.tile(np.tri(width, dtype=np.bool_)[n_shared:], (len(trees), 1, 1))
    branch_starts = np.zeros((len(trees), n_branches), np.int64)
    for row, tree in enumerate(trees):
        fork = len(tree.chain)  # column after the chain's last token
        valid[row, : len(tree)] = True
        ids[row, :fork] = tree.chain
        positions[row, :fork] = np.arange(fork)
        # The longest branch comes first: it has a twin for every position of the others.
        column = fork
        for branch in sorted(range(n_branches), key=lambda b: -len(tree.branches[b])):
            tokens = tree.branches[branch]
            end = column + len(tokens)
            ids[row, column:end] = tokens
            positions[row, column:end] = fork + np.arange(len(tokens))
            ancestor[row, column - n_shared : end - n_shared, fork:column] = False
            branch_starts[row, branch] = column
            column = end
    ancestor &= valid[:, None, :]
    return TreeBatch(ids, valid, positions, ancestor, branch_starts, beginnings)
