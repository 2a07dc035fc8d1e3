"""A model whose steerability is worked out by hand, from `build` to the predicted layer.

Attention adds nothing and both norms are pinned to 1 by one huge coordinate, so the model is token
to token: embedding, one linear map, unembedding. Of the residual h two coordinates matter, s and r.

    layer 0   h₀ = embedding of the last token          (its block adds nothing)
    layer 1   h₁ = h₀, but r₁ = r₀ + 2 s₀               (the linear map)
    logits    z(A) - z(B) = r₁

A behavior is the probability of "A" among the two, σ(z(A) - z(B)): not linear in the logits. The
last token of a prompt is a neutral one (s = 0, so z = 0: undecided) or a remote one (s = -2.5, so
z = -5: surely "B"). Steering adds λ at s in layer 0, so z moves by 2λ: gently; and 5λ at r in layer
1, so z moves by 5λ: strongly. With λ = 0, 1, 2, 3 the least-squares slope of p over λ has the
weights (-1.5, -0.5, 0.5, 1.5) / 5.

    neutral  layer 0  p = σ(0) σ(2) σ(4) σ(6)     = .5000 .8808 .9820 .9975   slope 0.1594
             layer 1  p = σ(0) σ(5) σ(10) σ(15)   = .5000 .9933 1.000 1.000   slope 0.1507
    remote   layer 0  p = σ(-5) σ(-3) σ(-1) σ(1)  = .0067 .0474 .2689 .7311   slope 0.2395
             layer 1  p = σ(-5) σ(0) σ(5) σ(10)   = .0067 .5000 .9933 1.000   slope 0.3473

An undecided model is best moved gently, since a strong push saturates at once; a remote one
strongly. So layer 0 is best for neutral prompts and layer 1 for remote ones. Over as many of both,
layer 1 has the larger mean: 0.2490 to 0.1995, and the oracle 0.2534.
"""

import json

import numpy as np
import pytest
import torch

from actcache.analysis.predict.w2s.layer_predictor import train_layer_predictors
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.sweep.layer_ranks import best_layers
from actcache.analysis.sweep.run import run_sweep
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from actcache.encoders import encode
from tests.support import tiny

pytestmark = pytest.mark.model

PIN, R, S, OWN = 0, 1, 2, 3
"""Coordinates: the huge one, r, s, and from the fourth on what tells tokens apart."""

HUGE = 1e4
NEUTRAL, REMOTE = "abcdefgh", "stuvwxyz"
MULTIPLIERS = (0.0, 1.0, 2.0, 3.0)
BY_HAND = {"neutral": (0.1594, 0.1507), "remote": (0.2395, 0.3473)}
"""Slope at layers 0 and 1."""


def token_to_token():
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {**tiny.CONFIGS["llama"][1], "num_hidden_layers": 2, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**size)).eval()
    ids = tiny.tokenizer().get_vocab()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        pinned = HUGE / size["hidden_size"] ** 0.5  # so that x / rms(x) · weight = x
        for block in model.model.layers:
            block.input_layernorm.weight.fill_(pinned)
            block.post_attention_layernorm.weight.fill_(pinned)
        model.model.norm.weight.fill_(pinned)
        embedding = model.model.embed_tokens.weight
        random_part = torch.randn(
            embedding[:, OWN:].shape, generator=torch.Generator().manual_seed(0)
        )
        embedding[:, OWN:] = random_part
        embedding[:, PIN] = HUGE
        for token in REMOTE:
            embedding[ids[token], S] = -2.5
        mlp = model.model.layers[1].mlp  # down(silu(gate) · up): the gate is open, so it is linear
        mlp.gate_proj.weight[0, PIN] = 100 / HUGE
        mlp.up_proj.weight[0, S] = 1
        mlp.down_proj.weight[R, 0] = 2 / 100
        model.lm_head.weight[ids["A"], R] = 0.5
        model.lm_head.weight[ids["B"], R] = -0.5
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-hand")
    token_to_token().save_pretrained(folder / "model")
    tiny.tokenizer(template=None).save_pretrained(folder / "model")
    tokens = NEUTRAL + REMOTE
    rows = [
        {"prompt": f"{i}? {tokens[i % len(tokens)]}", "positive": "A", "negative": "B"}
        for i in range(160)
    ]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = BuildConfig(model=str(folder / "model"), template="none", space="none")
    return run_build(plan_build(read_samples([folder / "d.jsonl"]), config), folder / "s.zarr")


@pytest.fixture(scope="module")
def slope(store, tmp_path_factory):
    directions = np.zeros((1, 2, store.d_model), np.float32)
    directions[0, 0, S] = 1
    directions[0, 1, R] = 5
    swept = run_sweep(
        store,
        {"by_hand": directions[0]},
        multipliers=MULTIPLIERS,
        out=tmp_path_factory.mktemp("swept") / "sweep.zarr",
        score="probability",
    )
    return swept.slopes("by_hand")


@pytest.fixture(scope="module")
def neutral(store):
    return np.array([prompt[-1] in NEUTRAL for prompt in store.prompts])


def test_the_sweep_measures_what_was_worked_out(slope, neutral):
    expected = np.where(neutral[:, None], BY_HAND["neutral"], BY_HAND["remote"])
    np.testing.assert_allclose(slope, expected, atol=1e-4)


def test_the_labels_are_layer_0_for_neutral_and_layer_1_for_remote_prompts(slope, neutral):
    np.testing.assert_array_equal(best_layers(slope), np.where(neutral, 0, 1))
    assert slope.mean(0).argmax() == 1


def test_the_predictor_sends_every_test_prompt_to_the_layer_that_is_best_for_it(
    store, slope, neutral
):
    embeddings = encode(store, "cache:0").values
    train, test = (store["split"] == side for side in ("train", "test"))
    predictors = train_layer_predictors(
        embeddings,
        slope,
        train=train,
        groups=store.prompts.tolist(),
        letters=store["letter"].tolist(),
        layers=[0, 1],
        settings=W2SSettings(top=(1,), seeds=2, widths=(32,), depths=(1,), epochs=(40,)),
    )[1]
    best = np.where(neutral, 0, 1)[test]
    np.testing.assert_array_equal(predictors.predict(embeddings[test]), [best, best])

    chosen = slope[test][np.arange(test.sum()), best]
    fixed = slope[test, slope[train].mean(0).argmax()]
    by_hand = {True: 0.1594 - 0.1507, False: 0.0}  # layer 1 is the fixed one
    gain = [by_hand[bool(x)] for x in neutral[test]]
    np.testing.assert_allclose(chosen - fixed, gain, atol=1e-4)
