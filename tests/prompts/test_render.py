"""Text to tokens: templates, BOS, spaces, and rows that cannot be rendered."""

from dataclasses import replace

import pytest

from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.render import Renderer, Rendering
from tests.support.tiny import tokenizer

PAIR = Sample(
    id="b/0", behavior="b", prompt="Hi?", positive=" (A)", negative="(B)", label=None, letter="A"
)


def text(ids, tok):
    return "".join(tok.convert_ids_to_tokens(list(ids)))


def test_a_pair_is_prompt_shared_start_and_branches():
    tok = tokenizer()
    row = Renderer(tok, Rendering())(PAIR)

    assert text(row.prompt, tok) == "U: Hi?\nA:"
    assert text(row.shared, tok) == " ("
    assert text(row.positive, tok) == "A)"
    assert text(row.negative, tok) == "B)"
    assert row.chain == row.prompt + row.shared
    assert row.length == len(row.chain) + 2


def test_a_label_has_a_prompt_alone():
    sample = replace(PAIR, positive=None, negative=None, label="x")
    row = Renderer(tokenizer(), Rendering())(sample)

    assert row.chain == row.prompt
    assert row.positive == row.negative == ()


def test_the_system_message_of_the_row_takes_precedence_over_the_builds():
    tok = tokenizer()
    renderer = Renderer(tok, Rendering(system="Be kind."))

    assert renderer.text(PAIR) == "S: Be kind.\nU: Hi?\nA:"
    assert renderer.text(replace(PAIR, system="Be bold.")) == "S: Be bold.\nU: Hi?\nA:"


@pytest.mark.parametrize(
    ("space", "positive", "expected"),
    [
        ("one", "(A)", " (A)"),
        ("one", " (A)", " (A)"),
        ("one", "  (A)", " (A)"),
        ("add", "(A)", " (A)"),
        ("add", " (A)", "  (A)"),  # as steering-bench does to the x-risk sets
        ("none", "(A)", "(A)"),
    ],
)
def test_the_space_before_the_completion_is_a_setting(space, positive, expected):
    tok = tokenizer()
    negative = positive.replace("A", "B")
    row = Renderer(tok, Rendering(space=space))(replace(PAIR, positive=positive, negative=negative))

    assert text(row.shared + row.positive, tok) == expected


def test_a_plain_prompt_that_ends_in_a_space_gets_no_second_one():
    tok = tokenizer()
    sample = replace(PAIR, prompt="x = ", positive="1", negative="2")
    row = Renderer(tok, Rendering(template="none"))(sample)

    assert text(row.prompt + row.positive, tok) == "x = 1"


@pytest.mark.parametrize("end", ["\n", "\n\n", "\t"])
def test_after_other_white_space_a_completion_keeps_its_space(end):
    renderer = Renderer(tokenizer(), Rendering(template="none"))

    for completion in (" yes", "yes"):
        assert renderer.joined(f"Answer:{end}", completion) == " yes"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    "template",
    [None, "{{ bos_token }}{{ messages[0]['content'] }}", "x{{ messages[0]['content'] }}"],
)
def test_there_is_one_bos_if_tokenizer_or_template_add_any(bos, template):
    tok = tokenizer(bos=bos, template=template)
    row = Renderer(tok, Rendering())(PAIR)

    n_bos = int(bos or "bos" in (template or ""))
    assert list(row.prompt).count(tok.bos_token_id) == n_bos
    assert row.prompt[:n_bos] == (tok.bos_token_id,) * n_bos


@pytest.mark.parametrize("bos", ["0", "1", "2"])
def test_the_number_of_bos_is_a_setting(bos):
    tok = tokenizer(bos=True)
    row = Renderer(tok, Rendering(bos=bos))(PAIR)

    assert list(row.prompt).count(tok.bos_token_id) == int(bos)


def test_a_template_file_is_used(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("<{{ messages[0]['content'] }}>", encoding="utf-8")

    assert Renderer(tokenizer(), Rendering(template=str(file))).text(PAIR) == "<Hi?>"


def refusal(sample=PAIR, rendering=None, **kinds):
    with pytest.raises(RenderError) as caught:
        Renderer(tokenizer(**kinds), rendering or Rendering())(sample)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refuses_a_template_that_is_not_a_file():
    assert "Pass one of them" in refusal(rendering=Rendering(template="missing.jinja"))


def test_refuses_a_system_message_without_a_chat_template():
    assert "--template FILE" in refusal(rendering=Rendering(template="none", system="Be kind."))
    row = replace(PAIR, system="Be kind.")
    assert "'b/0' has a system message" in refusal(row, Rendering(template="none"))


def test_refuses_a_template_that_drops_the_system_message():
    dropping = "{{ messages[-1]['content'] }}"
    assert "drops the system message of row 'b/0'" in refusal(
        rendering=Rendering(system="Be kind."), template=dropping
    )


def test_refuses_a_row_on_which_the_template_raises():
    raising = "{{ raise_exception('user first') }}"
    assert "refuses row 'b/0' (user first)" in refusal(template=raising)


def test_refuses_completions_if_one_continues_the_other():
    row = replace(PAIR, positive=" yes", negative=" yes indeed")
    assert "no token tells them apart" in refusal(row)


def test_refuses_a_boundary_that_the_tokenizer_merges():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"?": 0, "a": 1, "b": 2, "ab": 3, "c": 4}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    merging = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    row = replace(PAIR, prompt="a", positive="b", negative="c")

    with pytest.raises(RenderError, match=r"'ab' .*Change --space"):
        Renderer(merging, Rendering(template="none", space="none"))(row)


@pytest.mark.parametrize("field", ["space", "bos"])
def test_refuses_unknown_settings(field):
    with pytest.raises(RenderError, match="Pass one of them"):
        Rendering(**{field: "some"})


def test_all_rows_share_one_integer_for_each_token():
    """All rows of a build are in memory; integers that rows have alone take most of it."""
    from actcache.demo import model_path
    from actcache.engine.model import load_tokenizer

    render = Renderer(load_tokenizer(str(model_path())), Rendering())
    sample = replace(PAIR, prompt="Is the following statement something you would say?")
    first, second = render(sample), render(replace(sample, id="b/1"))

    assert any(token > 256 for token in first.prompt)  # Python itself shares the smaller ones
    assert first.prompt == second.prompt
    assert all(a is b for a, b in zip(first.prompt, second.prompt, strict=True))
