"""Prompt gates: decided once from the unsteered prompt, by the model or from a store."""

import json
from dataclasses import replace

import numpy as np
import pytest

import actcache
from actcache.engine.model import load_model
from actcache.errors import MismatchError
from actcache.steering import PromptGate, Steering, TokenGate, decide_gates
from actcache.steering.prompt_gates import (
    gate_similarities,
    is_met,
    pass_prompt_gates,
    store_similarities,
)
from tests.reference.steering import gate_is_met
from tests.reference.steering import gate_similarities as reference_similarities
from tests.steering.cases import Family
from tests.support.tiny import CONFIGS, lettered_rows, save

D = 32


def test_the_similarity_is_that_of_the_squashed_projection():
    h = np.array([[[3.0, 4.0]]])
    gate = PromptGate(layers=(0,), vectors=np.array([[2.0, 0.0]]), threshold=0.5)

    # The projection on (1, 0) is (3, 0); tanh keeps its direction: cos((3, 4), (1, 0)).
    assert gate_similarities(gate, h) == pytest.approx(0.6)
    assert gate_similarities(gate, -h) == pytest.approx(0.6)
    assert gate_similarities(gate, np.zeros((1, 1, 2))) == 0


def test_any_layer_decides_on_its_side_of_the_threshold():
    gate = PromptGate(layers=(0, 1), vectors=np.ones((2, 2)), threshold=0.5)
    similarities = np.array([[0.4, 0.6], [0.4, 0.4], [0.5, 0.5], [0.6, 0.7]])

    assert is_met(gate, similarities).tolist() == [True, False, False, True]
    below = replace(gate, above=False)
    assert is_met(below, similarities).tolist() == [True, True, False, False]


@pytest.mark.model
@pytest.mark.parametrize("family", CONFIGS)
def test_prompts_of_three_lengths_in_a_batch_equal_each_alone(family):
    case = Family(family)
    pairs = [(prompt, gate) for gate in case.gates for prompt in case.prompts]
    prompts, gates = [prompt for prompt, _ in pairs], [gate for _, gate in pairs]

    decisions = decide_gates(case.model, prompts, gates)

    assert decisions.tolist() == [gate_is_met(case.hf, prompt, gate) for prompt, gate in pairs]
    assert 0 < decisions.sum() < len(pairs)


@pytest.mark.model
def test_parts_lose_a_gate_that_is_met_and_are_left_out_otherwise():
    case = Family("llama")
    gate = case.gates[0]
    met = [gate_is_met(case.hf, prompt, gate) for prompt in case.prompts]
    gated = case.steering("add", "resid_post", (1,), gate=gate)
    always = case.steering("ablate", "ln1", (2,), gate=TokenGate(threshold=1.0))

    passed = pass_prompt_gates(
        case.model,
        [*case.prompts, *case.prompts, case.prompts[0]],
        [gated] * 3 + [gated + always] * 3 + [None],
    )

    assert sorted(met) != [met[0]] * 3
    for row, is_open in enumerate(met):
        assert (passed[row] is not None) == is_open
        both = passed[3 + row]
        assert both is not None
        assert [part.operator for part in both.parts] == ["add", "ablate"][not is_open :]
        assert both.parts[-1].gate == always.gate
        assert all(not isinstance(part.gate, PromptGate) for part in both.parts)
    assert passed[6] is None


@pytest.mark.model
def test_a_store_gives_the_same_similarities_without_the_model(tmp_path):
    name = save(tmp_path / "model")
    text = "\n".join(map(json.dumps, lettered_rows(6, np.random.default_rng(0))))
    (tmp_path / "calm.jsonl").write_text(text, encoding="utf-8")
    store = actcache.build_store(
        tmp_path / "calm.jsonl",
        tmp_path / "s.zarr",
        model=name,
        sites=("resid_post", "embed"),
        positions=("prompt", "mean"),
    )
    model = load_model(name)
    vectors = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)
    prompts = [tuple(map(int, tokens)) for tokens in store.ragged("prompt_tokens")]

    for over in ("mean", "last"):
        gate = PromptGate(layers=(0, 2, 3), vectors=vectors, threshold=0.1, over=over)
        similarities = store_similarities(store, gate, np.arange(6))

        true = [reference_similarities(model.hf, prompt, gate) for prompt in prompts]
        np.testing.assert_allclose(similarities, true, rtol=1e-4, atol=1e-5)
        met = decide_gates(model, prompts, [gate] * 6)
        assert is_met(gate, similarities).tolist() == met.tolist()


@pytest.mark.model
@pytest.mark.parametrize(
    ("prompts", "n_gates", "layer", "message"),
    [
        ([(3, 4), ()], 2, 1, r"prompt 1 is empty.*Leave the row out"),
        ([(3, 4)], 2, 1, r"1 prompts and 2 gates.*Repeat a gate"),
        ([(3, 4)], 1, 4, r"layers 4 to 4, expected 0 to 3.*of this model"),
    ],
)
def test_what_cannot_be_decided_is_refused(prompts, n_gates, layer, message):
    case = Family("llama")
    gate = PromptGate(layers=(layer,), vectors=np.ones((1, D)), threshold=0.5)

    with pytest.raises(MismatchError, match=message):
        decide_gates(case.model, prompts, [gate] * n_gates)


@pytest.mark.model
def test_another_number_of_prompts_than_of_steerings_is_refused():
    case = Family("llama")
    steering = Steering(layers=(1,), vectors=np.ones((1, D)))

    with pytest.raises(MismatchError, match=r"1 prompts and 2 steerings.*one steering"):
        pass_prompt_gates(case.model, [(3, 4)], [steering, None])
