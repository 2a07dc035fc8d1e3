"""Torch's functions in the place of what GPT-2 and GPT-Neo write out: equal, and gone afterwards."""

import numpy as np
import pytest
import torch
from transformers.activations import NewGELUActivation

from actcache.engine.fused_functions import fused_functions, replaced_method
from actcache.engine.masks import open_masks
from actcache.engine.model import adopt_model
from actcache.engine.sites import attention_modules
from tests.support.tiny import make

ROOM = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 2e-2}
"""Of values near 1. GPT-Neo's scores are float32 whatever the dtype."""


def attentions(dtype):
    """GPT-Neo's two kinds of attention: of all tokens, and in a window of 8."""
    anatomy = adopt_model(make("gpt_neo", dtype=dtype), name="gpt_neo").anatomy
    modules = attention_modules(anatomy)[:2]
    assert [module.attention_type for module in modules] == ["global", "local"]
    return anatomy, modules


@pytest.mark.model
@pytest.mark.parametrize("dtype", ROOM)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("opened", [True, False])
def test_attention_of_gpt_neo_is_what_its_code_gives(dtype, masked, opened):
    anatomy, modules = attentions(dtype)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator).to(dtype)
    key, value = torch.randn(2, 2, 4, 20, 8, generator=generator).to(dtype)
    mask = torch.zeros(2, 1, 5, 20, dtype=dtype)
    mask[0, :, :, :4] = torch.finfo(torch.float32).min  # padding
    mask[:, :, 1, 17] = torch.finfo(torch.float32).min
    inputs = (query, key, value, *([mask] if masked else []))

    for module in modules:
        buffered = anatomy.buffered if opened else []
        with open_masks(buffered):
            plain, weights = module._attn(*inputs)
            with fused_functions(anatomy):
                fused, none = module._attn(*inputs)
        np.testing.assert_allclose(fused.double(), plain.double(), rtol=0, atol=ROOM[dtype])
        assert fused.dtype == plain.dtype == dtype
        assert weights is not None
        assert none is None


@pytest.mark.model
@pytest.mark.parametrize(("family", "n_fused"), [("gpt2", 4), ("gpt_neo", 4), ("llama", 0)])
def test_gelu_is_what_their_code_gives(family, n_fused):
    anatomy = adopt_model(make(family), name=family).anatomy
    modules = [x for block in anatomy.blocks for x in block.modules()]
    activations = [module for module in modules if type(module) is NewGELUActivation]
    values = torch.linspace(-12, 12, 1001)
    assert len(activations) == n_fused

    plain = [module(values) for module in activations]
    with fused_functions(anatomy):
        fused = [module(values) for module in activations]

    for fused_values, plain_values in zip(fused, plain, strict=True):
        torch.testing.assert_close(fused_values, plain_values, rtol=0, atol=2e-6)
        # Another function ran, or this test shows nothing.
        assert not torch.equal(fused_values, plain_values)
    assert not any({"forward", "_attn"} & set(vars(module)) for module in modules)


def test_a_method_that_was_replaced_comes_back():
    module = torch.nn.Identity()
    value = torch.ones(2)

    with replaced_method(module, "forward", lambda x: x + 1):
        with replaced_method(module, "forward", lambda x: x + 5):
            assert module(value)[0] == 6
        assert module(value)[0] == 2
        with pytest.raises(ZeroDivisionError), replaced_method(module, "forward", lambda x: 1 / 0):
            module(value)
        assert module(value)[0] == 2
    assert module(value)[0] == 1
    assert "forward" not in vars(module)
