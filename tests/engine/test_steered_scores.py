"""The exact sweep against its definition: a full forward pass for each cell and completion."""

from typing import Any

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.steered_scores import SteeringRule, score_grid
from tests.reference.engine import naive_propensity
from tests.support.tiny import FAMILIES, attentions, make, ragged_rows

pytestmark = pytest.mark.model
MULTIPLIERS = [-1.5, 0.0, 1.0]
RULES = [
    SteeringRule(first_steered="fork", score="letter"),
    SteeringRule(first_steered="completion", score="logprob"),
    SteeringRule(first_steered="prompt", score="logit"),
    SteeringRule(first_steered="prompt", score="probability"),
    SteeringRule(first_steered="completion", score="letter"),
]


def naive_grid(model, rows, directions, rule):
    """`[b, layer, multiplier]` cell by cell; directions `[layer, d]` or `[b, layer, d]`."""
    directions = directions.expand(len(rows), *directions.shape[-2:])
    return np.array(
        [
            [
                [
                    naive_propensity(
                        model.hf,
                        model.anatomy.blocks,
                        row,
                        directions[i, layer],
                        x,
                        layer,
                        first_steered=rule.first_steered,
                        score=rule.score,
                    )
                    for x in MULTIPLIERS
                ]
                for layer in range(model.n_layers)
            ]
            for i, row in enumerate(rows)
        ]
    )


def rules_of(family: str, attention: str) -> list[SteeringRule]:
    """All for two families that differ in everything, two that cover all paths for the rest.

    A family's second attention has one of them: it is another kernel, on the same paths.
    """
    if (family, attention) in (("llama", "sdpa"), ("gpt2", "eager")):
        return RULES
    return RULES[1:3] if attention == attentions(family)[0] else RULES[2:3]


@pytest.mark.parametrize(
    ("family", "attention", "rule"),
    [
        pytest.param(*family, rule, id=f"{'-'.join(family)}-{rule.first_steered}-{rule.score}")
        for family in FAMILIES
        for rule in rules_of(*family)
    ],
)
def test_equals_a_full_pass_for_every_cell(family, attention, rule):
    model = adopt_model(make(family, attention=attention), name=family)
    rows = ragged_rows()
    directions = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))

    fast = score_grid(
        model, rows, directions=directions, multipliers=MULTIPLIERS, rule=rule, layers=range(4)
    )

    slow = naive_grid(model, rows, directions[1], rule)
    # fp32: logits of size 10 carry 1e-6 each; a score sums several of them.
    np.testing.assert_allclose(fast[:, 1], slow, rtol=1e-5, atol=1e-5)
    if rule != RULES[-1]:  # with that rule, rows without a shared start are not steered where read
        assert np.abs(slow - slow[..., 1:2]).max(axis=(1, 2)).min() > 1e-3


# All but GPT-2 attend in float32 whatever the dtype; padding must stay finite there too.
@pytest.mark.parametrize(
    ("family", "room"), [("gpt2", 1e-10), ("gpt_neo", 1e-5), ("opt", 1e-5), ("gpt_neox", 1e-5)]
)
def test_in_float64_equals_a_full_pass_as_far_as_the_family_computes_in_it(family, room):
    model = adopt_model(make(family, dtype=torch.float64, attention="eager"), name=family)
    rows, rule = ragged_rows(), SteeringRule(first_steered="prompt", score="logprob")
    directions = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1)).double()

    fast = score_grid(
        model, rows, directions=directions, multipliers=MULTIPLIERS, rule=rule, layers=range(4)
    )

    slow = naive_grid(model, rows, directions[0], rule)
    np.testing.assert_allclose(fast[:, 0], slow, rtol=0, atol=room)


def test_each_sample_can_have_its_own_direction():
    model = adopt_model(make("llama"), name="llama")
    rows, rule = ragged_rows(), SteeringRule()
    directions = torch.randn(1, len(rows), 4, 32, generator=torch.Generator().manual_seed(2))

    fast = score_grid(
        model, rows, directions=directions, multipliers=MULTIPLIERS, rule=rule, layers=range(4)
    )

    np.testing.assert_allclose(
        fast[:, 0], naive_grid(model, rows, directions[0], rule), rtol=1e-5, atol=1e-5
    )


def test_a_subset_of_layers_gives_the_same_scores():
    model = adopt_model(make("llama"), name="llama")
    rows = ragged_rows()
    directions = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {
        "directions": directions,
        "multipliers": MULTIPLIERS,
        "rule": SteeringRule(),
    }

    all_layers = score_grid(model, rows, layers=range(4), **settings)
    two_layers = score_grid(model, rows, layers=[1, 3], **settings)

    np.testing.assert_allclose(two_layers, all_layers[:, :, [1, 3]], rtol=1e-5, atol=1e-5)


def test_how_rows_are_batched_changes_nothing():
    model = adopt_model(make("mistral"), name="mistral")
    rows = ragged_rows()
    settings: dict[str, Any] = {
        "directions": torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(4)),
        "multipliers": MULTIPLIERS,
        "rule": SteeringRule(first_steered="prompt", score="logprob"),
        "layers": range(4),
    }

    together = score_grid(model, rows, **settings)
    apart = np.concatenate([score_grid(model, [row], **settings) for row in rows])

    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_no_further_from_float32_than_the_naive_loop():
    exact, half = make("llama"), make("llama").to(torch.bfloat16)
    exact.load_state_dict(half.float().state_dict())  # the same weights, rounded
    half = half.to(torch.bfloat16)
    rows, rule = ragged_rows(), SteeringRule(first_steered="prompt", score="logprob")
    directions = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(5))
    model = adopt_model(half, name="half")

    truth = naive_grid(adopt_model(exact, name="exact"), rows, directions[0], rule)
    naive = naive_grid(model, rows, directions[0], rule)
    fast = score_grid(
        model, rows, directions=directions, multipliers=MULTIPLIERS, rule=rule, layers=range(4)
    )[:, 0]

    naive_rms, fast_rms = (np.sqrt(np.mean((x - truth) ** 2)) for x in (naive, fast))
    # The naive loop itself takes log-probabilities in bfloat16; ours are no worse.
    assert fast_rms <= 1.1 * naive_rms
