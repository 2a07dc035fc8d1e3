"""Texts read by the unsteered model equal the plain definition, whatever they run with."""

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.errors import ModelError
from actcache.steering.hooks import steer
from actcache.steering.scoring import score_choices, score_texts, token_nll
from actcache.steering.steering import Steering
from tests.reference.engine import naive_propensity
from tests.reference.scoring import reference_text
from tests.support import tiny


def prompts_and_texts():
    """Many texts a prompt, prompts of many texts, one text twice, texts of one token."""
    rng = np.random.default_rng(0)
    short, long, lone = (tiny.random_tokens(rng, n) for n in (3, 25, 11))
    prompts, texts = [], []
    for prompt, lengths in ((short, (4, 1, 9)), (long, (2, 12)), (lone, (6,))):
        for n in lengths:
            prompts.append(prompt)
            texts.append(tiny.random_tokens(rng, n))
    return [*prompts, short], [*texts, texts[0]]


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), tiny.FAMILIES)
def test_a_batch_of_texts_equals_each_text_alone(family, attention):
    hf = tiny.make(family, attention=attention)
    prompts, texts = prompts_and_texts()

    scores = score_texts(adopt_model(hf), prompts, texts, read_layers=(2, 0), batch_tokens=90)

    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        nll, means = reference_text(hf, prompt, text, layers=(2, 0))
        assert scores.nll_unsteered[i] == pytest.approx(nll, rel=1e-5)
        np.testing.assert_allclose(
            scores.mean_residual[i], means, atol=1e-5 * np.abs(means).max(), rtol=0
        )


