"""Token trees: a prompt with its completions as branches, laid out as one sequence per row.

A prompt with its two completions is a tree: the prompt and the completions' shared start are the
chain, what follows the fork are the branches. Run as one sequence, left padded,

    pad … pad | chain | branch 0 | branch 1

with a mask that lets each token see only its ancestors, every token gets the residual that it would
have in a sequence of its own, and the chain is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64


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
    """A batch of trees, left padded to one width `t`."""

    ids: Int64[np.ndarray, "b t"]
    """Token ids; the pad id at padding."""

    valid: Bool[np.ndarray, "b t"]
    """False at padding."""

    positions: Int64[np.ndarray, "b t"]
    """Position of each token in its own sequence, from 0; 0 at padding."""

    twin: Int64[np.ndarray, "b t"]
    """Column of the token at the same position on the chain or the longest branch. The mask that a
    model makes for a plain sequence is right for that twin, so it is right for this token."""

    ancestor: Bool[np.ndarray, "b t t"]
    """`[i, q, k]`: token k is an ancestor of token q, or q itself."""

    starts: Int64[np.ndarray, " b"]
    """Column of the first token of each chain."""

    branch_starts: Int64[np.ndarray, "b branches"]
    """Column of the first token of each branch; of an empty branch, that of the next token."""

    @property
    def is_plain(self) -> bool:
        """Whether no tree has a second branch: plain causal sequences."""
        return bool((self.twin == np.arange(self.ids.shape[1])).all())


def pack_trees(trees: Sequence[Tree], *, pad: int) -> TreeBatch:
    """Lay out `trees` as one left-padded batch.

    Args:
        trees: at least one, each with at least one token, all with the same number of branches.
        pad: token id that fills the padding; its value is never read.
    """
    width = max(len(tree) for tree in trees)
    n_branches = len(trees[0].branches)
    shape = (len(trees), width)
    ids = np.full(shape, pad, np.int64)
    valid = np.zeros(shape, np.bool_)
    positions = np.zeros(shape, np.int64)
    twin = np.tile(np.arange(width, dtype=np.int64), (len(trees), 1))
    # Causal at first; then each branch is cut off from the branches before it.
    ancestor = np.tile(np.tri(width, dtype=np.bool_), (len(trees), 1, 1))
    starts = np.zeros(len(trees), np.int64)
    branch_starts = np.zeros((len(trees), n_branches), np.int64)
    for row, tree in enumerate(trees):
        start = width - len(tree)
        fork = start + len(tree.chain)  # column after the chain's last token
        starts[row] = start
        valid[row, start:] = True
        ids[row, start:fork] = tree.chain
        positions[row, start:fork] = np.arange(len(tree.chain))
        # The longest branch comes first: it has a twin for every position of the others.
        column = fork
        for branch in sorted(range(n_branches), key=lambda b: -len(tree.branches[b])):
            tokens = tree.branches[branch]
            columns = slice(column, column + len(tokens))
            ids[row, columns] = tokens
            positions[row, columns] = len(tree.chain) + np.arange(len(tokens))
            twin[row, columns] = fork + np.arange(len(tokens))
            ancestor[row, columns, fork:column] = False
            branch_starts[row, branch] = column
            column += len(tokens)
    ancestor &= valid[:, None, :]
    return TreeBatch(ids, valid, positions, twin, ancestor, starts, branch_starts)
