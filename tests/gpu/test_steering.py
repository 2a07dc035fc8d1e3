"""Steering on a CUDA device: the same logits as on the CPU; no compiled decoding behind our back."""

import pytest
import torch

import actcache
from actcache.engine.model import adopt_model
from actcache.errors import ModelError
from tests.steering.cases import Family
from tests.steering.test_exactness import padded

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.model,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"
    ),
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo", "mistral", "gemma2", "bloom"])
def test_steered_logits_equal_those_of_the_cpu(family):
    case = Family(family)
    steerings = [None, *case.every_kind()]
    prompts = [case.prompts[row % 3] for row in range(len(steerings))]
    ids, mask = padded(prompts, case.width)
    logits = []
    for place in ("cpu", DEVICE):
        model = adopt_model(case.hf.to(place))
        with (
            torch.no_grad(),
            actcache.steer(model, steerings, prompt_width=case.width, prompts=prompts),
        ):
            positions = (mask.cumsum(1) - 1).clamp_min(0).to(place)
            out = model.hf(ids.to(place), attention_mask=mask.to(place), position_ids=positions)
        logits.append(out.logits[:, -1].cpu())

    error = (logits[1] - logits[0]).abs().amax(-1) / logits[0].abs().amax(-1)
    # A token gate may close on one device and open on the other, where c1 lies at its threshold.
    assert (error <= 1e-4).float().mean() > 0.99


def test_a_static_cache_would_compile_and_is_refused():
    case = Family("llama")
    model = adopt_model(case.hf.to(DEVICE))
    ids = torch.tensor([case.prompts[1]], device=DEVICE)

    with (
        pytest.raises(ModelError, match="disable_compile=True"),
        actcache.steer(model, None, prompt_width=case.width),
    ):
        model.hf.generate(ids, max_new_tokens=2, cache_implementation="static")
