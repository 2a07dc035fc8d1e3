"""Sites within a block, and positions of the prompt, against plain hooks and against a bridge."""

from typing import Any

import numpy as np
import pytest
import torch

from actcache.engine.capture import capture, reference_capture
from actcache.engine.model import adopt_model
from actcache.engine.reference import BridgeCapture
from actcache.engine.self_check import check_sites
from actcache.errors import ModelError
from actcache.prompts.render import Rendered
from tests.support.tiny import VOCAB, make

pytestmark = pytest.mark.model
SITES = ("resid_post", "embed", "resid_mid", "attn_out", "mlp_out", "heads")
POSITIONS = ("mean", "prompt", "positive", "negative", "fork", "template_-2")

# What each family calls the modules, and whether its input (<) or output (>) is meant; by hand, as
# the truth that the names from TransformerLens must equal.
LLAMA = {
    "resid_mid": "<post_attention_layernorm",
    "attn_out": ">self_attn",
    "mlp_out": ">mlp",
    "heads": "<self_attn.o_proj",
}
PLAIN: dict[str, dict[str, str]] = {
    "gpt2": {
        "resid_mid": "<ln_2",
        "attn_out": ">attn",
        "mlp_out": ">mlp",
        "heads": "<attn.c_proj",
    },
    "llama": LLAMA,
    "mistral": LLAMA,
    "granite": LLAMA,
    "gemma2": {
        "resid_mid": "<pre_feedforward_layernorm",
        "attn_out": ">post_attention_layernorm",
        "mlp_out": ">post_feedforward_layernorm",
        "heads": "<self_attn.o_proj",
    },
    "gpt_neox": {"attn_out": ">attention", "mlp_out": ">mlp", "heads": "<attention.dense"},
    "opt": {
        "resid_mid": "<final_layer_norm",
        "attn_out": ">self_attn",
        "mlp_out": ">fc2",
        "heads": "<self_attn.out_proj",
    },
}
ADDED_TIMES = {"granite": 0.5}  # its config's residual_multiplier, for attn_out and mlp_out


def rows_of_three_lengths() -> list[Rendered]:
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, VOCAB, n).tolist())

    return [
        Rendered(some(12), some(1), some(2), some(2)),
        Rendered(some(3), (), some(1), some(3)),
        Rendered(some(20), some(3), some(4), some(1)),
    ]


def plain(hf, blocks, family, row, position, site):
    """One site by a hook on Hugging Face's own module, in a forward pass of one sequence."""
    tokens = row.prompt if position in ("mean", "prompt", "template_-2") else row.chain
    if position in ("positive", "negative"):
        tokens = row.chain + getattr(row, position)
    where = PLAIN[family][site]
    seen = []

    def given(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    def output(_module, _args, out):
        seen.append(out[0] if isinstance(out, tuple) else out)

    modules = [block.get_submodule(where[1:]) for block in blocks]
    handles = [
        module.register_forward_pre_hook(given, with_kwargs=True)
        if where[0] == "<"
        else module.register_forward_hook(output)
        for module in modules
    ]
    with torch.no_grad():
        hf(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    values = torch.stack([value.reshape(len(tokens), -1) for value in seen])
    if site in ("attn_out", "mlp_out"):
        values = values * ADDED_TIMES.get(family, 1.0)
    if position == "mean":
        return values.mean(1)
    return values[:, {"template_-2": -2}.get(position, -1)]


@pytest.mark.parametrize("family", PLAIN)
def test_each_site_equals_a_hook_on_hugging_face_with_the_row_alone(family):
    hf = make(family)
    model = adopt_model(hf, name=family)
    rows, sites = rows_of_three_lengths(), tuple(PLAIN[family])

    found = capture(model, rows, positions=POSITIONS, answer="last", sites=sites)

    for site in sites:
        assert found[site].shape == (3, 4, len(POSITIONS), model.width_of(site))
        for i, row in enumerate(rows):
            for j, position in enumerate(POSITIONS):
                true = plain(hf, model.anatomy.blocks, family, row, position, site)
                alone = reference_capture(model, row, position=position, answer="last", site=site)
                # fp32 rounding; values are of size 0.1 to 20.
                torch.testing.assert_close(found[site][i, :, j], true, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(alone, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", PLAIN)
def test_each_site_equals_the_hooks_of_a_transformer_bridge(family):
    model = adopt_model(make(family), name=family)
    sites = ("resid_post", "embed", *PLAIN[family])
    rows = rows_of_three_lengths()
    settings: dict[str, Any] = {"positions": POSITIONS, "answer": "first", "sites": sites}
    twin = make(family, attention="eager")  # rewritten in place: an instance of its own
    if family == "gpt_neox":  # its tiny config names key-value heads, which only the bridge reads
        twin.config.num_key_value_heads = twin.config.num_attention_heads
    bridge = BridgeCapture(twin)

    ours, theirs = capture(model, rows, **settings), bridge(model, rows, **settings)

    for site in sites:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "cohere"])
def test_a_parallel_block_has_no_residual_between(family):
    model = adopt_model(make(family), name=family)

    with pytest.raises(ModelError, match=r"no site 'resid_mid' .*Leave 'resid_mid' out"):
        capture(model, rows_of_three_lengths(), positions=["prompt"], answer="first", sites=SITES)


def test_what_does_not_add_up_to_the_residual_is_refused():
    model = adopt_model(make("llama"), name="llama")
    row = rows_of_three_lengths()[0]
    check_sites(model, row, ["attn_out", "mlp_out", "resid_mid"])
    block = model.anatomy.blocks[2]
    # As a family would that scales its MLP in a way that nobody told us of.
    block.register_forward_hook(lambda _m, args, out: args[0] + 2 * (out - args[0]))

    with pytest.raises(ModelError, match=r"mlp_out are not what the block adds"):
        check_sites(model, row, ["mlp_out"])
    check_sites(model, row, ["resid_post", "heads"])  # these claim no such thing


def test_the_mean_in_half_precision_is_summed_in_float32():
    model = adopt_model(make("llama", dtype=torch.bfloat16), name="half")
    rows = [Rendered(tuple(range(3, 93)))]

    found = capture(model, rows, positions=["mean"], answer="first")["embed"][0, 0, 0]

    embedded = model.hf.get_input_embeddings().weight[3:93]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, embedded.float().mean(0).bfloat16(), rtol=0, atol=0)