@pytest.mark.model
def test_the_last_layer_is_read_before_the_final_norm():
    hf = tiny.make("llama")
    model = adopt_model(hf)
    prompt, text = (5, 6, 7), (8, 9)
    seen = []
    handle = model.anatomy.blocks[-1].register_forward_hook(
        lambda _block, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        hf(input_ids=torch.tensor([[*prompt, *text]]), use_cache=False)
    handle.remove()

    scores = score_texts(model, [prompt], [text], read_layers=(model.n_layers - 1,))

    expected = seen[0].reshape(1, 5, -1)[0, 3:].mean(0)
    np.testing.assert_allclose(scores.mean_residual[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "mistral"])
def test_rows_that_fit_the_context_fit_together(family):
    """The longest prompt and the longest text together have more columns than the context."""
    hf = tiny.make(family)
    rng = np.random.default_rng(0)
    prompts = [tiny.random_tokens(rng, n) for n in (110, 3)]
    texts = [tiny.random_tokens(rng, n) for n in (5, 90)]

    scores = score_texts(adopt_model(hf), prompts, texts)

    for i in range(2):
        expected, _ = reference_text(hf, prompts[i], texts[i])
        assert scores.nll_unsteered[i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.model
def test_a_text_without_tokens_has_no_scores_and_harms_no_other():
    model = adopt_model(tiny.make("gpt2"))

    scores = score_texts(model, [(5, 6), (5, 6)], [(), (7,)], read_layers=(1,))

    assert np.isnan(scores.nll_unsteered[0])
    assert np.isnan(scores.mean_residual[0]).all()
    alone = score_texts(model, [(5, 6)], [(7,)], read_layers=(1,))
    assert scores.nll_unsteered[1] == pytest.approx(alone.nll_unsteered[0], rel=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_logits_are_computed_a_few_tokens_at_a_time(family):
    hf = tiny.make(family)
    model = adopt_model(hf)
    targets = torch.tensor([3, 4, 5, 6, 7, 8, 9])
    ids = torch.arange(10, 17)[None]
    n_tokens = []
    with torch.no_grad():
        normed = model.anatomy.decoder(input_ids=ids, use_cache=False)[0][0]
        log_probabilities = torch.log_softmax(hf(input_ids=ids, use_cache=False).logits[0], -1)
    handle = model.anatomy.unembed.register_forward_hook(
        lambda _module, args, _output: n_tokens.append(len(args[0]))
    )

    nll = token_nll(model, normed, targets, logits_at_once=3 * tiny.VOCAB)
    handle.remove()

    assert n_tokens == [3, 3, 1]
    np.testing.assert_allclose(nll, -log_probabilities[torch.arange(7), targets], rtol=1e-5)


@pytest.mark.model
def test_a_prompt_of_many_texts_and_a_text_written_twice_are_computed_once():
    model = adopt_model(tiny.make("llama"))
    tokens = []
    handle = model.anatomy.decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompt = tuple(range(3, 40))

    score_texts(model, [prompt] * 4, [(5,), (6, 7), (5,), ()])
    handle.remove()

    assert tokens == [len(prompt), 2 * 2]  # (5,) is padded


@pytest.mark.model
def test_groups_of_one_prompt_that_run_together_run_it_once():
    model = adopt_model(tiny.make("llama"))
    rng = np.random.default_rng(0)
    prompt, texts = tiny.random_tokens(rng, 60), [tiny.random_tokens(rng, 4) for _ in range(70)]
    alone = [score_texts(model, [prompt], [text]).nll_unsteered[0] for text in texts[::23]]
    tokens = []
    handle = model.anatomy.decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    scores = score_texts(model, [prompt] * 70, texts)
    handle.remove()

    assert tokens == [60, 70 * 4]
    np.testing.assert_allclose(scores.nll_unsteered[::23], alone, rtol=1e-5)


def choices_of(rows):
    return [(row.shared + row.positive, row.shared + row.negative) for row in rows]


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), tiny.FAMILIES)
@pytest.mark.parametrize("tokens", ["prompt", "completion"])
def test_choices_under_steering_equal_two_plain_passes_a_row(family, attention, tokens):
    """Layer, vector and strength differ by row; one row is not steered."""
    hf = tiny.make(family, attention=attention)
    model = adopt_model(hf)
    rows = tiny.ragged_rows()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(rows), 1, model.d_model)).astype(np.float32)
    steered = [(0, 1.5), (1, -2.0), (3, 1.0), (2, 0.5), None]
    steerings = [
        None
        if place is None
        else Steering(layers=(place[0],), vectors=vectors[i], strength=place[1], tokens=tokens)
        for i, place in enumerate(steered)
    ]

    scores = score_choices(
        model, [row.prompt for row in rows], choices_of(rows), steerings, batch_tokens=60
    )

    for i, row in enumerate(rows):
        layer, strength = steered[i] or (0, 0.0)
        # The definition scores what follows the fork; the shared start is common to both sides.
        expected = naive_propensity(
            *(hf, model.anatomy.blocks, row, torch.from_numpy(vectors[i, 0]), strength, layer),
            first_steered=tokens,
            score="logprob",
        )
        assert scores[i, 0] - scores[i, 1] == pytest.approx(expected, abs=2e-4)


@pytest.mark.model
def test_the_whole_completion_is_scored_in_nats():
    hf = tiny.make("llama")
    model = adopt_model(hf)
    prompt, choices = (5, 6, 7), ((8, 9), (10,))

    scores = score_choices(model, [prompt], [choices], [None])

    for score, choice in zip(scores[0], choices, strict=True):
        nll, _ = reference_text(hf, prompt, choice)
        assert score == pytest.approx(-nll * len(choice), rel=1e-5)
    assert score_choices(model, [], [], []).shape == (0, 0)


@pytest.mark.model
def test_a_model_that_is_steered_reads_no_texts():
    model = adopt_model(tiny.make("llama"))
    vectors = np.ones((1, model.d_model), np.float32)
    with steer(model, Steering(layers=(1,), vectors=vectors), prompt_width=2):
        model.hf(input_ids=torch.tensor([[5, 6]]))
        with pytest.raises(ModelError, match="is steered already"):
            score_texts(model, [(5, 6)], [(7,)])
