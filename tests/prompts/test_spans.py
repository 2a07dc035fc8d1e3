"""Marked spans: which tokens they are, under templates and variants."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.data.personas import Persona, expand_variants, load_personas
from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.render import Renderer, Rendering
from actcache.prompts.spans import span_in_tokens
from tests.support.tiny import TEMPLATE, tokenizer

PROMPT = "Fear spiders. Say so."


def sample(**changes):
    plain = Sample(
        id="b/0", behavior="b", prompt=PROMPT, positive=None, negative=None, label="x", letter=""
    )
    return replace(plain, **changes)


def test_a_span_is_part_of_the_digest():
    assert sample(span=(5, 12)).digest != sample().digest != sample(span=(0, 0)).digest
    assert sample().digest == "671a91b97cfa0df0"  # that of stores from before there were spans


def words(row, tok):
    assert row.span is not None
    return "".join(tok.convert_ids_to_tokens(list(row.prompt[slice(*row.span)])))


@pytest.mark.parametrize("bos", ["auto", "0", "2", "tokenizer"])
@pytest.mark.parametrize("template", [TEMPLATE, None, "<s>" + TEMPLATE])
@pytest.mark.parametrize("span", [(0, 4), (5, 12), (17, 21), (0, 21)])
def test_a_span_becomes_its_tokens(template, bos, span):
    tok = tokenizer(template=template, bos=bos != "0")
    row = Renderer(tok, Rendering(bos=bos))(sample(span=span))

    assert words(row, tok) == PROMPT[slice(*span)]


@pytest.mark.parametrize("space", ["one", "strip"])
@pytest.mark.parametrize("trim", ["", " | trim"])
@pytest.mark.parametrize("span", [(0, 9), (2, 9), (0, 12), (4, 12)])
def test_white_space_that_is_trimmed_off_moves_the_span(space, trim, span):
    template = TEMPLATE.replace("m['content'] + ", f"(m['content']{trim}) + ")
    tok = tokenizer(template=template)
    row = Renderer(tok, Rendering(space=space))(sample(prompt="  Fear it.  ", span=span))

    assert words(row, tok).strip() == "  Fear it.  "[slice(*span)].strip()
    if not trim and space == "one":  # nothing is trimmed off, so nothing is lost
        assert words(row, tok) == "  Fear it.  "[slice(*span)]


def test_words_of_the_template_are_not_mistaken_for_the_span():
    tok = tokenizer(template=TEMPLATE)
    row = Renderer(tok, Rendering(system="U: A"))(sample(prompt="A U", span=(0, 1)))

    assert row.span == (len("S: U: A\nU: "), len("S: U: A\nU: A"))


def test_variants_move_the_span_with_the_prompt():
    personas = load_personas()
    behavior = next(iter(personas))
    base = sample(behavior=behavior, span=(5, 12))
    names = ("base", "sys_pos", "user_pos", "user_neg")
    tok = tokenizer()
    render = Renderer(tok, Rendering())

    variants = expand_variants([base], names, personas=personas)

    for variant in variants:
        assert variant.span is not None
        assert variant.prompt[slice(*variant.span)] == "spiders"
        assert words(render(variant), tok) == "spiders"
    (bare,) = expand_variants([sample(behavior=behavior)], ["user_pos"], personas=personas)
    assert bare.span is None


@pytest.mark.parametrize(
    "template",
    [TEMPLATE.replace("m['content'] +", "m['content'][:8] +"), TEMPLATE + TEMPLATE],
)
def test_a_template_that_changes_or_repeats_the_prompt_is_refused(template):
    refusals = r"row 'b/0'(: the marked span 'spiders' does not appear|, without its whole prompt)"
    with pytest.raises(RenderError, match=refusals):
        Renderer(tokenizer(template=template), Rendering())(sample(span=(5, 12)))


def test_a_span_of_trimmed_white_space_is_refused():
    template = TEMPLATE.replace("m['content'] + ", "(m['content'] | trim) + ")
    with pytest.raises(RenderError, match="Mark visible text"):
        Renderer(tokenizer(template=template), Rendering())(sample(prompt=" Hi", span=(0, 1)))


def merging_tokenizer(vocabulary: dict[str, int]) -> Any:
    """Tokens of one character, and those of the vocabulary where they fit, longest first."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([(word, -1.0 / len(word)) for word in vocabulary], 0))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="?")


class Slow:
    """The same tokenizer without a word on where its tokens lie."""

    def __init__(self, tok):
        self._tok = tok
        self.bos_token_id = tok.bos_token_id

    def __call__(self, text, **settings):
        assert not settings.get("return_offsets_mapping")
        return {"input_ids": self._tok(text, add_special_tokens=False)["input_ids"]}


PIECES = ["?", *"abc ", "ab", "ca", " c", "abc", "bca"]


@given(st.text("abc ", min_size=1, max_size=12), st.data())
def test_every_token_that_overlaps_counts_fast_or_slow(text, data):
    tok = merging_tokenizer({piece: i for i, piece in enumerate(PIECES)})
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    coded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, lies = coded["input_ids"], coded["offset_mapping"]

    spans = [
        span_in_tokens(tokenizer, ids, (start, end), text=text, name="b/0")
        for tokenizer in (tok, Slow(tok))
    ]

    true = [i for i, (a, b) in enumerate(lies) if set(range(a, b)) & set(range(start, end))]
    assert spans[0] == (true[0], true[-1] + 1)
    # Beginnings may be cut into tokens in another way; then a few more count, and none is missed.
    assert spans[1][0] <= true[0]
    assert spans[1][1] > true[-1]


def test_tokens_of_another_text_are_refused():
    tok = tokenizer()
    with pytest.raises(RenderError, match="pass another --bos"):
        span_in_tokens(tok, [1, 2, 3], (0, 2), text="abc", name="b/0")


def test_a_span_of_the_system_message_becomes_its_tokens():
    tok = tokenizer()
    row = Renderer(tok, Rendering())(sample(system="Fear bees.", span=(5, 9), span_part="system"))

    assert words(row, tok) == "bees"
    assert row.span == (len("S: Fear "), len("S: Fear bees"))


def test_a_span_of_the_persona_line_becomes_its_tokens():
    tok = tokenizer()
    marked = sample(span_part="persona", span_text="bees")
    personas = {"b": Persona("Fear bees.", "Like bees.")}
    for variant in expand_variants([marked], ["sys_pos", "user_neg"], personas=personas):
        assert words(Renderer(tok, Rendering())(variant), tok) == "bees"
