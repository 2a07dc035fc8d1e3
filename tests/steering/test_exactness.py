"""Rows that are steered each in its own way, in one batch with a cache: equal to the naive loop."""

import numpy as np
import pytest
import torch

import actcache
from tests.reference.steering import open_parts, reference_generate
from tests.steering.cases import Family
from tests.support.tiny import CONFIGS, FAMILIES

pytestmark = pytest.mark.model
STEPS = 3


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
    plain = {
        p: reference_generate(case.hf, case.family, p, None, steps=STEPS)[0] for p in case.prompts
    }
    changed = []
    for row, (prompt, steering) in enumerate(zip(prompts, steerings, strict=True)):
        true_tokens, true_logits = reference_generate(
            case.hf, case.family, prompt, steering, steps=STEPS
        )
        what = [part.fields for part in steering.parts] if steering else None
        assert tokens[row].tolist() == true_tokens, what
        error = (logits[row] - true_logits).abs().max() / true_logits.abs().max()
        assert error <= 1e-5, what
        if open_parts(case.hf, prompt, steering):
            changed.append(true_tokens != plain[prompt])
        else:
            assert true_tokens == plain[prompt], what
    return float(np.mean(changed))


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_every_operator_site_policy_and_gate_equals_the_naive_loop(family):
    case = Family(family)

    changed = compare(case, [None, *case.every_kind()])

    assert changed > 0.5


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_a_mixed_batch_equals_the_naive_loop(family, attention):
    case = Family(family, attention)
    kinds = list(case.every_kind())

    compare(case, [None, *kinds[::17], *kinds[-4:]])
