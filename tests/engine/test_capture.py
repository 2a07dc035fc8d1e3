"""The batched capture against each row run alone, and against numbers that are not ours."""

import numpy as np
import pytest
import torch

from actcache.engine.capture import capture, reference_capture
from actcache.engine.model import adopt_model
from actcache.prompts.render import Rendered
from tests.support.tiny import CONFIGS, VOCAB, make

pytestmark = pytest.mark.model
POSITIONS = ("prompt", "fork", "positive", "negative")


def ragged_rows(seed: int = 0) -> list[Rendered]:
    """Rows of all kinds: no shared start, one-token prompts, branches of unlike length."""
    rng = np.random.default_rng(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, VOCAB, n).tolist())

    return [
        Rendered(some(20), some(1), some(2), some(2)),
        Rendered(some(7), (), some(1), some(3)),
        Rendered(some(30), some(3), some(4), some(1)),
        Rendered(some(1), some(1), some(2), some(2)),
        Rendered(some(1), (), some(2), some(2)),
    ]


def attentions(family: str) -> list[str]:
    """What a family has in transformers: Gemma 2 (soft cap), GPT-Neo and Bloom run eager only."""
    return ["eager"] if family in ("gpt_neo", "gemma2", "bloom") else ["sdpa", "eager"]


@pytest.mark.parametrize("answer", ["first", "last"])
@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, attention) for family in CONFIGS for attention in attentions(family)],
)
def test_equals_each_row_alone_through_plain_hugging_face(family, attention, answer):
    hf = make(family, attention=attention)
    model = adopt_model(hf, name=family)
    rows = ragged_rows()

    found = capture(model, rows, positions=POSITIONS, answer=answer)
    residuals, embed = found["resid_post"], found["embed"][:, 0]

    for i, row in enumerate(rows):
        for j, position in enumerate(POSITIONS):
            tokens = {"prompt": row.prompt, "fork": row.chain}.get(position)
            if tokens is None:
                branch = getattr(row, position)
                tokens = row.chain + (branch[:1] if answer == "first" else branch)
            with torch.no_grad():
                states = hf(torch.tensor([tokens]), output_hidden_states=True).hidden_states
            truth = torch.stack(states[:-1], 1)[0, :, -1]  # the last of them is after the norm
            alone = reference_capture(model, row, position=position, answer=answer)
            # fp32 rounding: residuals here are of size 1 to 20.
            torch.testing.assert_close(embed[i, j], truth[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(residuals[i, :-1, j], truth[1:], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(residuals[i, :, j], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_layer_is_the_block_and_not_the_final_norm(family):
    hf = make(family)
    model = adopt_model(hf, name=family)
    row = ragged_rows()[0]

    residuals = capture(model, [row], positions=["prompt"], answer="first")["resid_post"]

    with torch.no_grad():
        normed = hf(torch.tensor([row.prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        again = model.anatomy.ln_final(residuals[0, -1, 0])
    torch.testing.assert_close(again, normed, rtol=1e-5, atol=1e-5)
    assert (residuals[0, -1, 0] - normed).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_equals_the_hook_out_of_a_transformer_bridge(family):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = adopt_model(make(family), name=family)
    row = ragged_rows()[0]
    residuals = capture(model, [row], positions=["prompt"], answer="first")["resid_post"]
    twin = make(family, attention="eager")  # a bridge rewrites the model that it is given

    bridge = build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config)
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.tensor([row.prompt]), names_filter=names)

    bridged = torch.stack([cache[name][0, -1] for name in names])
    torch.testing.assert_close(residuals[0, :, 0], bridged, rtol=1e-5, atol=1e-5)


def test_a_model_is_left_as_it_was():
    hf = make("gpt_neo")
    before = {name: tensor.clone() for name, tensor in hf.named_buffers()}
    model = adopt_model(hf, name="gpt_neo")

    capture(model, ragged_rows(), positions=POSITIONS, answer="last")

    for name, tensor in hf.named_buffers():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not any(
        block._forward_hooks or block._forward_pre_hooks for block in model.anatomy.blocks
    )
