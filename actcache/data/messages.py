"""Conversations of rows: `messages` as system message, earlier turns and the last prompt."""

import json
from typing import Any

from actcache.data.readers import RawRow, json_type
from actcache.data.samples import History
from actcache.errors import RowError

MESSAGES = "messages"
"""The key of a row's conversation, in place of `prompt`."""

_SYSTEM = ("system", "developer")


def read_messages(row: RawRow) -> tuple[RawRow, History, bool]:
    """Put the last user message of a conversation under `prompt`, and its system message there too.

    Messages are as OpenAI's API takes them: objects with `role` (system or developer, only the
    first; user; assistant) and `content`, a text or a list of parts of the type text.

    Returns:
        The row with `prompt` and `system` in place of `messages`; the turns between these two, each
        a role and a text; and whether an answer at the end was left out, since a prompt ends where
        the answer begins.

    Raises:
        RowError: these are no such messages, or none is the user's.
    """
    values = dict(row.values)
    turns = _turns(values.pop(MESSAGES), row.place)
    if turns[0][0] in _SYSTEM:
        if values.get("system") is not None:
            raise RowError(
                f"{row.place}: has a 'system' and a system message in 'messages', expected one of "
                "them. Drop one."
            )
        values["system"] = turns.pop(0)[1]
    misplaced = next((role for role, _ in turns if role in _SYSTEM), None)
    if misplaced is not None:
        raise RowError(
            f"{row.place}: 'messages' have the role '{misplaced}' after the first message, "
            "expected it there alone. Move it to the front."
        )
    has_answer = bool(turns) and turns[-1][0] == "assistant"
    if has_answer:
        turns.pop()
    if not turns or turns[-1][0] != "user":
        raise RowError(
            f"{row.place}: 'messages' have no message of the user before the answer, expected one: "
            "it is the prompt. Add it, or drop the row."
        )
    values["prompt"] = turns.pop()[1]
    return RawRow(values, row.place, row.source), tuple(turns), has_answer


def history_text(history: History) -> str:
    """Write earlier turns as the store's column `history` has them; empty for none."""
    messages = [{"role": role, "content": content} for role, content in history]
    return json.dumps(messages, ensure_ascii=False) if messages else ""


def parse_history(text: str) -> History:
    """Read what `history_text` wrote."""
    turns = json.loads(text) if text else []
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _turns(messages: Any, place: str) -> list[tuple[str, str]]:
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # a cell of a csv file
        try:
            messages = json.loads(messages)
        except ValueError:
            messages = str(messages)
    if not isinstance(messages, list | tuple) or not messages:
        actual = "an empty list" if messages in ([], ()) else json_type(messages)
        raise RowError(
            f"{place}: 'messages' is {actual}, expected a list of objects with 'role' and "
            "'content'. Write one, or a 'prompt'."
        )
    return [_turn(message, f"{place}: message {i} (from 0)") for i, message in enumerate(messages)]


def _turn(message: Any, place: str) -> tuple[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        actual = f"the keys {', '.join(message)}" if isinstance(message, dict) else "no object"
        raise RowError(
            f"{place} has {actual}, expected an object with 'role' and 'content'. Rename the keys."
        )
    role, content = message["role"], message["content"]
    if role not in (*_SYSTEM, "user", "assistant"):
        raise RowError(
            f"{place} has the role {str(role)[:60]!r}, expected system, user or assistant. Rename "
            "it, or drop the row."
        )
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            content = "".join(map(str, texts))
    if not isinstance(content, str) or not content.strip():
        actual = "empty" if isinstance(content, str) else json_type(content)
        raise RowError(
            f"{place}: 'content' is {actual}, expected text, or a list of parts of the type text. "
            "Write text, or drop the row."
        )
    return role, content
