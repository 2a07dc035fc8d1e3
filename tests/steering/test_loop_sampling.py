"""Sampled text: the noise of a row is its own, whatever batch the row is in."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.steering import Request, generate
from actcache.steering.sampling import gumbel_noise
from tests.reference.steering import reference_generate
from tests.steering.cases import Family
from tests.support.tiny import random_tokens

MODEL = pytest.mark.model
STEPS = 6


@pytest.fixture(scope="module")
def llama():
    return Family("llama")


@pytest.fixture(scope="module")
def kinds(llama):
    return list(llama.every_kind())


@pytest.fixture(scope="module")
def requests(llama):
    """Prompts of many lengths under steerings of all tokens policies, two samples of each."""
    steerings = [
        None,
        *(
            llama.steering(operator, site, layers, tokens=tokens)
            for operator, site, layers in (
                ("add", "resid_post", (1,)),
                ("rotate", "ln2", (0, 1, 2, 3)),
                ("ablate", "attn_out", (2,)),
            )
            for tokens in ("prompt", "completion", "all")
        ),
    ]
    return [
        Request(prompt=random_tokens(llama.rng, 1 + i % 9), steering=steering, noise=2 * i + j)
        for i, steering in enumerate(steerings)
        for j in range(2)
    ]


def write(model, requests, **options):
    options = {"max_new": STEPS, "end_tokens": (), "temperature": 1.0, "seed": 3, **options}
    return [text.tokens for text in generate(model, requests, **options)]


@pytest.fixture(scope="module")
def together(llama, requests):
    return write(llama.model, requests)


@pytest.fixture(scope="module")
def end_tokens(together):
    """Tokens that end some texts at every step, and leave some as they are."""
    counts = Counter(token for text in together for token in text)
    return {token for token, _ in counts.most_common(8)}


def cut(text, end_tokens):
    n = next((i for i, token in enumerate(text) if token in end_tokens), len(text))
    return text[:n]


@MODEL
def test_a_row_alone_is_drawn_as_in_the_batch(llama, requests, together):
    assert [write(llama.model, [request])[0] for request in requests] == together
    assert len(set(together)) > len(requests) / 2


@MODEL
@pytest.mark.parametrize("sharing", ["none", "grow"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 100])
def test_batch_size_and_sharing_change_nothing(llama, requests, together, sharing, batch_tokens):
    texts = write(llama.model, requests, sharing=sharing, batch_tokens=batch_tokens)

    assert texts == together


@MODEL
def test_order_changes_nothing(llama, requests, together):
    order = np.random.default_rng(0).permutation(len(requests))

    texts = write(llama.model, [requests[i] for i in order])

    assert texts == [together[i] for i in order]


@MODEL
def test_rows_that_end_early_change_nothing(llama, requests, together, end_tokens):
    texts = write(llama.model, requests, end_tokens=end_tokens)

    assert texts == [cut(text, end_tokens) for text in together]
    assert {len(text) for text in texts} >= {0, 1, STEPS}


@MODEL
def test_what_is_left_after_an_interruption_is_drawn_as_without_it(llama, requests, together):
    class KilledError(Exception):
        pass

    finished = {}

    def on_done(number, text):
        finished[number] = text.tokens
        if len(finished) == 7:
            raise KilledError

    with pytest.raises(KilledError):
        write(llama.model, requests, batch_tokens=60, on_done=on_done)
    left = [i for i in range(len(requests)) if i not in finished]
    finished |= dict(zip(left, write(llama.model, [requests[i] for i in left]), strict=True))

    assert [finished[i] for i in range(len(requests))] == together


@MODEL
def test_seed_and_stream_decide_the_noise_and_steering_does_not(llama, requests, together):
    assert write(llama.model, requests, seed=4) != together
    one = requests[6]
    twins = [replace(one, noise=noise) for noise in (7, 7, 8)]
    first, second, other = write(llama.model, twins, temperature=20.0)  # no token is near certain
    assert first == second != other
    # Noise far larger than any logit alone decides: the same under every steering.
    hot = [replace(request, noise=5) for request in requests]
    texts = write(llama.model, hot, temperature=1e9)
    assert len(set(texts)) == 1


@MODEL
def test_a_low_temperature_is_greedy(llama, requests):
    few = requests[::4]

    texts = write(llama.model, few, temperature=1e-4)

    for request, text in zip(few, texts, strict=True):
        tokens, _ = reference_generate(
            llama.hf, "llama", request.prompt, request.steering, steps=STEPS
        )
        assert list(text) == tokens


@MODEL
def test_first_tokens_are_drawn_from_the_softmax(llama):
    prompt, steering = (
        llama.prompts[0],
        llama.steering("add", "resid_post", (2,), tokens="prompt").at(2.0),
    )
    n, temperature = 4000, 6.0
    requests = [Request(prompt=prompt, steering=steering, noise=i) for i in range(n)]

    texts = write(llama.model, requests, max_new=1, temperature=temperature)

    _, logits = reference_generate(llama.hf, "llama", prompt, steering, steps=1)
    expected = torch.softmax(logits[0].double() / temperature, -1).numpy()
    drawn = np.bincount([text[0] for text in texts], minlength=len(expected)) / n
    common = expected > 0.01
    assert common.sum() > 10
    # Five standard errors of a share.
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected / n) + 1e-9)[common].all()


def test_noise_is_gumbel_and_its_streams_are_apart():
    noise = np.stack(
        [gumbel_noise(seed, range(40), step=step, vocab=500) for seed in (0, 1) for step in (0, 1)]
    )  # [seed · step, stream, token]

    assert noise.mean() == pytest.approx(0.5772, abs=0.03)  # Euler's constant
    assert noise.std() == pytest.approx(np.pi / 6**0.5, abs=0.03)
    streams = noise.reshape(160, 500)
    correlations = np.corrcoef(streams)[np.triu_indices(160, 1)]
    assert np.abs(correlations).max() < 0.25  # 5.6 standard errors of 12,720 pairs


def test_noise_is_as_it_was():
    # Texts that were sampled before can be sampled again: these bits are for good.
    noise = gumbel_noise(2**64 - 1, [0, 2**64 - 1], step=3, vocab=3)

    expected = np.array(
        [[0.27091736, -1.15483284, 2.43027377], [0.66238487, -0.74491453, -1.05591559]]
    )
    np.testing.assert_allclose(noise, expected, rtol=1e-6)


def test_noise_of_a_token_does_not_depend_on_other_streams_or_the_vocabulary():
    both = gumbel_noise(1, [4, 9], step=2, vocab=50)

    np.testing.assert_array_equal(gumbel_noise(1, [9], step=2, vocab=80)[0, :50], both[1])


@MODEL
@settings(max_examples=25)
@given(data=st.data())
def test_any_requests_equal_the_naive_loop(llama, kinds, data):
    """Random prompts, steerings, budgets, ends and ways of sharing, greedily."""
    requests = [
        Request(
            prompt=tuple(data.draw(st.lists(st.integers(3, 96), min_size=4, max_size=14))),
            steering=data.draw(st.one_of(st.none(), st.sampled_from(kinds))),
        )
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    end_tokens = data.draw(st.frozensets(st.integers(0, 96), max_size=30))

    texts = write(
        llama.model,
        requests,
        temperature=0.0,
        max_new=3,
        end_tokens=end_tokens,
        batch_tokens=data.draw(st.integers(1, 120)),
        sharing=data.draw(st.sampled_from(["auto", "none", "grow"])),
    )

    for request, text in zip(requests, texts, strict=True):
        tokens, _ = reference_generate(llama.hf, "llama", request.prompt, request.steering, steps=3)
        assert list(text) == cut(tokens, end_tokens)
