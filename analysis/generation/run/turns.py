"""Messages of a conversation as tokens, so that what was written before stays as it is."""

from typing import Any

from actcache.data.samples import Sample
from actcache.errors import RenderError
from actcache.prompts.render import Renderer

_MARK = "answer 7f3a91"
"""Stands for an earlier answer, whose own tokens are in the conversation already."""


def first_message(renderer: Renderer, text: str) -> tuple[int, ...]:
    """Render the first message of a conversation: BOS, system message, template."""
    sample = Sample(
        id="message", behavior="", prompt=text, positive=None, negative=None, label="", letter=""
    )
    return renderer(sample).prompt


def next_message(renderer: Renderer, tokenizer: Any, text: str) -> tuple[int, ...]:
    """Render what lies between the last answer and the next: its end, and the new message.

    Raises:
        RenderError: the template refuses a conversation, or drops its answers.
    """
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _MARK},
        {"role": "user", "content": text},
    ]
    try:
        whole = tokenizer.apply_chat_template(
            messages, chat_template=renderer.template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program: whatever it raises is about the turns
        raise RenderError(
            f"the chat template refuses a second message ({error}). Start over with /reset, or "
            "pass --template FILE."
        ) from error
    _, mark, rest = str(whole).rpartition(_MARK)
    if not mark:
        raise RenderError(
            "the chat template drops earlier answers, expected one that shows them. Start over "
            "with /reset, or pass --template FILE."
        )
    return tuple(tokenizer(rest, add_special_tokens=False)["input_ids"])
