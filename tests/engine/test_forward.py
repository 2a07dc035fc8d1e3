"""Joined cells against whole passes of the changed sequence, and what they need."""

import pytest
import torch

from actcache.engine.forward import JoinedCells, run_trees
from actcache.engine.model import adopt_model
from actcache.prompts.token_tree import Tree, pack_trees
from tests.support.tiny import make

pytestmark = pytest.mark.model
SEQUENCES = ((5, 6, 7, 8, 9, 10), (11, 12, 13))


def last_token_pass(model, *, keep_cache):
    """One pass over plain sequences, which reads the last token of each."""
    tree = pack_trees([Tree(sequence) for sequence in SEQUENCES], pad=0)
    columns = torch.tensor([[len(sequence) - 1] for sequence in SEQUENCES])
    return tree, columns, run_trees(model.anatomy, tree, read=columns, keep_cache=keep_cache)


@pytest.mark.parametrize("family", ["llama", "mistral", "bloom", "gpt_neo"])
def test_a_joined_cell_equals_a_pass_whose_last_token_was_changed(family):
    model = adopt_model(make(family), name=family)
    tree, columns, result = last_token_pass(model, keep_cache=True)
    prefix = torch.from_numpy(tree.valid) & (torch.arange(tree.ids.shape[1]) < columns)
    cells = JoinedCells(
        model.anatomy,
        result,
        columns=columns,
        live=torch.ones(2, 1, dtype=torch.bool),
        prefix=prefix,
        n_cells=2,
    )
    pushes = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))

    joined = result.residuals[:, 1] + pushes[0]  # the first cell starts after layer 1 ...
    joined = cells.run_block(2, joined)
    joined = torch.cat([joined, result.residuals[:, 2] + pushes[1]], 1)  # ... the second after 2
    joined = cells.run_block(3, joined)

    for cell, layer in ((0, 1), (1, 2)):
        for i, sequence in enumerate(SEQUENCES):
            true = changed_pass(model, sequence, layer, pushes[cell])
            # fp32 rounding: residuals here are of size 1 to 20.
            torch.testing.assert_close(joined[i, cell], true, rtol=1e-5, atol=1e-5)


def changed_pass(model, sequence, layer, push):
    """The last block's output at the last token, with `push` added to it after `layer`."""
    outputs = []

    def add(_block, _args, output):
        residual = (output[0] if isinstance(output, tuple) else output).clone()
        residual[:, -1] += push
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    def read(_block, _args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    blocks = model.anatomy.blocks
    handles = [blocks[layer].register_forward_hook(add), blocks[-1].register_forward_hook(read)]
    with torch.no_grad():
        model.hf(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs[0][0, -1]


def test_a_pass_without_keys_and_values_cannot_be_joined():
    model = adopt_model(make("llama"), name="llama")
    _, columns, result = last_token_pass(model, keep_cache=False)
    mask = torch.ones(2, 1, dtype=torch.bool)

    with pytest.raises(ValueError, match="keep_cache=True"):
        JoinedCells(model.anatomy, result, columns=columns, live=mask, prefix=mask, n_cells=1)


def test_copied_tokens_do_not_keep_the_batch_in_memory():
    model = adopt_model(make("llama"), name="llama")
    *_, result = last_token_pass(model, keep_cache=False)

    for values in (result.residuals, result.embed):
        assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
