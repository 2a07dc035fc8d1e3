"""What rows must hold for the published codes' reads to mean what they say, and who is told."""

import json
from dataclasses import replace

import pytest

from actcache.cli.main import main
from actcache.conventions import PRESET_NAMES, PRESETS
from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.checks import CONDITIONS, broken_conditions, select_rows
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
def test_a_pair_breaks_the_conditions_that_it_breaks_and_no_other(case):
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


def test_a_second_space_and_a_second_bos_are_found_where_the_code_makes_them():
    both = tokenizer(bos=True, template="{{ bos_token }}{{ messages[0]['content'] }}")

    assert broken(" (A)", " (B)", space="add") == {"one_space"}
    assert broken(tok=both) == set()
    assert broken(tok=both, bos="tokenizer") == {"bos"}


def test_a_plain_prompt_that_ends_in_a_space_brings_the_one():
    renderer = Renderer(tokenizer(), Rendering(template="none"))
    row = replace(GOOD, prompt="Q: ")

    assert broken_conditions(row, renderer(row), renderer) == ()


def test_a_letter_that_the_tokenizer_merges_with_its_bracket_is_no_letter():
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


def test_labelled_prompts_have_nothing_to_break():
    renderer = Renderer(tokenizer(), Rendering())
    row = replace(GOOD, positive=None, negative=None, label="x")

    assert broken_conditions(row, renderer(row), renderer) == ()
    assert select_rows([row], renderer, context=None, preset="caa").conditions.n == 0


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
    kept = [row for row in rows() if row.id != "same"]
    chosen = select_rows(kept, Renderer(tokenizer(), Rendering()), context=128)

    assert chosen.kept == (0, 1, 3)
    assert [row["id"] for row in chosen.left_out] == ["long"]
    assert chosen.left_out[0] | {"tokens": 0} == {
        "id": "long",
        "reason": "longer than the model's context",
        "tokens": 0,
        "context": 128,
    }
    assert chosen.conditions.recorded() == {
        "checked": 3,
        "broken": {"one_after": {"n": 1, "first": ["dots"], "why": CONDITIONS["one_after"]}},
    }


def test_bad_rows_are_left_out_with_their_reasons_where_that_is_asked_for():
    chosen = select_rows(
        rows(), Renderer(tokenizer(), Rendering()), context=128, preset="caa", skip_bad=True
    )

    assert chosen.kept == (0, 4)
    assert len(chosen.rendered) == 2
    reasons = {row["id"]: row["reason"] for row in chosen.left_out}
    assert reasons["dots"] == CONDITIONS["one_after"]
    assert reasons["long"] == "longer than the model's context"
    assert "no token tells them apart" in reasons["same"]
    assert [(each.condition, each.n) for each in chosen.conditions.findings] == [("one_after", 1)]


def test_rows_that_do_not_part_into_tokens_are_kept_out_without_a_preset_too():
    chosen = select_rows(rows(), Renderer(tokenizer(), Rendering()), context=128, skip_bad=True)

    assert [row["id"] for row in chosen.left_out] == ["long", "same"]


def refusal(samples, **settings):
    rendering = Rendering(**settings.pop("rendering", {}))
    with pytest.raises(RenderError) as caught:
        select_rows(samples, Renderer(tokenizer(), rendering), context=128, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_refuses_rows_that_break_what_it_needs(preset):
    kept = [row for row in rows() if row.id != "same"]
    message = refusal(kept, preset=preset)

    assert f"1 of 3 rows break what the preset {preset} needs" in message
    assert f"1 (dots): one_after: {CONDITIONS['one_after']}" in message
    assert "Pass --skip-bad-rows to leave them out" in message


def test_what_a_preset_does_not_need_does_not_stop_it():
    spaced = [replace(GOOD, positive=" (A)", negative=" (B)")]
    renderer = Renderer(tokenizer(), Rendering(space="add"))

    chosen = select_rows(spaced, renderer, context=128, preset="steering-bench")
    assert [each.condition for each in chosen.conditions.findings] == ["one_space"]
    with pytest.raises(RenderError, match="one_space"):
        select_rows(spaced, renderer, context=128, preset="repepo")


def test_rows_that_cannot_be_rendered_are_counted_in_one_line():
    same = [replace(GOOD, id=f"same/{i}", positive="y", negative="yes") for i in range(5)]

    assert "row 'same/0'" in refusal([GOOD, *same[:1]])
    assert "Or pass --skip-bad-rows" in refusal([GOOD, *same[:1]])
    message = refusal([GOOD, *same])
    assert "all 5 of 6 rows are refused (same/0, same/1, same/2, …)" in message
    assert "--skip-bad-rows leaves them out" in message


def test_leaving_rows_out_is_no_remedy_where_all_are_bad():
    same = [replace(GOOD, id=f"same/{i}", positive="y", negative="yes") for i in range(5)]
    dots = replace(GOOD, positive="(A).", negative="(B).")

    for message in (refusal(same[:1]), refusal(same), refusal([dots], preset="caa")):
        assert "--skip-bad-rows" not in message
    assert "All 5 rows are refused so" in refusal(same)
    assert "Choose other settings or no preset" in refusal([dots], preset="caa")


def test_refuses_to_leave_out_every_row():
    assert "Use a model with a longer context" in refusal([replace(GOOD, prompt="x" * 300)])
    dots = replace(GOOD, positive="(A).", negative="(B).")
    message = refusal([dots, replace(GOOD, prompt="x" * 300)], preset="caa", skip_bad=True)
    assert "all 2 rows are left out" in message
    assert "'b/0': the first token that differs is not followed" in message


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_good_rows_satisfy_every_preset(name):
    chosen = select_rows([GOOD], Renderer(tokenizer(), Rendering()), context=None, preset=name)

    assert chosen.kept == (0,)
    assert chosen.conditions.findings == ()


@pytest.mark.model
def test_the_command_line_stops_leaves_out_and_tells(tmp_path, capsys):
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
    told = capsys.readouterr().err
    assert "left out, longer than the model's context of 128 tokens" in told
    assert f"dots ({CONDITIONS['one_after']})" in told
    assert "note: of 12 rows 1 (dots): one_after" in told
    assert "preset caa: every row that is kept holds letter, one_after, equal, bos" in told
    kept = open_store(store)
    assert kept.n == 11
    assert kept.config["skip_bad_rows"] is True
    left_out = kept.provenance["left_out"]
    assert [row["id"] for row in left_out] == ["dots", "long", "same"]
    assert kept.provenance["conditions"]["broken"]["one_after"]["n"] == 1


@pytest.mark.model
def test_many_rows_that_are_left_out_are_named_in_part(tmp_path, capsys):
    model = save(tmp_path / "model")
    texts = [{"prompt": "Hi?", "positive": "(A)", "negative": "(B)"}]
    texts += [{"prompt": f"{i}?", "positive": "y", "negative": "yes"} for i in range(30)]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    command = ["build", str(data), "--model", model, "-o", str(tmp_path / "s.zarr")]

    assert main([*command, "--skip-bad-rows", "--dry-run"]) == 0

    told = capsys.readouterr().err
    assert "30 rows: d/1 (" in told
    assert "… (all 30 are in the store)" in told
    assert "d/20" not in told
