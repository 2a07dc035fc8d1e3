"""The pieces that tree masks are made of, entry by entry, and GPT-Neo's mask buffers."""

import itertools

import pytest
import torch

from actcache.engine.masks import (
    buffered_masks,
    gather_alibi,
    gather_pairs,
    open_masks,
    to_block_mask,
)
from actcache.engine.model import adopt_model
from tests.support.tiny import make


@pytest.mark.parametrize("batch", [1, 2])
def test_gather_pairs_takes_each_query_with_each_key(batch):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(batch, 5, 5, generator=generator)
    queries = torch.randint(5, (2, 3), generator=generator)
    keys = torch.randint(5, (2, 4), generator=generator)

    out = gather_pairs(matrix, queries, keys)

    assert out.shape == (2, 3, 4)
    for i, q, k in itertools.product(range(2), range(3), range(4)):
        assert out[i, q, k] == matrix[i % batch, queries[i, q], keys[i, k]]


def test_a_block_mask_is_of_the_kind_that_the_model_passed():
    allowed = torch.tensor([[[True, False], [True, True]]])

    for like in (None, torch.ones(1, 1, 2, 2, dtype=torch.bool)):  # sdpa
        torch.testing.assert_close(
            to_block_mask(allowed, like=like, dtype=torch.float32), allowed[:, None]
        )
    for dtype in (torch.float32, torch.bfloat16, torch.float64):  # eager: added to the scores
        mask = to_block_mask(allowed, like=torch.zeros(1, 1, 2, 2, dtype=dtype), dtype=dtype)
        assert mask.dtype == dtype
        assert (mask[0, 0].diagonal() == 0).all()
        assert mask[0, 0, 1, 0] == 0
        assert mask[0, 0, 0, 1] <= -1e38
        assert torch.isfinite(mask.float()).all()  # a softmax in float32 must not see -inf


def test_alibi_follows_the_positions_of_the_keys():
    slopes = torch.tensor([0.5, 0.25])
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])  # the first of two sequences is padded
    alibi = (slopes[None, :, None] * positions[:, None]).reshape(4, 1, 4)
    columns = torch.tensor([[0, 1, 2, 3, 3], [0, 1, 2, 1, 0]])

    out = gather_alibi(alibi, columns)

    expected = slopes[None, :, None] * positions.gather(1, columns)[:, None]
    torch.testing.assert_close(out, expected.reshape(4, 1, 5))


@pytest.mark.model
def test_buffered_masks_are_found_shared_and_put_back():
    anatomy = adopt_model(make("gpt_neo"), name="gpt_neo").anatomy
    everywhere, window, *others = (mask.allowed for mask in anatomy.buffered if mask is not None)

    assert not torch.equal(everywhere, window)
    assert others[0] is everywhere
    assert others[1] is window
    assert buffered_masks(adopt_model(make("llama"), name="llama").anatomy.blocks) == [None] * 4
    with open_masks(anatomy.buffered):
        for mask in anatomy.buffered:
            assert mask is not None
            assert mask.module.bias[:, :, 200:203, 200:205].all()  # type: ignore[index]  # a buffer
    for mask in anatomy.buffered:
        assert mask is not None
        assert torch.equal(mask.module.bias[0, 0], mask.allowed)  # type: ignore[index]  # a buffer
