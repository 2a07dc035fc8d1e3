"""Real rows and real small models that nobody here wrote; skipped where they are not at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from actcache.data.formats import read_samples
from actcache.engine.model import adopt_model, load_model, load_tokenizer
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.engine.tree_capture import capture
from actcache.prompts.render import Renderer, Rendering
from tests.reference.engine import naive_propensity

DATA = Path(__file__).parents[1].parent / "shared" / "data"
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data, which is not here"),
]


def rendered(model_name, n):
    files = sorted((DATA / "mwe" / "steering-bench").glob("*.json"))
    samples = read_samples(files, limit=n)
    renderer = Renderer(load_tokenizer(str(DATA / "models" / model_name)), Rendering())
    return [renderer(sample) for sample in samples]


@pytest.mark.parametrize("model_name", ["tinytalk-3m", "stories260K"])
def test_the_sweep_equals_the_naive_loop_on_real_rows(model_name):
    model = load_model(str(DATA / "models" / model_name))
    rows = rendered(model_name, 1)
    directions = torch.randn(
        1, model.n_layers, model.d_model, generator=torch.Generator().manual_seed(0)
    )
    layers = [0, model.n_layers // 2, model.n_layers - 1]
    for rule in (
        SteeringRule(),
        SteeringRule(first_steered="completion", score="logprob"),
        SteeringRule(first_steered="prompt", score="logit"),
    ):
        fast = score_grid(
            model, rows, directions=directions, multipliers=[-1.5, 1.0], rule=rule, layers=layers
        )
        for i, row in enumerate(rows):
            for j, layer in enumerate(layers):
                naive = naive_propensity(
                    model.hf,
                    model.anatomy.blocks,
                    row,
                    directions[0, layer],
                    1.0,
                    layer,
                    first_steered=rule.first_steered,
                    score=rule.score,
                )
                # fp32: log-probabilities of size 10 carry 1e-6 each, and four are summed.
                np.testing.assert_allclose(fast[i, 0, j, 1], naive, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_name", ["tinytalk-3m", "stories260K"])
def test_the_capture_equals_hidden_states_on_real_rows(model_name):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(DATA / "models" / model_name)
    model = adopt_model(hf)
    rows = rendered(model_name, 2)

    positions = ("prompt", "fork", "positive", "negative")
    residuals = capture(model, rows, positions=positions, answer="first")["resid_post"]

    for i, row in enumerate(rows):
        sequence = torch.tensor([row.chain + row.negative[:1]])
        with torch.no_grad():
            states = hf(sequence, output_hidden_states=True).hidden_states[1:-1]
        truth = torch.stack(states, 1)[0]
        for j, at in ((0, len(row.prompt) - 1), (1, len(row.chain) - 1), (3, -1)):
            torch.testing.assert_close(residuals[i, :-1, j], truth[:, at], rtol=1e-5, atol=1e-4)


def test_mood_steers_tinytalk_at_layer_6():
    """A happy/sad mean difference at layer 6 moves log P(happy) − log P(sad) (data/README)."""
    from actcache.data.samples import Sample

    model = load_model(str(DATA / "models" / "tinytalk-3m"))
    renderer = Renderer(load_tokenizer(model.name), Rendering(template="none"))
    prompts = ["I won the game today and I feel", "The sun is out and she felt very", "He was"]
    rows = [
        renderer(
            Sample(
                id=str(i),
                behavior="mood",
                prompt=prompt,
                positive="happy",
                negative="sad",
                label=None,
                letter="",
            )
        )
        for i, prompt in enumerate(prompts)
    ]
    read = capture(model, rows, positions=("positive", "negative"), answer="first")["resid_post"]
    directions = (read[:, :, 0] - read[:, :, 1]).mean(0)[None]

    moved = score_grid(
        model,
        rows,
        directions=directions,
        multipliers=[-1.0, 0.0, 1.0],
        rule=SteeringRule(),
        layers=[6],
    )[:, 0, 0]

    assert (np.diff(moved, axis=1) > 1).all()


def test_raw_and_letter_forms_of_a_behavior_hold_the_same_statements():
    raw = read_samples([DATA / "mwe" / "raw" / "narcissism.jsonl"])
    letters = read_samples([DATA / "mwe" / "steering-bench" / "narcissism.json"])

    assert len(raw) == len(letters) == 1000
    for a, b in zip(raw, letters, strict=True):
        statement = a.prompt.split("\n", 1)[1]
        assert statement in b.prompt
    assert json.dumps(sorted({sample.letter for sample in raw})) == '["No", "Yes"]'
