"""Conversations: what was written stays as it was steered, turn by turn."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from actcache.analysis.generation.run.conversation import Conversation
from actcache.analysis.generation.run.turns import first_message, next_message
from actcache.engine.model import load_model
from actcache.errors import ActcacheError, RenderError
from actcache.prompts.render import Renderer, Rendering
from actcache.steering import PromptGate
from tests.support.tiny import tokenizer

MAX_NEW = 5


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder)


@contextmanager
def added(hf, vector, positions):
    """Add λ v to the output of block 1 at some positions of an uncached pass, by definition."""

    def change(_block, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for position, strength in positions.items():
            hidden[0, position] += strength * vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = hf.model.layers[1].register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def reference_answer(hf, tokens, positions, vector, strength):
    """Write greedily without a cache; gives the new tokens, and marks what was steered."""
    tokens, positions, answer = list(tokens), dict(positions), []
    for _ in range(MAX_NEW):
        if strength is not None:
            positions[len(tokens) - 1] = strength
        with added(hf, vector, positions), torch.no_grad():
            token = int(hf(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        answer.append(token)
        tokens.append(token)
    return answer, tokens, positions


@pytest.mark.model
def test_each_turn_is_that_of_a_loop_which_knows_what_was_steered(model, steering):
    vector = torch.from_numpy(steering.vectors[0].copy())
    messages = [(5, 9, 11), (7, 3, 8, 4), (12, 6, 30, 31, 40, 8), (9, 20, 21, 50, 60)]
    strengths = [2.0, None, -4.0, 3.0]
    talk = Conversation(model, end_tokens=(), max_new=MAX_NEW)
    tokens: list[int] = []
    positions: dict[int, float] = {}
    unlike = 0
    for message, strength in zip(messages, strengths, strict=True):
        written: list[int] = []
        again: list[int] = []
        talk.answer(message, None if strength is None else steering.at(strength), written.append)
        before = [*tokens, *message]
        plain, *_ = reference_answer(model.hf, before, positions, vector, None)
        answer, tokens, positions = reference_answer(model.hf, before, positions, vector, strength)
        assert written == answer
        talk.answer_again(None, again.append)
        assert again == plain
        unlike += written != plain
    assert unlike == 3


@pytest.mark.model
def test_a_conversation_that_does_not_fit_is_refused_and_stays(model):
    talk = Conversation(model, end_tokens=(), max_new=MAX_NEW)
    first: list[int] = []
    second: list[int] = []
    talk.answer((5, 6, 7), None, first.append)
    with pytest.raises(ActcacheError, match="/reset"):
        talk.answer([5] * 130, None, second.append)
    assert second == []
    talk.answer((8, 9), None, second.append)
    assert len(second) == MAX_NEW


@pytest.mark.model
def test_drawn_answers_depend_on_the_seed_alone(model):
    answers = []
    for seed in (0, 0, 1):
        talk = Conversation(model, end_tokens=(), max_new=20, temperature=1.0, seed=seed)
        written: list[int] = []
        talk.answer((5, 6, 7), None, written.append)
        answers.append(written)
    assert answers[0] == answers[1] != answers[2]


TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U: ' + m['content'] }}"
    "{% else %}{{ '\\nA:' + m['content'] + '|\\n' }}{% endif %}{% endfor %}{{ '\\nA:' }}"
)


def renderer(template):
    return Renderer(tokenizer(template=template), Rendering())


def test_the_turns_of_a_template_join_to_its_whole_conversation():
    made = renderer(TURNS)
    tokens = tokenizer(template=TURNS)
    answer = tuple(tokens(" yes", add_special_tokens=False)["input_ids"])
    joined = first_message(made, "Hi?") + answer + next_message(made, tokens, "And?")
    whole = tokens.apply_chat_template(
        [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": " yes"},
            {"role": "user", "content": "And?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert list(joined) == tokens(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("{{ messages[-1]['content'] }}", "drops earlier answers"),
        ("{{ raise_exception('one turn only') if messages | length > 1 }}", "second message"),
    ],
)
def test_a_template_without_turns_is_refused(template, remedy):
    with pytest.raises(RenderError, match=remedy):
        next_message(renderer(template), tokenizer(template=template), "And?")


@pytest.mark.model
@pytest.mark.parametrize(("threshold", "opens"), [(-1.0, True), (1.0, False)])
def test_a_prompt_gate_is_decided_for_each_answer(model, steering, threshold, opens):
    gate = PromptGate(layers=(1,), vectors=steering.vectors[:1], threshold=threshold)
    gated = replace(steering.at(3.0), gate=gate)
    plain = steering.at(3.0) if opens else None
    talks = [Conversation(model, end_tokens=(), max_new=MAX_NEW) for _ in range(2)]
    for message in ((5, 9, 11), (7, 3, 8, 4)):
        written: list[int] = []
        expected: list[int] = []
        talks[0].answer(message, gated, written.append)
        talks[1].answer(message, plain, expected.append)
        assert written == expected
