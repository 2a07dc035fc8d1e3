"""Chat templates of strangers: bounded in time, memory and text; otherwise as transformers renders."""

import time

import pytest

from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.render import Renderer, Rendering
from actcache.prompts.templates import TemplateError, TemplateProcess
from tests.support.tiny import TEMPLATE, tokenizer

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Né\u2028\n?"},
]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROW = (
    "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)


def sample(prompt="How are you?"):
    return Sample(
        id="mood/0",
        behavior="mood",
        prompt=prompt,
        positive=" (A)",
        negative=" (B)",
        label=None,
        letter="A",
    )


@pytest.fixture(scope="module")
def process():
    return TemplateProcess(seconds=1.0)


@pytest.mark.model
@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}\n{% endfor %}",
        "{%- for m in messages if m.role == 'user' %}\n  {{- m.content | trim }}\n{%- endfor %}",
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}",
    ],
)
def test_renders_as_transformers_does(process, template):
    made = tokenizer()

    text = process.render(template, MESSAGES, made.special_tokens_map)

    assert text == made.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "reason", "stopped"),
    [
        (LOOP, "does not end within 1 s", True),
        ("{{ '%900000000d' % 1 }}", "(does not end|characters|memory)", True),
        ("{{ 'a' * 10000000000 }}", "memory", True),
        (GROW, "(memory|does not end)", True),
        ("{{ 'a' * 20000000 }}", "characters", True),
        ("{{ raise_exception('no system, please') }}", "no system, please", False),
        ("{{ ''.__class__.__mro__ }}", "unsafe", False),
        ("{% if %}", "Expected an expression", False),
    ],
)
def test_a_template_is_stopped_or_refused_and_the_next_is_rendered(
    process, template, reason, stopped
):
    start = time.monotonic()
    with pytest.raises(TemplateError, match=reason) as caught:
        process.render(template, MESSAGES, {})

    assert caught.value.stopped == stopped
    assert time.monotonic() - start < 30  # the bound, and a start on a busy machine
    assert process.render("{{ messages[0].content }}", MESSAGES, {}) == "Be kind."


@pytest.mark.model
def test_a_template_that_was_stopped_is_not_tried_for_each_row():
    made = tokenizer(template=LOOP)
    render = Renderer(made, Rendering(), process=TemplateProcess(seconds=0.2))
    with pytest.raises(RenderError, match="does not end"):
        render(sample())

    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(RenderError, match="--template none"):
            render(sample())
    assert time.monotonic() - start < 2


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "rendered"),
    [("", "no text"), ("{{ ' \n' }}", "no text"), ("Hello!", "other text")],
)
def test_a_template_without_the_prompt_is_refused(process, template, rendered):
    render = Renderer(tokenizer(template=template), Rendering(), process=process)

    with pytest.raises(RenderError, match=f"renders {rendered} for row 'mood/0'.*--template FILE"):
        render(sample())
