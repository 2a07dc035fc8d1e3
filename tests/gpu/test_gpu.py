"""On a CUDA device: the same numbers as on the CPU, and what happens when its memory runs out."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from actcache.engine.batching import Budget, run_batches
from actcache.engine.model import adopt_model, load_model
from actcache.engine.reference import reference_cell
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.engine.tree_capture import capture
from actcache.prompts.render import Rendered
from tests.support.tiny import LAST_3, make, marked_rows, random_tokens, save

DEVICE = "cuda"
N_DEVICES = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.model,
    pytest.mark.skipif(N_DEVICES == 0, reason="needs a CUDA device, and there is none"),
]
FAMILIES = ("llama", "gpt2", "gpt_neo", "mistral", "gemma2", "bloom")
SITES = ("resid_post", "embed", "heads", "attention")
MULTIPLIERS = [-1.5, 0.0, 1.0]


@pytest.fixture(autouse=True)
def full_float32():
    """TF32 rounds to 10 bits what is to be compared to 1e-4."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def directions(n_sets: int = 1) -> torch.Tensor:
    return torch.randn(n_sets, 4, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_capture_equals_that_of_the_cpu(family):
    on_cpu, on_device = (
        adopt_model(make(family).to(place), name=family) for place in ("cpu", DEVICE)
    )
    settings: dict[str, Any] = {"positions": LAST_3, "answer": "first", "sites": SITES}

    captured = capture(on_device, marked_rows(), **settings)

    for site, true in capture(on_cpu, marked_rows(), **settings).items():
        assert captured[site].device.type == torch.device(DEVICE).type
        # fp32 in another order of summation; residuals are of size 1 to 20.
        torch.testing.assert_close(captured[site].cpu(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", ["letter", "logprob"])
def test_a_sweep_equals_that_of_the_cpu(family, score):
    settings: dict[str, Any] = {
        "directions": directions(2),
        "multipliers": MULTIPLIERS,
        "rule": SteeringRule(score=score, first_steered="prompt"),
        "layers": range(4),
    }
    on_cpu, on_device = (
        score_grid(adopt_model(make(family).to(place), name=family), marked_rows(), **settings)
        for place in ("cpu", DEVICE)
    )

    np.testing.assert_allclose(on_device, on_cpu, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_a_sweep_is_no_further_from_float32_than_the_naive_loop():
    rng = np.random.default_rng(1)

    def some(n: int) -> tuple[int, ...]:
        return random_tokens(rng, n)

    rows = [Rendered(some(n), some(1), some(2), some(2)) for n in range(5, 29)]
    rule = SteeringRule(score="logprob", first_steered="prompt")
    settings: dict[str, Any] = {"multipliers": MULTIPLIERS, "rule": rule, "layers": range(4)}
    off: dict[str, list[np.ndarray]] = {"fast": [], "naive": []}
    for family in ("llama", "gpt2"):
        half = make(family).to(torch.bfloat16)
        exact = make(family)
        exact.load_state_dict(half.float().state_dict())  # the same weights, rounded
        model = adopt_model(half.to(DEVICE, torch.bfloat16), name="half")
        true = score_grid(
            adopt_model(exact, name="exact"), rows, directions=directions(), **settings
        )
        fast = score_grid(model, rows, directions=directions(), **settings)
        naive = np.empty_like(fast)
        for i, layer, m in np.ndindex(len(rows), 4, len(MULTIPLIERS)):
            naive[i, 0, layer, m] = reference_cell(
                model, rows[i], directions()[0, layer], MULTIPLIERS[m], layer, rule
            )
        off["fast"].append(fast - true)
        off["naive"].append(naive - true)

    fast_rms, naive_rms = (float(np.sqrt(np.square(off[way]).mean())) for way in ("fast", "naive"))
    assert naive_rms > 1e-3  # bfloat16 does round
    # Two sets of roundings of one size; over 24 rows their ratio scatters by a tenth around 1.
    assert fast_rms <= 1.25 * naive_rms


def test_when_memory_runs_out_batches_shrink_and_results_stay(caplog):
    model = adopt_model(make("llama").to(DEVICE), name="llama")
    rng = np.random.default_rng(0)
    rows = [Rendered(random_tokens(rng, 96), (), (5,), (6,)) for _ in range(1024)]
    settings: dict[str, Any] = {"positions": ["prompt"], "answer": "first", "sites": ["resid_post"]}
    costs = [row.length for row in rows]

    def run_all(tokens: int) -> tuple[np.ndarray, int]:
        captured = np.empty((len(rows), 4, 32), np.float32)
        budget = Budget(tokens)

        def run(batch: np.ndarray) -> None:
            read = capture(model, [rows[i] for i in batch], **settings)["resid_post"]
            captured[batch] = read[:, :, 0].cpu().numpy()

        run_batches(costs, budget=budget, run=run)
        return captured, budget.tokens

    roomy, _ = run_all(4096)
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (48 << 20)  # one batch of all rows takes several times it
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        with caplog.at_level(logging.WARNING, "actcache"):
            tight, tokens = run_all(1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert "the device is out of memory" in caplog.text
    assert 1 <= tokens < sum(costs)
    np.testing.assert_allclose(tight, roomy, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(N_DEVICES < 2, reason="needs two CUDA devices")
def test_a_model_on_two_devices_gives_the_numbers_of_one(tmp_path):
    name = save(tmp_path / "model")
    first = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1")
    second = ("model.layers.2", "model.layers.3", "model.norm", "lm_head")
    split = load_model(name, device_map={**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)})
    whole = load_model(name, device="cpu")
    read: dict[str, Any] = {"positions": LAST_3, "answer": "first", "sites": SITES}
    sweep: dict[str, Any] = {
        "directions": directions(),
        "multipliers": MULTIPLIERS,
        "rule": SteeringRule(score="logprob"),
        "layers": range(4),
    }

    captured, true = (capture(model, marked_rows(), **read) for model in (split, whole))

    for site in SITES:
        torch.testing.assert_close(captured[site].cpu(), true[site], rtol=1e-4, atol=1e-4)
    moved, stayed = (score_grid(model, marked_rows(), **sweep) for model in (split, whole))
    np.testing.assert_allclose(moved, stayed, rtol=1e-4, atol=1e-4)
