"""Conversations: what of `messages` becomes system message, earlier turns and prompt."""

import json

import pytest

from actcache.data import read_samples
from actcache.data.messages import history_text, parse_history
from actcache.errors import RowError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi!"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "you?"}],
    },
]


def read(*messages, note=print, **others):
    return read_samples([{"messages": list(messages), **others}], note=note)[0]


def test_the_last_user_message_is_the_prompt_and_the_others_come_before_it():
    sample = read(*TURNS)

    assert (sample.system, sample.prompt) == ("Be brief.", "And you?")
    assert sample.history == (("user", "Hello."), ("assistant", "Hi!"))
    assert sample.kind == "prompt"
    assert parse_history(history_text(sample.history)) == sample.history
    assert json.loads(history_text(sample.history)) == TURNS[1:3]


def test_one_user_message_is_a_plain_prompt():
    alone = read({"role": "user", "content": "Hello."})

    assert alone == read_samples([{"prompt": "Hello."}])[0]
    assert history_text(alone.history) == ""


def test_messages_stand_for_the_prompt_of_pairs_and_of_labels():
    pair = read(*TURNS, positive=" (A)", negative=" (B)")
    label = read(*TURNS, label="kind")

    assert (pair.kind, pair.prompt, pair.letter) == ("pair", "And you?", "A")
    assert (label.kind, label.prompt, label.label) == ("label", "And you?", "kind")


def test_earlier_turns_are_part_of_the_digest_and_nothing_else_changes_it():
    digests = [read(*turns).digest for turns in (TURNS, [TURNS[0], TURNS[3]], TURNS[1:])]

    assert len(set(digests)) == 3
    assert (
        read(TURNS[0], TURNS[3]).digest
        == read_samples([{"system": "Be brief.", "prompt": "And you?"}])[0].digest
    )


def test_an_answer_at_the_end_is_ignored_and_said():
    notes = []
    sample = read(TURNS[1], TURNS[2], note=notes.append)

    assert sample.prompt == "Hello."
    [sentence] = notes
    assert sentence == (
        "'rows': in 1 row the answer that ends 'messages' is ignored: a prompt ends where the "
        "answer begins"
    )


def test_a_prompt_beside_messages_is_read_and_that_is_said():
    notes = []
    [sample] = read_samples([{"prompt": "Well?", "messages": TURNS}], note=notes.append)

    assert (sample.prompt, sample.history, sample.extra) == ("Well?", (), {"messages": TURNS})
    assert "'messages' is kept as a column" in notes[0]


@pytest.mark.parametrize(
    ("messages", "named", "remedy"),
    [
        ("Hello.", "'messages' is text", "or a 'prompt'"),
        ([], "an empty list", "or a 'prompt'"),
        (["Hello."], "message 0 (from 0) has no object", "Rename the keys"),
        ([{"from": "user", "value": "Hello."}], "the keys from, value", "Rename the keys"),
        ([{"role": "tool", "content": "x"}], "the role 'tool'", "drop the row"),
        ([{"role": "user", "content": " "}], "'content' is empty", "Write text"),
        ([{"role": "user", "content": None}], "'content' is null", "Write text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "is a list", "Write text"),
        ([TURNS[1], TURNS[0]], "after the first message", "Move it to the front"),
        ([TURNS[0]], "no message of the user", "drop the row"),
        ([TURNS[2]], "no message of the user", "drop the row"),
    ],
)
def test_bad_messages_are_refused_in_one_line(messages, named, remedy):
    with pytest.raises(RowError) as caught:
        read_samples([{"messages": messages}])
    text = str(caught.value)

    assert "'rows' row 0 (from 0)" in text
    assert named in text
    assert remedy in text
    assert "\n" not in text


def test_two_system_messages_are_refused():
    with pytest.raises(RowError, match="Drop one"):
        read(*TURNS, system="Be kind.")
