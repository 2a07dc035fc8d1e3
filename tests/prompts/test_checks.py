"""Conditions of the published codes: which rows break them, and what users are told."""

import json
from dataclasses import replace

import pytest

from actcache.cli.main import main
from actcache.conventions import PRESET_NAMES, PRESETS
from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.checks import CONDITIONS, broken_conditions, check_rows, too_long_rows
from actcache.prompts.render import Renderer, Rendering
from tests.support.tiny import save, tokenizer

GOOD = Sample(
    id="b/0", behavior="b", prompt="Hi?", positive="(A)", negative="(B)", label=None, letter="A"
)
PAIRS = {  # what breaks which conditions, with the default rendering
    "good": ("(A)", "(B)", set()),
    "leading space": (" (A)", " (B)", set()),
    "longer word": ("(Ab)", "(Ac)", {"letter"}),
    "no letter": ("(A b)", "(B b)", {"letter", "one_after"}),
    "one letter a text": ("(A)", "(B, no)", {"letter", "one_after", "equal"}),
    "nothing after": (" A", " B", {"one_after"}),
    "two after": ("(A).", "(B).", {"one_after"}),
    "space after": ("(A) ", "(B) ", {"one_after"}),
    "other end": ("(A)", "(B]", {"equal"}),
    "other length": ("(A)", "(B).", {"one_after", "equal"}),
    "special": ("<s>(A)", "<s>(B)", {"letter", "special"}),
}


def broken(positive="(A)", negative="(B)", *, tok=None, **settings):
    renderer = Renderer(tok or tokenizer(), Rendering(**settings))
    sample = replace(GOOD, positive=positive, negative=negative)
    return set(broken_conditions(sample, renderer(sample), renderer))


@pytest.mark.parametrize("case", PAIRS)
def test_a_pair_breaks_the_expected_conditions_and_no_other(case):
    positive, negative, expected = PAIRS[case]

    assert broken(positive, negative) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bos": "1"}, set()),
        ({"bos": "2"}, {"bos"}),
        ({"space": "add"}, set()),
        ({"space": "none"}, {"one_space"}),
        ({"space": "strip"}, set()),
    ],
)
def test_settings_break_conditions_too(settings, expected):
    assert broken(**settings) == expected


def test_a_second_space_and_a_second_bos_are_noticed():
    both = tokenizer(bos=True, template="{{ bos_token }}{{ messages[0]['content'] }}")

    assert broken(" (A)", " (B)", space="add") == {"one_space"}
    assert broken(tok=both) == set()
    assert broken(tok=both, bos="tokenizer") == {"bos"}


def test_a_plain_prompt_that_ends_in_a_space_has_the_one_space():
    renderer = Renderer(tokenizer(), Rendering(template="none"))
    row = replace(GOOD, prompt="Q: ")

    assert broken_conditions(row, renderer(row), renderer) == ()


def test_a_letter_merged_with_its_bracket_is_not_a_letter():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["?", "Hi?", "(", "A", "B", ")", "(A", "(B"]
    merges = [("(", "A"), ("(", "B")]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    merging = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    renderer = Renderer(merging, Rendering(template="none"))

    assert broken_conditions(GOOD, renderer(GOOD), renderer) == ("letter",)


def test_labelled_prompts_break_no_condition():
    renderer = Renderer(tokenizer(), Rendering())
    row = replace(GOOD, positive=None, negative=None, label="x")

    assert broken_conditions(row, renderer(row), renderer) == ()
    assert check_rows([row], renderer, context=None, preset="caa").conditions.n == 0


def rows():
    """Five pairs: good, two after the letter, too long, merging with nothing, good."""
    return [
        replace(GOOD, id="good"),
        replace(GOOD, id="dots", positive="(A).", negative="(B)."),
        replace(GOOD, id="long", prompt="x" * 300),
        replace(GOOD, id="same", positive="yes", negative="yes!"),
        replace(GOOD, id="fine", positive=" (A)", negative=" (B)"),
    ]


def test_without_a_preset_broken_conditions_are_notes():
    samples = [row for row in rows() if row.id != "same"]
    checked = check_rows(samples, Renderer(tokenizer(), Rendering()), context=128)

    assert checked.row_numbers == (0, 1, 3)
    assert [row["id"] for row in checked.left_out] == ["long"]
    assert checked.left_out[0] | {"tokens": 0} == {
        "id": "long",
        "reason": "longer than the model's context",
        "tokens": 0,
        "context": 128,
    }
    assert checked.conditions.recorded() == {
        "checked": 3,
        "broken": {"one_after": {"n": 1, "first": ["dots"], "why": CONDITIONS["one_after"]}},
    }


def test_skip_bad_leaves_bad_rows_out_with_their_reasons():
    checked = check_rows(
        rows(), Renderer(tokenizer(), Rendering()), context=128, preset="caa", skip_bad=True
    )

    assert checked.row_numbers == (0, 4)
    assert len(checked.rendered) == 2
    reasons = {row["id"]: row["reason"] for row in checked.left_out}
    assert reasons["dots"] == CONDITIONS["one_after"]
    assert reasons["long"] == "longer than the model's context"
    assert "no token tells them apart" in reasons["same"]
    assert [(finding.condition, finding.n) for finding in checked.conditions.findings] == [
        ("one_after", 1)
    ]


def test_rows_that_share_tokens_are_left_out_without_a_preset_too():
    checked = check_rows(rows(), Renderer(tokenizer(), Rendering()), context=128, skip_bad=True)

    assert [row["id"] for row in checked.left_out] == ["long", "same"]


