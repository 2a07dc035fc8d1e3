"""Sites within a block, at every kind of position, against plain hooks on Hugging Face."""

from functools import partial

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.reference import reference_capture, reference_values
from actcache.engine.sites import find_taps
from actcache.engine.tree_capture import capture
from actcache.errors import ModelError
from actcache.prompts.render import Rendered
from tests.support.tiny import CONFIGS, make, rows_of_three_lengths

pytestmark = pytest.mark.model
SITES = ("resid_post", "embed", "resid_mid", "attn_out", "mlp_out", "heads")
NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")
POSITIONS = ("mean", "prompt", "positive", "negative", "fork", "template_-2")

# Each family's modules, and whether their input (<) or output (>) is the site: written by hand, as
# the truth that must equal the names from TransformerLens.
LLAMA = {
    "resid_mid": "<post_attention_layernorm",
    "attn_out": ">self_attn",
    "mlp_out": ">mlp",
    "heads": "<self_attn.o_proj",
}
PLACES: dict[str, dict[str, str]] = {
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
# The norms of every family. Gemma 2 and 3 have four in a block, and there the `_post` ones are
# what is added; Cohere has one, which attention and MLP share.
LLAMA_NORMS = {"ln1": ">input_layernorm", "ln2": ">post_attention_layernorm"}
GPT_NORMS = {"ln1": ">ln_1", "ln2": ">ln_2"}
GEMMA_NORMS = {
    "ln1": ">input_layernorm",
    "ln1_post": ">post_attention_layernorm",
    "ln2": ">pre_feedforward_layernorm",
    "ln2_post": ">post_feedforward_layernorm",
}
NORM_PLACES: dict[str, dict[str, str]] = {
    **dict.fromkeys(CONFIGS, LLAMA_NORMS),
    **dict.fromkeys(("gpt2", "gpt_neo"), GPT_NORMS),
    **dict.fromkeys(("gemma2", "gemma3"), GEMMA_NORMS),
    "opt": {"ln1": ">self_attn_layer_norm", "ln2": ">final_layer_norm"},
    "cohere": {"ln1": ">input_layernorm"},
}
SITES_BY_HAND = {family: PLACES.get(family, {}) | NORM_PLACES[family] for family in CONFIGS}
ADDED_TIMES = {"granite": 0.5}  # its config's residual_multiplier, for attn_out and mlp_out


def read_by_hand(hf, blocks, family, row, position):
    """Every site by a hook on Hugging Face's own module, in a forward pass of one sequence."""
    tokens = row.prompt if position in ("mean", "prompt", "template_-2") else row.chain
    if position in ("positive", "negative"):
        tokens = row.chain + getattr(row, position)
    places = SITES_BY_HAND[family]
    seen: dict[str, list[torch.Tensor]] = {site: [] for site in places}

    def given(site, _module, args, kwargs):
        seen[site].append(args[0] if args else kwargs["hidden_states"])

    def output(site, _module, _args, out):
        seen[site].append(out[0] if isinstance(out, tuple) else out)

    handles = [
        module.register_forward_pre_hook(partial(given, site), with_kwargs=True)
        if where[0] == "<"
        else module.register_forward_hook(partial(output, site))
        for site, where in places.items()
        for module in (block.get_submodule(where[1:]) for block in blocks)
    ]
    with torch.no_grad():
        hf(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    read = {}
    for site, tensors in seen.items():
        values = torch.stack([value.reshape(len(tokens), -1) for value in tensors])
        if site in ("attn_out", "mlp_out"):
            values = values * ADDED_TIMES.get(family, 1.0)
        token = {"template_-2": -2}.get(position, -1)
        read[site] = values.mean(1) if position == "mean" else values[:, token]
    return read


@pytest.mark.parametrize("family", SITES_BY_HAND)
def test_each_site_equals_a_hook_on_hugging_face_with_the_row_alone(family):
    hf = make(family)
    model = adopt_model(hf, name=family)
    rows, sites = rows_of_three_lengths(), tuple(SITES_BY_HAND[family])

    captured = capture(model, rows, positions=POSITIONS, answer="last", sites=sites)

    for site in sites:
        assert captured[site].shape == (3, 4, len(POSITIONS), model.width_of(site))
    for i, row in enumerate(rows):
        for j, position in enumerate(POSITIONS):
            by_hand = read_by_hand(hf, model.anatomy.blocks, family, row, position)
            alone = reference_values(model, row, positions=[position], answer="last", sites=sites)
            assert set(by_hand) == set(sites)
            for site, true in by_hand.items():
                # fp32 rounding; values are of size 0.1 to 20.
                torch.testing.assert_close(captured[site][i, :, j], true, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(alone[site][:, 0], true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "cohere"])
def test_a_parallel_block_has_no_resid_mid(family):
    model = adopt_model(make(family), name=family)

    with pytest.raises(ModelError, match=r"no site 'resid_mid' .*Leave 'resid_mid' out"):
        capture(model, rows_of_three_lengths(), positions=["prompt"], answer="first", sites=SITES)


@pytest.mark.parametrize("family", CONFIGS)
def test_norms_that_a_block_lacks_are_refused_by_name(family):
    model = adopt_model(make(family), name=family)

    for norm in set(NORMS) - set(NORM_PLACES[family]):
        with pytest.raises(ModelError, match=rf"no site '{norm}' .*Leave '{norm}' out"):
            find_taps(model.anatomy, norm)


@pytest.mark.parametrize("family", CONFIGS)
def test_resid_pre_is_the_embedding_and_then_the_residual_of_the_block_below(family):
    model = adopt_model(make(family), name=family)
    row = rows_of_three_lengths()[0]

    before, embed, after = (
        reference_capture(model, row, position="prompt", answer="first", site=site)
        for site in ("resid_pre", "embed", "resid_post")
    )

    torch.testing.assert_close(before, torch.cat([embed, after[:-1]]), rtol=0, atol=0)


def test_the_mean_in_half_precision_is_summed_in_float32():
    model = adopt_model(make("llama", dtype=torch.bfloat16), name="half")
    rows = [Rendered(tuple(range(3, 93)))]

    captured = capture(model, rows, positions=["mean"], answer="first")["embed"][0, 0, 0]

    embedded = model.hf.get_input_embeddings().weight[3:93]
    assert captured.dtype == torch.bfloat16
    torch.testing.assert_close(captured, embedded.float().mean(0).bfloat16(), rtol=0, atol=0)


def test_a_store_holds_each_site_at_each_position(store):
    assert store.positions == ["prompt", "positive", "mean", "template_-1", "template_-2"]
    assert store.resid("mean", site="heads").shape == (6, 4, 32)
    assert store.resid("template_-2", site="embed").shape == (6, 1, 32)
    last = store.resid("template_-1")[:]
    np.testing.assert_array_equal(last, store.resid("prompt")[:])
    # What the block adds up to, read from disk; fp32 rounding.
    middle = store.resid("positive", site="resid_mid")[:]
    whole = middle + store.resid("positive", site="mlp_out")[:]
    np.testing.assert_allclose(whole, store.resid("positive")[:], rtol=1e-4, atol=1e-5)
