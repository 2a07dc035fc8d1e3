"""Rows that are steered each in its own way, in one batch with a cache: equal to the naive loop.

Both ways of writing, the generation loop and Hugging Face's `generate`, are held to the same texts.
"""

import numpy as np
import pytest
import torch

import actcache
from actcache.steering import Request
from tests.reference.steering import open_parts
from tests.steering import loop_runs
from tests.steering.cases import STEPS, Family, family_of
from tests.support.tiny import CONFIGS, FAMILIES, attentions

pytestmark = pytest.mark.model
WHOLE = ("llama", "gpt2", "gpt_neo", "gemma2", "cohere")
"""Families that differ in everything: norms before and behind, side by side, windows, positions."""


def generate_batch(case: Family, prompts, steerings, **kwargs):
    """Tokens [b, steps] and logits [b, steps, vocabulary] of Hugging Face's generate, steered."""
    ids, mask = padded(prompts, case.width)
    with actcache.steer(case.model, steerings, prompt_width=case.width, prompts=prompts):
        out = case.hf.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=STEPS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **{"do_sample": False, **kwargs},
        )
    return out.sequences[:, case.width :], torch.stack(out.logits, 1)


def padded(prompts, width: int):
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def compare(case: Family, steerings) -> float:
    """Hold every row equal to the reference; the share of rows whose text steering changed."""
    prompts = [case.prompts[row % 3] for row in range(len(steerings))]
    tokens, logits = generate_batch(case, prompts, steerings)
    changed = []
    for row, (prompt, steering) in enumerate(zip(prompts, steerings, strict=True)):
        true_tokens, true_logits = case.write(prompt, steering)
        plain, _ = case.write(prompt, None)
        fields = [part.fields for part in steering.parts] if steering else None
        assert tokens[row].tolist() == true_tokens, fields
        error = (logits[row] - true_logits).abs().max() / true_logits.abs().max()
        assert error <= 1e-5, fields
        if open_parts(case.hf, prompt, steering):
            changed.append(true_tokens != plain)
        else:
            assert true_tokens == plain, fields
    return float(np.mean(changed))


# All combinations on families that differ in everything, all pairs on the rest.
@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_every_operator_site_policy_and_gate_equals_the_naive_loop(family):
    case = family_of(family, attentions(family)[0])
    steerings = [None, *(case.kinds if family in WHOLE else case.pairs_of_kinds)]
    requests = [
        Request(prompt=case.prompts[row % 3], steering=steering)
        for row, steering in enumerate(steerings)
    ]

    assert compare(case, steerings) > 0.5
    assert loop_runs.compare(case, requests, ways=("auto",)) > 0.4


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_a_mixed_batch_and_all_ways_of_sharing_equal_the_naive_loop(family, attention):
    case = family_of(family, attention)
    sums = case.kinds[-4:]
    requests = [
        Request(prompt=case.prompts[(i + j) % 3], steering=steering)
        for i, steering in enumerate([*case.kinds[::37], *sums])
        for j in range(2)
    ]

    compare(case, [None, *case.kinds[::17], *sums])
    assert loop_runs.compare(case, requests) > 0.4


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_in_the_pairs_any_two_words_meet(family):
    case = family_of(family, attentions(family)[0])

    def words(steering):
        gate = type(steering.gate).__name__
        return steering.operator, steering.site, steering.tokens, gate

    def pairs(steerings):
        combinations = [words(s) for s in steerings if len(s.parts) == 1 and s.tokens != "front"]
        return {(i, j, w[i], w[j]) for w in combinations for i in range(4) for j in range(i)}

    assert pairs(case.pairs_of_kinds) == pairs(case.kinds)
    assert len(case.pairs_of_kinds) < len(case.kinds) / 5
