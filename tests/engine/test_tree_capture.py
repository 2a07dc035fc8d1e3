"""The batched capture against each row run alone, and against Hugging Face's own hidden states."""

from functools import cache

import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.reference import reference_capture
from actcache.engine.tree_capture import capture
from tests.support.tiny import FAMILIES, make, ragged_rows

pytestmark = pytest.mark.model
POSITIONS = ("prompt", "fork", "positive", "negative")


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_equals_each_row_alone_through_plain_hugging_face(family, attention):
    hf = make(family, attention=attention)
    model = adopt_model(hf, name=family)
    rows = ragged_rows()

    @cache
    def truth_of(tokens: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            states = hf(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        return torch.stack(states[:-1], 1)[0, :, -1]  # the last of them is after the norm

    for answer in ("first", "last"):
        values = capture(model, rows, positions=POSITIONS, answer=answer)
        residuals, embed = values["resid_post"], values["embed"][:, 0]
        for i, row in enumerate(rows):
            for j, position in enumerate(POSITIONS):
                tokens = {"prompt": row.prompt, "fork": row.chain}.get(position)
                if tokens is None:
                    branch = getattr(row, position)
                    tokens = row.chain + (branch[:1] if answer == "first" else branch)
                truth = truth_of(tokens)
                # fp32 rounding: residuals here are of size 1 to 20.
                torch.testing.assert_close(embed[i, j], truth[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(residuals[i, :-1, j], truth[1:], rtol=1e-5, atol=1e-5)
                if answer == "first" and position in ("prompt", "fork"):  # as for "last"
                    continue
                alone = reference_capture(model, row, position=position, answer=answer)
                torch.testing.assert_close(residuals[i, :, j], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_layer_is_read_before_the_final_norm(family):
    hf = make(family)
    model = adopt_model(hf, name=family)
    row = ragged_rows()[0]

    residuals = capture(model, [row], positions=["prompt"], answer="first")["resid_post"]

    with torch.no_grad():
        normed = hf(torch.tensor([row.prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        again = model.anatomy.ln_final(residuals[0, -1, 0])
    torch.testing.assert_close(again, normed, rtol=1e-5, atol=1e-5)
    assert (residuals[0, -1, 0] - normed).abs().max() > 0.1


def test_the_model_is_left_unchanged():
    hf = make("gpt_neo")
    before = {name: tensor.clone() for name, tensor in hf.named_buffers()}
    model = adopt_model(hf, name="gpt_neo")

    capture(model, ragged_rows(), positions=POSITIONS, answer="last")

    for name, tensor in hf.named_buffers():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not any(
        block._forward_hooks or block._forward_pre_hooks for block in model.anatomy.blocks
    )