def test_rows_over_the_context_are_separated_and_never_truncated():
    renderer = Renderer(tokenizer(), Rendering())
    rendered = {i: renderer(replace(GOOD, prompt="x" * n)) for i, n in enumerate((1, 30, 2))}

    assert too_long_rows(rendered, 20) == {1}
    assert too_long_rows(rendered, None) == set()


def refusal(samples, **settings):
    rendering = Rendering(**settings.pop("rendering", {}))
    with pytest.raises(RenderError) as caught:
        check_rows(samples, Renderer(tokenizer(), rendering), context=128, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_refuses_rows_that_break_what_it_needs(preset):
    samples = [row for row in rows() if row.id != "same"]
    message = refusal(samples, preset=preset)

    assert f"1 of 3 rows break conditions that the preset {preset} needs" in message
    assert f"one_after (1: dots): {CONDITIONS['one_after']}" in message
    assert "Pass --skip-bad-rows to leave them out" in message


def test_a_condition_that_a_preset_does_not_need_does_not_stop_it():
    spaced = [replace(GOOD, positive=" (A)", negative=" (B)")]
    renderer = Renderer(tokenizer(), Rendering(space="add"))

    checked = check_rows(spaced, renderer, context=128, preset="steering-bench")
    assert [finding.condition for finding in checked.conditions.findings] == ["one_space"]
    with pytest.raises(RenderError, match="one_space"):
        check_rows(spaced, renderer, context=128, preset="repepo")


def test_rows_that_cannot_be_rendered_are_counted_in_one_line():
    same = [replace(GOOD, id=f"same/{i}", positive="y", negative="yes") for i in range(5)]

    assert "row 'same/0'" in refusal([GOOD, *same[:1]])
    assert "Or pass --skip-bad-rows" in refusal([GOOD, *same[:1]])
    message = refusal([GOOD, *same])
    assert "In total 5 of 6 rows fail (same/0, same/1, same/2, …)" in message
    assert "--skip-bad-rows leaves them out" in message


def test_skip_bad_rows_is_not_suggested_if_all_rows_are_bad():
    same = [replace(GOOD, id=f"same/{i}", positive="y", negative="yes") for i in range(5)]
    dots = replace(GOOD, positive="(A).", negative="(B).")

    for message in (refusal(same[:1]), refusal(same), refusal([dots], preset="caa")):
        assert "--skip-bad-rows" not in message
    assert "All 5 rows fail in this way" in refusal(same)
    assert "Choose other settings or no preset" in refusal([dots], preset="caa")


def test_refuses_to_leave_out_every_row():
    assert "Use a model with a longer context" in refusal([replace(GOOD, prompt="x" * 300)])
    dots = replace(GOOD, positive="(A).", negative="(B).")
    message = refusal([dots, replace(GOOD, prompt="x" * 300)], preset="caa", skip_bad=True)
    assert "all 2 rows are left out" in message
    assert "'b/0': the first token that differs is not followed" in message


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_good_rows_satisfy_every_preset(name):
    checked = check_rows([GOOD], Renderer(tokenizer(), Rendering()), context=None, preset=name)

    assert checked.row_numbers == (0,)
    assert checked.conditions.findings == ()


@pytest.mark.model
def test_the_command_line_stops_or_leaves_rows_out_and_says_so(tmp_path, capsys):
    from actcache.store.store import open_store

    model = save(tmp_path / "model")
    texts = [
        {"id": row.id, "prompt": row.prompt, "positive": row.positive, "negative": row.negative}
        for row in rows()
    ]
    texts += [{**texts[0], "id": f"good/{i}", "prompt": f"Is it {i}?"} for i in range(9)]
    data, store = tmp_path / "d.jsonl", tmp_path / "s.zarr"
    data.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    command = ["build", str(data), "--model", model, "-o", str(store)]
    capsys.readouterr()

    assert main(command) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "'same'" in message
    assert main([*command, "--preset", "caa", "--skip-bad-rows", "--dry-run"]) == 0
    assert not store.exists()
    capsys.readouterr()

    assert main([*command, "--preset", "caa", "--skip-bad-rows"]) == 0
    messages = capsys.readouterr().err
    assert "1 row left out, longer than the model's context of 128 tokens" in messages
    assert f"2 rows left out, unusable: dots ({CONDITIONS['one_after']})" in messages
    assert "note: 1 of 12 rows breaks the condition one_after (dots): the first" in messages
    assert "preset caa: every row in the store meets letter, one_after, equal, bos" in messages
    built = open_store(store)
    assert built.n == 11
    assert built.config["skip_bad_rows"] is True
    left_out = built.left_out
    assert [row["id"] for row in left_out] == ["dots", "long", "same"]
    assert built.provenance["conditions"]["broken"]["one_after"]["n"] == 1


@pytest.mark.model
def test_many_rows_that_are_left_out_are_named_in_part(tmp_path, capsys):
    model = save(tmp_path / "model")
    texts = [{"prompt": "Hi?", "positive": "(A)", "negative": "(B)"}]
    texts += [{"prompt": f"{i}?", "positive": "y", "negative": "yes"} for i in range(30)]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    command = ["build", str(data), "--model", model, "-o", str(tmp_path / "s.zarr")]

    assert main([*command, "--skip-bad-rows", "--dry-run"]) == 0

    messages = capsys.readouterr().err
    assert "30 rows left out, unusable: d/1 (" in messages
    assert "… (all 30 are listed in the store)" in messages
    assert "d/20" not in messages
