"""Rows that share a beginning, which a batch runs once, against each row alone."""

from typing import Any

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.reference import reference_capture, reference_values
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.engine.tree_capture import capture
from actcache.prompts.render import Rendered
from tests.reference.engine import naive_propensity
from tests.support.tiny import FAMILIES, make, random_tokens

pytestmark = pytest.mark.model
WINDOW = 8
"""Of the families with windows: shorter than the beginnings, which are 20 tokens."""


def sharing_rows() -> list[Rendered]:
    """Three rows of one beginning, two of another, and one that continues the first one's start.

    Their spans lie in the beginning, across its end, behind it, and nowhere.
    """
    rng = np.random.default_rng(0)
    one, two = random_tokens(rng, 20), random_tokens(rng, 20)

    def row(beginning: tuple[int, ...], n: int, *lengths: int, span: tuple[int, int]) -> Rendered:
        shared, positive, negative = (random_tokens(rng, length) for length in lengths)
        prompt = beginning + random_tokens(rng, n)
        return Rendered(prompt, shared, positive, negative, span=span)

    return [
        row(one, 9, 1, 2, 2, span=(0, 5)),
        row(one, 2, 0, 1, 3, span=(18, 22)),
        row(two, 4, 3, 4, 1, span=(21, 24)),
        row(one, 1, 1, 2, 2, span=(3, 3)),
        row(two, 12, 1, 2, 2, span=(0, 32)),
        row(one[:19], 6, 1, 2, 2, span=(10, 20)),
    ]


class TokensRun:
    """Counts the tokens that enter the first block of a model, but for those of the trial."""

    def __init__(self, model):
        assert model.can_share_beginnings
        self.n = 0
        model.anatomy.blocks[0].register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _block, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        self.n += value.shape[0] * value.shape[1]


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_what_is_read_equals_each_row_alone(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    rows, ran = sharing_rows(), TokensRun(model)
    sites = ("resid_post", "embed", "mlp_out", "heads")
    positions = ("prompt", "fork", "positive", "negative", "mean")

    values: dict[str, Any] = capture(model, rows, positions=positions, answer="last", sites=sites)
    width = max(len(row.tree(4, 4)) for row in rows)
    # One row has 19 of the 20 tokens: cut there, two beginnings serve all rows.
    assert ran.n == 2 * 19 + len(rows) * (width - 19)

    for i, row in enumerate(rows):
        for j, position in enumerate(positions):
            alone = reference_values(model, row, positions=[position], answer="last", sites=sites)
            for site in sites:
                # fp32 rounding: residuals here are of size 1 to 20.
                torch.testing.assert_close(
                    values[site][i, :, j], alone[site][:, 0], rtol=1e-5, atol=1e-5
                )


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_attention_on_a_span_counts_what_lies_in_the_beginning(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    rows, positions = sharing_rows(), ("prompt", "fork", "negative")

    masses = capture(model, rows, positions=positions, answer="first", sites=["attention"])

    for i, row in enumerate(rows):
        for j, position in enumerate(positions):
            alone = reference_capture(
                model, row, position=position, answer="first", site="attention"
            )
            torch.testing.assert_close(masses["attention"][i, :, j], alone, rtol=1e-5, atol=1e-5)
    assert masses["attention"][1].max() > 0.05


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_a_sweep_equals_a_full_pass_for_every_cell(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    rule = SteeringRule(first_steered="prompt", score="logprob")
    rows, ran, multipliers = sharing_rows(), TokensRun(model), [-1.5, 0.0, 1.0]
    directions = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))

    fast = score_grid(
        model, rows, directions=directions, multipliers=multipliers, rule=rule, layers=range(4)
    )[:, 0]
    assert ran.n < sum(len(row.chain) for row in rows)

    slow = [
        naive_propensity(
            model.hf,
            model.anatomy.blocks,
            rows[i],
            directions[0, layer],
            multipliers[step],
            layer,
            first_steered=rule.first_steered,
            score=rule.score,
        )
        for i, layer, step in np.ndindex(fast.shape)
    ]
    # fp32: logits of size 10 carry 1e-6 each; a score sums several of them.
    np.testing.assert_allclose(fast.ravel(), slow, rtol=1e-5, atol=1e-5)
    assert np.abs(fast - fast[..., 1:2]).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equal_prompts_share_all_but_what_is_read(family):
    model = adopt_model(make(family), name=family)
    prompt = random_tokens(np.random.default_rng(1), 30)
    rows = [Rendered(prompt, (), (3,), (4,)), Rendered(prompt, (), (5,), (6,))]
    ran = TokensRun(model)

    values = capture(model, rows, positions=["last_-3", "prompt"], answer="first")["resid_post"]
    assert ran.n == 27 + 2 * 3

    for j, position in enumerate(("last_-3", "prompt")):
        alone = reference_capture(model, rows[0], position=position, answer="first")
        for i in range(2):
            torch.testing.assert_close(values[i, :, j], alone, rtol=1e-5, atol=1e-5)


def test_a_family_whose_blocks_drop_what_they_are_given_runs_rows_whole():
    model = adopt_model(make("llama"), name="llama")

    def drop(_attention, args, kwargs):
        return args, {**kwargs, "past_key_values": None}

    attention = model.anatomy.blocks[2].get_submodule("self_attn")
    attention.register_forward_pre_hook(drop, with_kwargs=True)
    rows = sharing_rows()

    assert not model.can_share_beginnings
    values = capture(model, rows, positions=["prompt", "mean"], answer="first")["resid_post"]

    for i, row in enumerate(rows):
        for j, position in enumerate(("prompt", "mean")):
            alone = reference_capture(model, row, position=position, answer="first")
            torch.testing.assert_close(values[i, :, j], alone, rtol=1e-5, atol=1e-5)


def test_a_family_that_counts_its_own_positions_runs_rows_whole():
    model = adopt_model(make("llama"), name="llama")

    def from_zero(_rotary, args, kwargs):
        positions = kwargs["position_ids"]
        return args, {**kwargs, "position_ids": positions - positions[:, :1]}

    rotary: Any = model.anatomy.decoder.rotary_emb
    rotary.register_forward_pre_hook(from_zero, with_kwargs=True)

    assert not model.can_share_beginnings
